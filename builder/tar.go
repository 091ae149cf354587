package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// writeTar writes a folder as a tar archive: PAX, in the order of names, owners as numbers, extended attributes as
// SCHILY.xattr records, further links to one file as hard links. Sockets are left out, as tar has no word for them.
// WorkingDir is a folder that must be in it: buildah makes the one of WORKDIR only when a step runs in it.
func writeTar(w io.Writer, root, workingDir string) error {
	t := &tarWriter{w: tar.NewWriter(w), root: root, seen: map[inode]string{}}
	if err := filepath.WalkDir(root, t.add); err != nil {
		return fmt.Errorf("archive the root file system: %w", err)
	}
	if err := t.ensure(workingDir); err != nil {
		return err
	}
	return t.w.Close()
}

// ensure adds the folders of a path that are missing, with the root's time.
func (t *tarWriter) ensure(path string) error {
	root, err := os.OpenRoot(t.root)
	if err != nil {
		return err
	}
	defer root.Close()
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	made := "."
	for _, name := range strings.FieldsFunc(filepath.Clean(path), func(r rune) bool { return r == '/' }) {
		made += "/" + name
		if _, err := root.Stat(made); !errors.Is(err, fs.ErrNotExist) {
			continue // there, or behind a link that only a machine can follow
		}
		header := &tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeDir, Name: made + "/", Mode: 0o755, ModTime: info.ModTime()}
		if err := t.w.WriteHeader(header); err != nil {
			return err
		}
	}
	return nil
}

type inode struct{ dev, ino uint64 }

type tarWriter struct {
	w    *tar.Writer
	root string
	seen map[inode]string // files with several names, by the first
}

func (t *tarWriter) add(path string, _ fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &fs.PathError{Op: "look at", Path: path, Err: err}
	}
	name := "." + strings.TrimPrefix(path, t.root)
	header := &tar.Header{
		Format: tar.FormatPAX, Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()),
	}
	if err := t.kind(header, path, &st); err != nil {
		return err
	}
	if header.Typeflag == 0 {
		return nil
	}
	if header.Typeflag != tar.TypeLink {
		if header.PAXRecords, err = attributes(path); err != nil {
			return err
		}
	}
	if err := t.w.WriteHeader(header); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if header.Typeflag != tar.TypeReg {
		return nil
	}
	return t.content(path, header.Size)
}

// kind fills in what depends on the type of the file. The type stays 0 for what is left out.
func (t *tarWriter) kind(header *tar.Header, path string, st *unix.Stat_t) (err error) {
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		key := inode{st.Dev, st.Ino}
		if first, ok := t.seen[key]; ok {
			header.Typeflag, header.Linkname = tar.TypeLink, first
			return nil
		}
		t.seen[key] = header.Name
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		header.Typeflag, header.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		header.Typeflag, header.Name = tar.TypeDir, header.Name+"/"
	case unix.S_IFLNK:
		header.Typeflag = tar.TypeSymlink
		header.Linkname, err = os.Readlink(path)
	case unix.S_IFCHR:
		header.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		header.Typeflag = tar.TypeBlock
	case unix.S_IFIFO:
		header.Typeflag = tar.TypeFifo
	}
	if header.Typeflag == tar.TypeChar || header.Typeflag == tar.TypeBlock {
		header.Devmajor, header.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	return err
}

func (t *tarWriter) content(path string, size int64) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	n, err := io.Copy(t.w, io.LimitReader(file, size))
	if err != nil {
		return err
	}
	// A process of the container may have cut it meanwhile.
	_, err = io.CopyN(t.w, zeroes{}, size-n)
	return err
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// paxName writes the name of an attribute as GNU tar does: a PAX record's own name ends at the first "=".
var paxName = strings.NewReplacer("%", "%25", "=", "%3D")

// attributes are a file's extended attributes as PAX records, but those that belong to the overlay or to the host.
func attributes(path string) (map[string]string, error) {
	names, err := grow(func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) })
	if errors.Is(err, unix.ENOTSUP) || len(names) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "list the attributes of", Path: path, Err: err}
	}
	var records map[string]string
	for name := range bytes.SplitSeq(bytes.TrimRight(names, "\x00"), []byte{0}) {
		key := string(name)
		if strings.HasPrefix(key, "trusted.overlay.") || strings.HasPrefix(key, "user.overlay.") || key == "security.selinux" {
			continue
		}
		value, err := grow(func(buf []byte) (int, error) { return unix.Lgetxattr(path, key, buf) })
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "read the attribute " + key + " of", Path: path, Err: err}
		}
		if records == nil {
			records = map[string]string{}
		}
		records["SCHILY.xattr."+paxName.Replace(key)] = string(value)
	}
	return records, nil
}

// grow calls read with a larger buffer until the answer fits.
func grow(read func([]byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		n, err := read(buf)
		if errors.Is(err, unix.ERANGE) && size < 1<<20 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}
