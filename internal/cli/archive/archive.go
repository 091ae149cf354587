// Package archive writes a folder as a tar archive while it is sent, so that neither memory nor disk holds it.
package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"vers/internal/build/inputs"
	"vers/internal/fault"
)

// Folder is what is archived: everything below Dir, hidden files and links with their targets too, but for what Skip names.
type Folder struct {
	Dir  string
	Skip func(name string, dir bool) bool // of a path below Dir with forward slashes; nil: nothing is left out
	Warn func(format string, args ...any) // about what no archive can hold; nil: nobody is told
}

// Size sums the files, for who shows progress. What cannot be looked at counts as nothing.
func (f Folder) Size() (bytes int64) {
	_ = f.walk(context.Background(), func(_ string, _ string, info fs.FileInfo) error {
		if info.Mode().IsRegular() {
			bytes += info.Size()
		}
		return nil
	})
	return bytes
}

// Write writes the archive. Owners are left out: they are those of this machine.
func (f Folder) Write(ctx context.Context, w io.Writer) error {
	archive := tar.NewWriter(w)
	err := f.walk(ctx, func(path, name string, info fs.FileInfo) error { return f.add(archive, path, name, info) })
	if err != nil {
		return err
	}
	return archive.Close()
}

// Digest is what package inputs makes of the archive, without writing it.
func (f Folder) Digest(ctx context.Context) (string, error) {
	f.Warn = nil // Write says it
	sum := inputs.New()
	err := f.walk(ctx, func(path, name string, info fs.FileInfo) error { return f.add(digester{sum, ctx}, path, name, info) })
	if err != nil {
		return "", err
	}
	return sum.String(), nil
}

// digester ends in the middle of a file when its context does.
type digester struct {
	*inputs.Sum
	ctx context.Context
}

func (d digester) ReadFrom(r io.Reader) (int64, error) { return d.Sum.ReadFrom(reader{r, d.ctx}) }

type reader struct {
	io.Reader
	ctx context.Context
}

func (r reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.Reader.Read(p)
}

// entries takes what is archived.
type entries interface {
	io.Writer
	WriteHeader(h *tar.Header) error
}

func (f Folder) walk(ctx context.Context, do func(path, name string, info fs.FileInfo) error) error {
	dir, err := filepath.EvalSymlinks(f.Dir)
	if err != nil {
		return err
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return fault.Invalidf("cannot read %s: %w", path, reason(err))
		case path == dir:
			return nil
		}
		below, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(below)
		if f.Skip != nil && f.Skip(name, d.IsDir()) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone since its folder was read
		}
		if err != nil {
			return fault.Invalidf("cannot read %s: %w", path, reason(err))
		}
		return do(path, name, info)
	})
}

func (f Folder) add(archive entries, path, name string, info fs.FileInfo) error {
	link := ""
	switch {
	case info.Mode().IsRegular(), info.IsDir():
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			return fault.Invalidf("cannot read the link %s: %w", path, reason(err))
		}
		link = target
	default:
		if f.Warn != nil {
			f.Warn("%s is left out: it is neither a file, a folder nor a link", name)
		}
		return nil
	}
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return fmt.Errorf("archive %s: %w", name, err)
	}
	header.Name, header.Format = name, tar.FormatPAX
	header.Uid, header.Gid, header.Uname, header.Gname = 0, 0, "", ""
	if info.IsDir() {
		header.Name += "/"
	}
	if !info.Mode().IsRegular() {
		return archive.WriteHeader(header)
	}
	file, err := os.Open(path)
	if err != nil {
		return fault.Invalidf("cannot read %s: %w", path, reason(err))
	}
	defer file.Close()
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	n, err := io.Copy(archive, io.LimitReader(file, header.Size))
	if err == nil && n < header.Size {
		err = fault.Invalidf("%s became shorter while it was read: try again when nothing writes to it", path)
	}
	return err
}

// reason drops the path from a file system error, because the message has it already.
func reason(err error) error {
	var file *fs.PathError
	if errors.As(err, &file) {
		return file.Err
	}
	return err
}
