package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"lukechampine.com/blake3"

	"vers/internal/fault"
)

const (
	blockSize  = 4096
	bufferSize = 1 << 20

	maxID    = 1<<32 - 2 // the kernel takes the one above for "unchanged"
	maxLinks = 40        // symbolic links to follow, as the kernel's limit
)

// tree is a folder that an archive is extracted into. Nothing but the tree's own goroutine may change what is below it.
// Names are resolved by the kernel below root, whatever they and the symbolic links on their way say.
type tree struct {
	root int // descriptor of the folder
	// staged: files get neither owner, mode, times nor extended attributes, and devices are empty files, so that no
	// privilege is needed. records say what they should be.
	staged   bool
	bootable bool
	keep     []string // what bootable leaves alone
	warnings *warnings
	budget   *budget
	records  map[uint64]*record // by inode, of all files that the archive made
	buffer   []byte
	data     *blake3.Hasher
	holes    *blake3.Hasher

	lastDir string // path of dir, which is open for the next entry; dir is -1 if there is none
	dir     int
	stale   bool // something was removed: lastDir may mean another directory now
}

func newTree(root int, o Options, staged bool, w *warnings) *tree {
	return &tree{
		root: root, staged: staged, bootable: o.Bootable, keep: o.Keep, warnings: w, budget: newBudget(o.Limits), records: map[uint64]*record{},
		buffer: make([]byte, bufferSize), data: blake3.New(32, nil), holes: blake3.New(32, nil), dir: -1,
	}
}

// fill extracts a whole archive, and gives directories what could not be given before all files were in them.
func (t *tree) fill(ctx context.Context, s *stream) error {
	defer t.forgetDir()
	if _, err := t.folderRecord(t.root); err != nil {
		return err
	}
	for {
		hdr, err := s.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("extracting: stopped: %w", context.Cause(ctx))
		}
		if err := t.budget.entry(); err != nil {
			return err
		}
		if err := t.add(ctx, s, hdr); err != nil {
			return err
		}
	}
	if err := s.drain(); err != nil {
		return err
	}
	if t.bootable {
		return t.mend()
	}
	return nil
}

// cleanName is an entry's name as a path below the root, without "." and "..". The root's own is "".
func cleanName(name string) string { return path.Clean("/" + name)[1:] }

func isFile(hdr *tar.Header) bool {
	return hdr.Typeflag == tar.TypeReg || hdr.Typeflag == tar.TypeCont || hdr.Typeflag == tar.TypeGNUSparse
}

// add makes one entry. What has its name already is replaced, but a directory by a directory.
func (t *tree) add(ctx context.Context, s *stream, hdr *tar.Header) error {
	name := cleanName(hdr.Name)
	if t.bootable && strings.HasPrefix(name, "dev/") {
		return nil // a guest has its own, and making them needs privileges
	}
	if name == "" {
		if hdr.Typeflag != tar.TypeDir {
			return fault.Invalidf("entry %q of the archive would replace the root directory by something else", hdr.Name)
		}
		return t.addFolder(hdr, t.root, ".")
	}
	dir, base, err := t.parent(name)
	if err != nil {
		return t.failed(hdr.Name, "make the folder of", err)
	}
	switch {
	case isFile(hdr):
		err = t.addFile(ctx, s, hdr, dir, base)
	case hdr.Typeflag == tar.TypeDir:
		err = t.addFolder(hdr, dir, base)
	case hdr.Typeflag == tar.TypeLink:
		err = t.addLink(hdr, dir, base)
	case hdr.Typeflag == tar.TypeSymlink:
		err = t.addSymlink(hdr, dir, base)
	case hdr.Typeflag == tar.TypeChar, hdr.Typeflag == tar.TypeBlock, hdr.Typeflag == tar.TypeFifo:
		err = t.addNode(hdr, dir, base)
	case hdr.Typeflag == 'V': // GNU tar's label of a volume
		return nil
	default:
		return fault.Invalidf("entry %q of the archive has the type %q, which is not supported", hdr.Name, string(hdr.Typeflag))
	}
	return t.failed(hdr.Name, "make", err)
}

