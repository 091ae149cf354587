package source

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/moby/patternmatcher"

	"vers/internal/fault"
)

// Archive writes a folder as the archive that [Read] takes, without what its ignore file leaves out and without the folder
// .vers at its top. The Dockerfile (a path in the folder, with slashes) and the ignore file are always in it. Memory does not
// grow with the files. Sockets, pipes and devices are left out; skipped is called with their names.
func Archive(ctx context.Context, dir, dockerfile string, w io.Writer, skipped func(name string)) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	a := archiver{ctx: ctx, root: root, out: tar.NewWriter(w), skipped: skipped, needed: map[string]bool{dockerfile: true}}
	for _, name := range []string{OwnIgnoreFile(dockerfile), IgnoreFile} {
		data, err := root.ReadFile(filepath.FromSlash(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if a.ignore, err = ParseIgnore(data); err != nil {
			return err
		}
		a.needed[name] = true
		break
	}
	if err := a.folder(".", patternmatcher.MatchInfo{}); err != nil {
		return err
	}
	for name, missing := range a.needed {
		if missing {
			if err := a.required(name); err != nil {
				return err
			}
		}
	}
	return a.out.Close()
}

type archiver struct {
	ctx     context.Context
	root    *os.Root
	out     *tar.Writer
	ignore  Matcher
	needed  map[string]bool // files that are always in it; false: they are
	skipped func(string)
}

// folder writes what is in a folder.
func (a *archiver) folder(dir string, above patternmatcher.MatchInfo) error {
	list, err := fs.ReadDir(a.root.FS(), dir)
	if err != nil {
		return err
	}
	for _, entry := range list {
		if err := a.ctx.Err(); err != nil {
			return context.Cause(a.ctx)
		}
		name := path.Join(dir, entry.Name())
		if name == ".vers" {
			continue
		}
		ignored, info, err := a.ignore.match(name, above)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if ignored && !a.ignore.excepts() {
				continue
			}
			if !ignored {
				if err := a.write(name); err != nil {
					return err
				}
			}
			if err := a.folder(name, info); err != nil {
				return err
			}
			continue
		}
		if ignored {
			continue
		}
		if err := a.write(name); err != nil {
			return err
		}
	}
	return nil
}

// required writes the Dockerfile or an ignore file that is left out of the context itself. If it is not there, whoever
// reads the archive says so.
func (a *archiver) required(name string) error {
	if _, err := a.root.Stat(filepath.FromSlash(name)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return a.write(name)
}

func (a *archiver) write(name string) error {
	local := filepath.FromSlash(name)
	info, err := a.root.Lstat(local)
	if err != nil {
		return err
	}
	if _, ok := a.needed[name]; ok {
		a.needed[name] = false
		if info.Mode()&fs.ModeSymlink != 0 { // what it leads to may be left out
			if info, err = a.root.Stat(local); err != nil {
				return err
			}
		}
	}
	link := ""
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		if link, err = a.root.Readlink(local); err != nil {
			return err
		}
	case !info.Mode().IsRegular() && !info.IsDir():
		a.skipped(name)
		return nil
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name, h.Uid, h.Gid, h.Uname, h.Gname, h.Format = name, 0, 0, "", "", tar.FormatPAX
	if info.IsDir() {
		h.Name += "/"
	}
	if !info.Mode().IsRegular() {
		return a.out.WriteHeader(h)
	}
	f, err := a.root.Open(local)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := a.out.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(a.out, io.LimitReader(f, h.Size))
	if err == nil && n < h.Size {
		err = fault.Conflictf("%s became shorter while it was read; start again when nothing writes to it", name)
	}
	if err != nil {
		return fmt.Errorf("pack %s: %w", name, err)
	}
	return nil
}
