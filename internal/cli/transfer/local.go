package transfer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"unicode/utf8"

	"vers/internal/fault"
	"vers/internal/partial"
)

// local is a folder of this machine. Nothing outside of it is read or written, whatever links are inside. Names are
// relative to it, with slashes.
type local struct {
	root *os.Root
	dir  string // for messages
}

// openLocal opens what a user wants to send. A link that the user names is followed.
func openLocal(from string) (*local, string, fs.FileInfo, error) {
	resolved, err := filepath.EvalSymlinks(from)
	if err != nil {
		return nil, "", nil, err
	}
	info, err := os.Stat(resolved)
	if err != nil {
		return nil, "", nil, err
	}
	dir, name := resolved, "."
	switch {
	case info.IsDir():
	case info.Mode().IsRegular():
		dir, name = filepath.Dir(resolved), filepath.Base(resolved)
	default:
		return nil, "", nil, fault.Invalidf("'%s' is neither a file nor a folder; '-' sends standard input", from)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, "", nil, err
	}
	return &local{root: root, dir: dir}, name, info, nil
}

// localBase is the name that a copy of a path gets in a folder; "" for paths without one of their own, whose content is
// copied into the folder itself.
func localBase(from string) string {
	if last := filepath.Base(filepath.FromSlash(from)); strings.HasSuffix(from, string(filepath.Separator)+".") || last == "." || last == ".." {
		return ""
	}
	return strings.Trim(filepath.Base(filepath.Clean(from)), string(filepath.Separator))
}

// placeLocal decides where a copy goes: into to if that is a folder or ends in a slash, else it is to. Folders on the way
// are made. The result is a name in a folder.
func placeLocal(to, base string, isDir bool) (*local, string, error) {
	info, err := os.Stat(to)
	slash := strings.HasSuffix(filepath.ToSlash(to), "/")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, "", err
	}
	there := err == nil
	switch {
	case there && !info.IsDir() && (isDir || slash):
		return nil, "", fault.Conflictf("'%s' is there and is no folder", to)
	case there && !info.IsDir():
		if to, err = filepath.EvalSymlinks(to); err != nil { // a link that the user names is written through
			return nil, "", err
		}
	case there, slash, base == "" && isDir:
		if base != "" {
			if err := checkName(base); err != nil {
				return nil, "", err
			}
			to = filepath.Join(to, base)
		} else if !isDir {
			return nil, "", fault.Invalidf("'%s' is a folder; name a file in it", to)
		}
	}
	dir, name := filepath.Dir(to), filepath.Base(to)
	if base == "" && isDir {
		dir, name = to, "."
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, "", err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, "", err
	}
	return &local{root: root, dir: dir}, name, nil
}

func (l *local) Lstat(name string) (fs.FileInfo, error) { return l.root.Lstat(name) }
func (l *local) Readlink(name string) (string, error)   { return l.root.Readlink(name) }
func (l *local) Remove(name string) error               { return l.root.Remove(name) }
func (l *local) Rename(from, to string) error           { return l.root.Rename(from, to) }
func (l *local) Symlink(target, name string) error      { return l.root.Symlink(target, name) }
func (l *local) Open(name string) (file, error) {
	return l.root.OpenFile(name, os.O_RDONLY|nonBlocking, 0)
}

// Show implements source.
func (l *local) Show(name string) string { return filepath.Join(l.dir, filepath.FromSlash(name)) }

// ReadDir implements source.
func (l *local) ReadDir(name string) ([]fs.FileInfo, error) {
	dir, err := l.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	list, err := dir.Readdir(-1)
	slices.SortFunc(list, func(a, b fs.FileInfo) int { return strings.Compare(a.Name(), b.Name()) })
	return list, err
}

// Create implements destination.
func (l *local) Create(name string) (file, error) {
	return l.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// Hold implements destination.
func (l *local) Hold(name string) (file, error) {
	return partial.Hold(func(flags int, perm os.FileMode) (*os.File, error) { return l.root.OpenFile(name, flags, perm) },
		func() (os.FileInfo, error) { return l.root.Lstat(name) })
}

// Mkdir implements destination.
func (l *local) Mkdir(name string) (bool, error) {
	err := l.root.Mkdir(name, 0o700)
	if err == nil {
		return true, nil
	}
	there, statErr := l.root.Stat(name) // a link to a folder inside will do
	if statErr != nil {
		return false, errors.Join(err, statErr)
	}
	if !there.IsDir() {
		return false, fault.Conflictf("'%s' is there and is no folder", l.Show(name))
	}
	if there.Mode().Perm()&0o700 != 0o700 && name != "." {
		return false, l.root.Chmod(name, there.Mode().Perm()|0o700)
	}
	return false, nil
}

// SetAttrs implements destination. Set-user-ID and the like are left out: the VM must not make programs of this user that
// others run.
func (l *local) SetAttrs(name string, of, _ fs.FileInfo) error {
	if err := l.root.Chmod(name, of.Mode().Perm()); err != nil {
		return fmt.Errorf("set the mode: %w", err)
	}
	if err := l.root.Chtimes(name, of.ModTime(), of.ModTime()); err != nil {
		return fmt.Errorf("set the time: %w", err)
	}
	return nil
}

// representable reports whether this machine's file systems can have a name.
func representable(name string) bool {
	switch runtime.GOOS {
	case "windows":
		return utf8.ValidString(name) && filepath.IsLocal(name) && !strings.ContainsAny(name, `<>:"\|?*`)
	case "darwin":
		return utf8.ValidString(name)
	}
	return true
}

// remoteBase is localBase for a path in the VM.
func remoteBase(from string) string {
	if last := path.Base(from); last == "." || last == ".." || last == "/" || last == "~" || strings.HasSuffix(from, "/.") {
		return ""
	}
	return path.Base(from)
}
