package buildfs

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"vers/internal/fault"
)

// Unpack extracts an archive package into dir, which must be empty or not there yet. What has no archive is an error.
func Unpack(ctx context.Context, packagePath, dir string) (err error) {
	file, err := os.Open(packagePath)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.NotFoundf("package %s does not exist", packagePath)
	}
	if err != nil {
		return fmt.Errorf("open the package: %w", err)
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return fault.Invalidf("%s is not an archive; only packages of type tar and tar-gz can be unpacked", packagePath)
	}
	kind, err := detect(file)
	if err != nil {
		return fmt.Errorf("read package %s: %w", packagePath, err)
	}
	if kind == KindScript {
		return fault.Invalidf("%s is a file, but not a tar archive; only packages of type tar and tar-gz can be unpacked", packagePath)
	}
	made, err := emptyFolder(dir)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			empty(dir, made)
		}
	}()
	if err := unpack(ctx, file, kind, dir); err != nil {
		return fault.New(fault.KindOf(err), "unpack %s: %w", packagePath, err)
	}
	return nil
}

// emptyFolder makes dir unless it is an empty folder already.
func emptyFolder(dir string) (made bool, err error) {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return false, fmt.Errorf("make the folder: %w", err)
		}
		return true, nil
	case err != nil:
		return false, fault.Invalidf("%s cannot be the folder: %w", dir, err)
	case len(entries) > 0:
		return false, fault.Conflictf("folder %s is not empty; name another one", dir)
	}
	return false, nil
}

// empty takes back what was put into a folder that was empty.
func empty(dir string, made bool) {
	if made {
		_ = os.RemoveAll(dir)
		return
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return
	}
	defer root.Close()
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		_ = root.RemoveAll(e.Name())
	}
}

// unpack writes the archive's entries below dir. Nothing gets outside of it: every name is resolved by os.Root, which
// follows no symbolic link that leads out. Package rootfs does otherwise, since its trees become a machine's root: there a
// link to /etc means the tree's own; here it would be a mistake that must be told.
func unpack(ctx context.Context, archive io.Reader, kind Kind, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if kind == KindTarGz {
		unzipped, err := gzip.NewReader(archive)
		if err != nil {
			return fault.Invalidf("damaged gzip data: %w", err)
		}
		defer unzipped.Close()
		archive = unzipped
	}
	u := &unpacker{root: root, left: maxPackageBytes}
	for reader := tar.NewReader(archive); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return drain(archive)
		}
		if err == nil {
			err = ctx.Err()
		} else {
			err = fault.Invalidf("damaged archive: %w", err)
		}
		if err != nil {
			return err
		}
		if err := u.entry(header, reader); err != nil {
			return err
		}
	}
}

// drain reads what follows the end of the archive, so that the checksum of gzip is compared.
func drain(r io.Reader) error {
	if _, err := io.Copy(io.Discard, io.LimitReader(r, maxPackageBytes)); err != nil {
		return fault.Invalidf("damaged archive: %w", err)
	}
	return nil
}

type unpacker struct {
	root    *os.Root
	left    int64 // bytes
	entries int
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	name, err := Local(h.Name)
	if err != nil {
		return fault.Invalidf("entry %w", err)
	}
	if u.entries++; u.entries > maxPackageEntries {
		return fault.Exhaustedf("it has more than %d entries", maxPackageEntries)
	}
	mode := fs.FileMode(h.Mode).Perm() | 0o600
	if parent := path.Dir(name); parent != "." {
		if err := u.root.MkdirAll(parent, 0o755); err != nil {
			return u.refused(h.Name, err)
		}
	}
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeDir:
		err = u.root.MkdirAll(name, mode|0o100)
	case tar.TypeReg, '\x00':
		err = u.file(name, mode, h, content)
	case tar.TypeSymlink:
		err = u.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		var target string
		if target, err = Local(h.Linkname); err == nil {
			err = u.root.Link(target, name)
		}
	default:
		return fault.Invalidf("entry %s is a device, pipe or socket, which has no place in a package", h.Name)
	}
	return u.refused(h.Name, err)
}

func (u *unpacker) file(name string, mode fs.FileMode, h *tar.Header, content io.Reader) error {
	if h.Size > u.left {
		return fault.Exhaustedf("its files are larger than %d GiB together", maxPackageBytes>>30)
	}
	u.left -= h.Size
	file, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	err = errors.Join(err, file.Chmod(mode), file.Close())
	if err == nil && !h.ModTime.IsZero() {
		err = u.root.Chtimes(name, h.ModTime, h.ModTime)
	}
	return err
}

// contradictions are what names and links of an archive do to each other, and what no file system takes.
var contradictions = []error{fs.ErrNotExist, syscall.ENOTDIR, syscall.EISDIR, syscall.ELOOP, syscall.ENAMETOOLONG, syscall.EINVAL, syscall.EPERM}

// refused names the entry. What the archive's own names cause is its fault.
func (u *unpacker) refused(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case fault.KindOf(err) != fault.Internal:
		return fault.New(fault.KindOf(err), "entry %s: %w", name, err)
	case errors.Is(err, fs.ErrExist):
		return fault.Invalidf("entry %s is there twice", name)
	case strings.Contains(err.Error(), "path escapes"):
		return fault.Invalidf("entry %s leads out of the folder", name)
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, gzip.ErrChecksum) || errors.Is(err, tar.ErrHeader):
		return fault.Invalidf("damaged archive at %s: %w", name, err)
	case slices.ContainsFunc(contradictions, func(c error) bool { return errors.Is(err, c) }):
		return fault.Invalidf("entry %s contradicts others, or cannot be written: %w", name, err)
	}
	return fmt.Errorf("write %s: %w", name, err)
}
