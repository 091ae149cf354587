package agent

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"vers/internal/fault"
)

const maxLinks = 40

// resolve follows the symbolic links in a path of the guest, all of them or all but the last part's. Links lead from the
// guest's root, also where that is not the root of this process. What does not exist is taken as it stands. passed, if not
// nil, is told of every link on the way.
func (s *Server) resolve(name string, last bool, passed func(link, target string)) (string, error) {
	rest := strings.Split(name, "/")
	at := "/"
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		if part == "" || part == "." {
			continue
		}
		next := path.Join(at, part) // .. goes up, at most to the root
		if part == ".." || len(rest) == 0 && !last {
			at = next
			continue
		}
		target, err := os.Readlink(s.host(next))
		if err != nil { // no link, or not there
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", fault.Invalidf("%s in the VM leads through more than %d symbolic links", name, maxLinks)
		}
		if passed != nil {
			passed(next, target)
		}
		if path.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, nil
}

// host is where a path of the guest is for this process.
func (s *Server) host(name string) string { return filepath.Join(s.config.Root, name) }

// makeDirs makes a folder and those above it, with an owner. name is resolved.
func (s *Server) makeDirs(name string, uid, gid int) error {
	info, err := os.Stat(s.host(name))
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil || errors.Is(err, syscall.ENOTDIR):
		return fault.Invalidf("%s in the VM is a file, not a directory", name)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := s.makeDirs(path.Dir(name), uid, gid); err != nil {
		return err
	}
	if err := os.Mkdir(s.host(name), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Chmod(s.host(name), 0o755); err != nil { // whatever the umask
		return err
	}
	return chown(s.host(name), uid, gid)
}
