package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"vers/internal/build/inputs"
	"vers/internal/compression"
	"vers/internal/fault"
)

// unpack writes the folder of a build into dir as its archive comes. Names are resolved below dir whatever they and the
// links in the archive say (os.Root); owners are ours, as in every folder that is built; the archive is read to its end.
// It needs no more memory for a large archive than for a small one. digest is what package inputs makes of the entries.
func (s *Service) unpack(ctx context.Context, archive io.Reader, dir string) (digest string, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	u := unpacker{root: root, bytes: s.Context.Bytes, entries: s.Context.Entries, tooMuch: s.tooMuch, folders: map[string]folder{},
		sum: inputs.New(), buffer: make([]byte, 128<<10)}
	defer u.leave()
	if err := u.archive(ctx, archive); err != nil {
		return "", err
	}
	return u.sum.String(), u.finish()
}

func (u *unpacker) archive(ctx context.Context, archive io.Reader) error {
	plain, err := compression.Decompress(reading{ctx, archive})
	if err != nil {
		return badArchive(ctx, err)
	}
	defer plain.Close()
	for tape := tar.NewReader(plain); ; {
		entry, err := tape.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return badArchive(ctx, err)
		}
		if err := u.entry(entry, tape); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("unpack %.200q: %w", entry.Name, badArchive(ctx, err))
		}
	}
	// What pads the archive: a client that is still sending must not find the door closed.
	if _, err := io.Copy(io.Discard, io.LimitReader(plain, 1<<20)); err != nil {
		return badArchive(ctx, err)
	}
	return nil
}

type unpacker struct {
	root           *os.Root
	bytes, entries int64 // left
	tooMuch        func() error
	folders        map[string]folder // to be given their modes and times when nothing is put into them any more
	sum            *inputs.Sum
	buffer         []byte

	// The folder of the last entry, open: that of the next one is mostly the same. What it has is removed only by way of
	// it, so that it is never removed itself while it is open.
	here     *os.Root
	hereName string
}

// enter opens the folder of an entry, which is made if it is missing.
func (u *unpacker) enter(dir string) error {
	if u.here != nil && u.hereName == dir {
		return nil
	}
	u.leave()
	if err := u.root.MkdirAll(dir, 0o755); err != nil {
		return outside(err)
	}
	here, err := u.root.OpenRoot(dir)
	if err != nil {
		return outside(err)
	}
	u.here, u.hereName = here, dir
	return nil
}

func (u *unpacker) leave() {
	if u.here != nil {
		u.here.Close()
		u.here = nil
	}
}

type folder struct {
	mode fs.FileMode
	at   time.Time
}

// foldersKept bounds the memory for folders. Those beyond it may be written to by their owner and have the time of their
// unpacking.
const foldersKept = 50_000

// finish gives folders their modes and times, the deepest first.
func (u *unpacker) finish() error {
	names := slices.Sorted(maps.Keys(u.folders))
	slices.Reverse(names)
	for _, name := range names {
		f := u.folders[name]
		if os.Geteuid() != 0 {
			f.mode |= 0o700 // or we could not remove it
		}
		if err := errors.Join(u.root.Chtimes(name, f.at, f.at), u.root.Chmod(name, f.mode)); err != nil {
			return outside(err)
		}
	}
	return nil
}

func (u *unpacker) entry(e *tar.Header, data io.Reader) error {
	if u.entries--; u.entries < 0 {
		return fault.Exhaustedf("what was uploaded is %w: it has more files than this server takes", ErrTooLarge)
	}
	name := path.Clean("/" + e.Name)[1:]
	if name == "" {
		return nil // the folder itself
	}
	if err := u.enter(path.Dir(name)); err != nil {
		return err
	}
	if err := u.sum.WriteHeader(e); err != nil {
		return err
	}
	base := path.Base(name)
	mode := e.FileInfo().Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	switch e.Typeflag {
	case tar.TypeDir:
		if err := u.here.Mkdir(base, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return outside(err)
		}
		if _, known := u.folders[name]; known || len(u.folders) < foldersKept {
			u.folders[name] = folder{mode, e.ModTime}
			return nil
		}
		return outside(u.root.Chmod(name, mode|0o700))
	case tar.TypeReg:
		if e.Size > u.bytes {
			return u.tooMuch()
		}
		u.bytes -= e.Size
		return u.file(base, mode, e.ModTime, data)
	case tar.TypeSymlink:
		if err := u.clear(base); err != nil {
			return err
		}
		return outside(u.here.Symlink(e.Linkname, base))
	case tar.TypeLink:
		if err := u.clear(base); err != nil {
			return err
		}
		return outside(u.root.Link(path.Clean("/" + e.Linkname)[1:], name))
	case tar.TypeXGlobalHeader:
		return nil
	}
	return fault.Invalidf("it is neither a file, a folder nor a link: nothing else can be built from")
}

// clear removes what an earlier entry left under a name here; a folder with something in it stays and is an error.
func (u *unpacker) clear(base string) error {
	if err := u.here.Remove(base); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return outside(err)
	}
	return nil
}

func (u *unpacker) file(base string, mode fs.FileMode, at time.Time, data io.Reader) error {
	const flags = os.O_CREATE | os.O_EXCL | os.O_WRONLY
	f, err := u.here.OpenFile(base, flags, 0o600)
	if errors.Is(err, fs.ErrExist) {
		if err := u.clear(base); err != nil {
			return err
		}
		f, err = u.here.OpenFile(base, flags, 0o600)
	}
	if err != nil {
		return outside(err)
	}
	w := &sparse{f: f}
	if _, err := io.CopyBuffer(io.MultiWriter(w, u.sum), struct{ io.Reader }{data}, u.buffer); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Truncate(w.at), f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return u.here.Chtimes(base, at, at)
}

// sparse leaves out blocks of zeroes, which cost neither space nor time then.
type sparse struct {
	f  *os.File
	at int64
}

var zeroBlock [4096]byte

func (s *sparse) Write(p []byte) (int, error) {
	const size = int64(len(zeroBlock))
	for done := 0; done < len(p); {
		// To the end of the block, then of all blocks of the same sort.
		end, isZero := done, false
		for end < len(p) {
			next := min(len(p), end+int(size-(s.at+int64(end-done))%size))
			zero := bytes.Equal(p[end:next], zeroBlock[:next-end])
			if end > done && zero != isZero {
				break
			}
			end, isZero = next, zero
		}
		if !isZero {
			if _, err := s.f.WriteAt(p[done:end], s.at); err != nil {
				return done, err
			}
		}
		s.at += int64(end - done)
		done = end
	}
	return len(p), nil
}

// contradictions are what names and links of an archive do to each other, and what no file system takes.
var contradictions = []error{fs.ErrExist, fs.ErrNotExist, syscall.ENOTDIR, syscall.EISDIR, syscall.ENOTEMPTY, syscall.ELOOP,
	syscall.ENAMETOOLONG, syscall.EINVAL, syscall.EPERM, syscall.EXDEV}

// outside makes what is wrong with an entry the fault of its sender.
func outside(err error) error {
	if err == nil {
		return nil
	}
	if strings.HasSuffix(err.Error(), "path escapes from parent") { // os.Root has no name for it
		return fault.Invalidf("it leads out of the folder")
	}
	for _, c := range contradictions {
		if errors.Is(err, c) {
			return fault.Invalidf("the archive contradicts itself: %w", err)
		}
	}
	return err
}
