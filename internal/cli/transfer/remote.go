package transfer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/pkg/sftp"

	"vers/internal/fault"
	"vers/internal/partial"
)

// remote is the VM's file system. Names are paths there.
type remote struct{ *Copier }

// remotePath is a path as SFTP has it: relative ones begin at root's home, as does "~".
func remotePath(typed string) string {
	if typed == "~" {
		return "."
	}
	if rest, ok := strings.CutPrefix(typed, "~/"); ok {
		typed = rest
	}
	return path.Clean(typed) // "" is "."
}

// maxLinks is how many links are followed for one path.
const maxLinks = 40

// placeRemote is placeLocal for the VM.
func placeRemote(files *sftp.Client, typed, base string, isDir bool) (string, error) {
	to := remotePath(typed)
	slash := strings.HasSuffix(typed, "/") || typed == "" || typed == "~"
	info, err := files.Stat(to)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("'%s' in the VM: %w", typed, plain(err))
	}
	there := err == nil
	switch {
	case there && !info.IsDir() && (isDir || slash):
		return "", fault.Conflictf("'%s' is there in the VM and is no folder", typed)
	case there && !info.IsDir():
		return followLinks(files, to)
	case (there || slash) && base == "" && !isDir:
		return "", fault.Invalidf("'%s' is a folder in the VM; name a file in it", typed)
	case there, slash:
		to = path.Join(to, base)
	}
	if err := files.MkdirAll(path.Dir(to)); err != nil {
		return "", fmt.Errorf("make the folder '%s' in the VM: %w", path.Dir(to), plain(err))
	}
	return to, nil
}

// followLinks gives the file that a path leads to: a link that the user names is written through.
func followLinks(files *sftp.Client, name string) (string, error) {
	for range maxLinks {
		info, err := files.Lstat(name)
		if err != nil || info.Mode()&fs.ModeSymlink == 0 {
			return name, plain(err)
		}
		target, err := files.ReadLink(name)
		if err != nil {
			return "", plain(err)
		}
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(name), target)
		}
		name = target
	}
	return "", fault.Invalidf("'%s' in the VM leads through too many links", name)
}

// Lstat implements source and destination.
func (r remote) Lstat(name string) (fs.FileInfo, error) { return r.files.Lstat(name) }

// Readlink implements source.
func (r remote) Readlink(name string) (string, error) { return r.files.ReadLink(name) }

// Open implements source.
func (r remote) Open(name string) (file, error) { return r.files.Open(name) }

// Remove implements destination.
func (r remote) Remove(name string) error { return r.files.Remove(name) }

// Rename implements destination.
func (r remote) Rename(from, to string) error { return r.files.PosixRename(from, to) }

// Symlink implements destination.
func (r remote) Symlink(target, name string) error { return r.files.Symlink(target, name) }

// Show implements source and destination.
func (r remote) Show(name string) string { return ":" + name }

// ReadDir implements source.
func (r remote) ReadDir(name string) ([]fs.FileInfo, error) {
	list, err := r.files.ReadDir(name)
	slices.SortStableFunc(list, func(a, b fs.FileInfo) int { return strings.Compare(a.Name(), b.Name()) })
	return list, err
}

// Create implements destination.
func (r remote) Create(name string) (file, error) {
	f, err := r.files.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(0o600); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// held is a file that the VM's agent holds against other copies.
type held struct {
	*sftp.File
	release func()
}

// Close ends the holding too.
func (h held) Close() error {
	err := h.File.Close()
	h.release()
	return err
}

// Hold implements destination.
func (r remote) Hold(name string) (file, error) {
	next, release, err := r.ask(partial.Request{Op: partial.OpHold, Path: name})
	if err != nil {
		return nil, err
	}
	_, err = next()
	var f *sftp.File
	if err == nil {
		f, err = r.files.OpenFile(name, os.O_RDWR)
	}
	if err != nil {
		release()
		return nil, err
	}
	return held{f, release}, nil
}

// ask asks the VM's agent something about a file. It fails with agents that are too old for that.
func (c *Copier) ask(req partial.Request) (next func() (partial.Answer, error), end func(), err error) {
	session, err := c.SSH.NewSession()
	if err != nil {
		return nil, nil, err
	}
	in, inErr := session.StdinPipe()
	out, outErr := session.StdoutPipe()
	if err = errors.Join(inErr, outErr); err == nil {
		err = session.RequestSubsystem(partial.Subsystem)
	}
	if err == nil {
		next, err = partial.Ask(struct {
			io.Reader
			io.Writer
		}{out, in}, req)
	}
	if err != nil {
		session.Close()
		return nil, nil, err
	}
	return next, func() { session.Close() }, nil
}

// Mkdir implements destination.
func (r remote) Mkdir(name string) (bool, error) {
	err := r.files.Mkdir(name)
	if err == nil {
		return true, r.files.Chmod(name, 0o700) // until all is in it
	}
	there, statErr := r.files.Stat(name)
	if statErr != nil {
		return false, err
	}
	if !there.IsDir() {
		return false, fault.Conflictf("'%s' is there and is no folder", r.Show(name))
	}
	return false, nil
}

// SetAttrs implements destination. What replaces another file belongs to whom that belonged to.
func (r remote) SetAttrs(name string, of, replaced fs.FileInfo) error {
	if err := r.setAttrs(name, of.Mode(), replaced); err != nil {
		return err
	}
	// SFTP has times in seconds from 1970 to 2106.
	if seconds := of.ModTime().Unix(); seconds < 0 || seconds > math.MaxUint32 {
		return nil
	}
	return r.files.Chtimes(name, of.ModTime(), of.ModTime())
}

func (r remote) setAttrs(name string, mode fs.FileMode, replaced fs.FileInfo) error {
	if replaced != nil {
		if owner, ok := replaced.Sys().(*sftp.FileStat); ok && (owner.UID != 0 || owner.GID != 0) {
			if err := r.files.Chown(name, int(owner.UID), int(owner.GID)); err != nil {
				return err
			}
		}
	}
	return r.files.Chmod(name, mode)
}
