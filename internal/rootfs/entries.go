package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
)

const maxMajor, maxMinor = 1<<12 - 1, 1<<20 - 1 // of device numbers, in the kernel

// create runs a function that makes something, again when what is in its way has been removed.
func (t *tree) create(dir int, base string, f func() error) error {
	err := f()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := t.remove(dir, base); err != nil {
		return err
	}
	return f()
}

// made records what was made at a place, and gives it its settings.
func (t *tree) made(dir int, base string, r *record) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	t.records[st.Ino] = r
	if t.staged {
		return nil
	}
	return t.apply(dir, base, r)
}

func (t *tree) addFile(ctx context.Context, s *stream, hdr *tar.Header, dir int, base string) error {
	r, err := newRecord(hdr, kindFile, t.warnings)
	if err != nil {
		return err
	}
	fd := -1
	err = t.create(dir, base, func() (err error) {
		fd, err = unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	if err := errors.Join(t.write(ctx, s, hdr, fd, r), unix.Close(fd)); err != nil {
		return err
	}
	return t.made(dir, base, r)
}

// write copies a file's data. Blocks of zeroes become holes, in files that the archive has as sparse and in others.
func (t *tree) write(ctx context.Context, s *stream, hdr *tar.Header, fd int, r *record) error {
	t.data.Reset()
	end, hashed := int64(0), false
	err := copyData(ctx, s, hdr, t.budget, t.buffer, func(at int64, data []byte) error {
		if at > end {
			t.hole(end, at, &hashed)
		}
		end = at + int64(len(data))
		feed(t.data, data)
		for len(data) > 0 {
			n, err := unix.Pwrite(fd, data, at)
			if err != nil {
				return err
			}
			data, at = data[n:], at+int64(n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if end < hdr.Size {
		t.hole(end, hdr.Size, &hashed)
		if err := unix.Ftruncate(fd, hdr.Size); err != nil {
			if errors.Is(err, unix.EFBIG) {
				return fault.Invalidf("entry %q of the archive is %d bytes long, more than the file system can hold in one file", hdr.Name, hdr.Size)
			}
			return err
		}
	}
	if hashed {
		feed(t.data, t.holes.Sum(nil))
	}
	r.size = hdr.Size
	t.data.Sum(r.sum[:0])
	return nil
}

// hole adds one to the digest of a file's holes.
func (t *tree) hole(from, to int64, begun *bool) {
	if !*begun {
		t.holes.Reset()
		*begun = true
	}
	feed(t.holes, number(nil, uint64(from), uint64(to)))
}

func (t *tree) addFolder(hdr *tar.Header, dir int, base string) error {
	r, err := newRecord(hdr, kindFolder, t.warnings)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	for range 2 {
		if err := unix.Mkdirat(dir, base, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			break
		}
		if err := t.remove(dir, base); err != nil { // a file or a link of that name
			return err
		}
	}
	t.records[st.Ino] = r // the settings follow at the end: a default ACL would be inherited, times would change
	return nil
}

// addLink makes a further name of a file.
func (t *tree) addLink(hdr *tar.Header, dir int, base string) error {
	target := cleanName(hdr.Linkname)
	above, last := path.Split(target)
	from, err := t.openFolder(strings.TrimSuffix(above, "/"))
	if err == nil {
		defer unix.Close(from)
		var old, present unix.Stat_t
		if err = unix.Fstatat(from, last, &old, unix.AT_SYMLINK_NOFOLLOW); err == nil {
			if unix.Fstatat(dir, base, &present, unix.AT_SYMLINK_NOFOLLOW) == nil && present.Ino == old.Ino {
				return nil // it is that file already
			}
		}
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || target == "" {
		return fault.Invalidf("entry %s of the archive is a hard link to %s, which the archive does not have before it",
			shortName(hdr.Name), shortName(hdr.Linkname))
	}
	if err != nil {
		return err
	}
	err = t.create(dir, base, func() error { return unix.Linkat(from, last, dir, base, 0) })
	switch {
	case errors.Is(err, unix.EPERM):
		return fault.Invalidf("entry %s of the archive is a hard link to %s, which is a directory", shortName(hdr.Name), shortName(hdr.Linkname))
	case errors.Is(err, unix.ENOENT): // it went with what this entry replaces
		return fault.Invalidf("entry %s of the archive is a hard link to %s, which it replaces", shortName(hdr.Name), shortName(hdr.Linkname))
	case errors.Is(err, unix.EMLINK):
		return fault.Invalidf("entry %s of the archive is a hard link to %s, which has as many names as the file system allows: %w",
			shortName(hdr.Name), shortName(hdr.Linkname), err)
	}
	return err
}

func (t *tree) addSymlink(hdr *tar.Header, dir int, base string) error {
	r, err := newRecord(hdr, kindSymlink, t.warnings)
	if err != nil {
		return err
	}
	if hdr.Linkname == "" {
		return fault.Invalidf("entry %s of the archive is a symbolic link to nothing", shortName(hdr.Name))
	}
	r.target, r.mode = hdr.Linkname, 0o777
	err = t.create(dir, base, func() error { return unix.Symlinkat(hdr.Linkname, dir, base) })
	if err != nil {
		return err
	}
	return t.made(dir, base, r)
}

// addNode makes a device or a fifo.
func (t *tree) addNode(hdr *tar.Header, dir int, base string) error {
	kind := map[byte]byte{tar.TypeChar: kindChar, tar.TypeBlock: kindBlock, tar.TypeFifo: kindFifo}[hdr.Typeflag]
	r, err := newRecord(hdr, kind, t.warnings)
	if err != nil {
		return err
	}
	mode := map[byte]uint32{kindChar: unix.S_IFCHR, kindBlock: unix.S_IFBLK, kindFifo: unix.S_IFIFO}[kind]
	if kind != kindFifo {
		if hdr.Devmajor < 0 || hdr.Devmajor > maxMajor || hdr.Devminor < 0 || hdr.Devminor > maxMinor {
			return fault.Invalidf("entry %s of the archive is a device with the number %d:%d, which does not exist", shortName(hdr.Name), hdr.Devmajor, hdr.Devminor)
		}
		r.major, r.minor = uint32(hdr.Devmajor), uint32(hdr.Devminor)
		if t.staged {
			mode = unix.S_IFREG
		}
	}
	err = t.create(dir, base, func() error {
		return unix.Mknodat(dir, base, mode|0o600, int(unix.Mkdev(r.major, r.minor)))
	})
	if err != nil {
		return err
	}
	return t.made(dir, base, r)
}