// failed says what went wrong with an entry.
func (t *tree) failed(name, verb string, err error) error {
	switch {
	case err == nil:
		return nil
	case fault.KindOf(err) != fault.Internal || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, unix.ENOSPC):
		return t.full(name)
	case errors.Is(err, unix.ENAMETOOLONG):
		return fault.Invalidf("entry %s of the archive: the name or the link is too long: at most 255 bytes for one name, 4095 for a path: %w", shortName(name), err)
	case errors.Is(err, unix.ENOTDIR):
		return fault.Invalidf("entry %s of the archive lies below something that is no directory: %w", shortName(name), err)
	case errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOENT): // a link through something that is not there
		return fault.Invalidf("entry %s of the archive: the symbolic links on its way lead nowhere: %w", shortName(name), err)
	}
	return fmt.Errorf("%s entry %s of the archive: %w", verb, shortName(name), err)
}

// shortName quotes a name, or its end if it is long.
func shortName(name string) string {
	if len(name) > 300 {
		return "…" + strconv.Quote(name[len(name)-300:])
	}
	return strconv.Quote(name)
}

// full says of what the file system has too little.
func (t *tree) full(name string) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(t.root, &st); err != nil {
		return fmt.Errorf("look at the file system: %w", err)
	}
	size := int64(st.Blocks) * st.Bsize >> 20
	if st.Ffree == 0 && st.Files > 0 {
		return fault.Exhaustedf("the file system of %d MiB has room for %d files and directories only, and entry %s is one more: give it a larger size",
			size, st.Files, shortName(name))
	}
	return fault.Exhaustedf("the file system of %d MiB is full at entry %s: give it a larger size", size, shortName(name))
}

// parent opens the directory that a path's last name belongs into, and makes it if it is missing. The descriptor is valid
// until the next call, and only good for reaching what is in the directory.
func (t *tree) parent(name string) (int, string, error) {
	dir, base := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	if dir == "" {
		return t.root, base, nil
	}
	if t.dir >= 0 && t.lastDir == dir && !t.stale {
		return t.dir, base, nil
	}
	t.forgetDir()
	fd, err := t.openFolder(dir)
	if errors.Is(err, unix.ENOENT) {
		if err = t.makeFolders(dir, 0); err == nil {
			fd, err = t.openFolder(dir)
		}
	}
	if err != nil {
		return -1, "", err
	}
	t.dir, t.lastDir, t.stale = fd, dir, false
	return fd, base, nil
}

func (t *tree) forgetDir() {
	if t.dir >= 0 {
		unix.Close(t.dir)
		t.dir = -1
	}
}

func (t *tree) openFolder(dir string) (int, error) {
	return t.open(dir, unix.O_PATH|unix.O_DIRECTORY)
}

// open opens a path below the root. What it names cannot lie outside.
func (t *tree) open(name string, flags uint64) (int, error) {
	if name == "" {
		name = "."
	}
	for {
		fd, err := unix.Openat2(t.root, name, &unix.OpenHow{
			Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
		})
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// makeFolders makes a directory and those above it that the archive has no entry for, or not yet. A symbolic link on the
// way that leads to nothing has its target made.
func (t *tree) makeFolders(dir string, followed int) error {
	parent, base := path.Split(dir)
	parent = strings.TrimSuffix(parent, "/")
	above, err := t.openFolder(parent)
	if errors.Is(err, unix.ENOENT) {
		if err = t.makeFolders(parent, followed); err == nil {
			above, err = t.openFolder(parent)
		}
	}
	if err != nil {
		return err
	}
	defer unix.Close(above)
	err = t.makeFolder(above, base)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(above, base, target)
	if errors.Is(err, unix.EINVAL) { // no link, so it has been made meanwhile by following one
		return nil
	}
	if err != nil {
		return err
	}
	if followed >= maxLinks {
		return unix.ELOOP
	}
	to := string(target[:n])
	if !strings.HasPrefix(to, "/") {
		to = parent + "/" + to
	}
	to = cleanName(to)
	if fd, err := t.openFolder(to); err == nil {
		return unix.Close(fd)
	}
	return t.makeFolders(to, followed+1)
}

// makeFolder makes one directory, as if the archive had it with usual settings.
func (t *tree) makeFolder(dir int, base string) error {
	if err := unix.Mkdirat(dir, base, 0o700); err != nil {
		return err
	}
	fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = t.folderRecord(fd)
	return err
}

// folderRecord records an open directory as one that the archive does not describe.
func (t *tree) folderRecord(fd int) (*record, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH); err != nil {
		return nil, err
	}
	r := &record{kind: kindFolder, mode: 0o755}
	t.records[st.Ino] = r
	return r, nil
}
