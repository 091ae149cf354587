package agent

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"vers/internal/guest"
)

// Exit codes of commands that never ran, as shells use them.
const (
	exitTimeout    = 124
	exitCannotRun  = 126
	exitNotFound   = 127
	defaultTerm    = "xterm-256color"
	notFoundFormat = "vers: %s: command not found\n"
)

// refusal is why a command never ran, as its standard error and exit code tell it.
type refusal struct {
	code int
	line string
}

func refuse(code int, format string, args ...any) *refusal {
	return &refusal{code: code, line: fmt.Sprintf(format, args...)}
}

// prepare turns a request into something to start.
func (s *Server) prepare(req guest.ExecRequest) (launch, *refusal) {
	image := s.identity.process()
	user := cmp.Or(req.User, image.User)
	acc, supplementary, err := lookupUser(s.config.Root, user)
	if err != nil {
		return launch{}, refuse(exitCannotRun, "vers: %s\n", err)
	}
	env := s.login(acc)
	if req.TTY != nil {
		env["TERM"] = defaultTerm
	}
	env.add(req.Env)
	l := launch{
		argv: req.Command, dir: req.WorkingDir, tty: req.TTY,
		stdin: req.Stdin == guest.StdinBytes || req.Stdin == guest.StdinStream,
	}
	if user != "" && (acc.uid != 0 || acc.gid != 0) {
		l.cred = &syscall.Credential{Uid: acc.uid, Gid: acc.gid, Groups: supplementary}
	}
	if l.dir == "" && image.WorkingDir != "" {
		l.dir = path.Join("/", image.WorkingDir)
		if !isDir(l.dir) {
			l.dir = ""
		}
	}
	if l.dir == "" {
		l.dir = acc.home
		if !isDir(l.dir) {
			l.dir = "/"
		}
	}
	if !filepath.IsAbs(l.dir) {
		l.dir = filepath.Join(acc.home, l.dir)
	}
	if !isDir(l.dir) {
		return launch{}, refuse(exitCannotRun, "vers: working directory %s does not exist in the VM or is no directory\n", l.dir)
	}
	env["PWD"] = l.dir
	l.env = env.list()
	var bad *refusal
	l.path, bad = findProgram(req.Command[0], env["PATH"], l.dir)
	return l, bad
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// findProgram looks a program up as a shell does.
func findProgram(name, path, dir string) (string, *refusal) {
	if name == "" {
		return "", refuse(exitNotFound, notFoundFormat, "''")
	}
	if strings.Contains(name, "/") {
		full := name
		if !filepath.IsAbs(full) {
			full = filepath.Join(dir, full)
		}
		info, err := os.Stat(full)
		switch {
		case err != nil:
			return "", refuse(exitNotFound, "vers: %s: no such file\n", name)
		case info.IsDir():
			return "", refuse(exitCannotRun, "vers: %s: is a directory\n", name)
		case info.Mode()&0o111 == 0:
			return "", refuse(exitCannotRun, "vers: %s: not executable (mode %04o)\n", name, info.Mode().Perm())
		}
		return full, nil
	}
	found := ""
	for _, entry := range filepath.SplitList(path) {
		if !filepath.IsAbs(entry) {
			entry = filepath.Join(dir, entry)
		}
		full := filepath.Join(entry, name)
		info, err := os.Stat(full)
		if err != nil || info.IsDir() {
			continue
		}
		if info.Mode()&0o111 != 0 {
			return full, nil
		}
		found = full
	}
	if found != "" {
		return "", refuse(exitCannotRun, "vers: %s: not executable\n", found)
	}
	return "", refuse(exitNotFound, notFoundFormat, name)
}

// refusalOf explains an error of start.
func refusalOf(l launch, err error) *refusal {
	if errors.Is(err, syscall.ENOENT) {
		return refuse(exitNotFound, "vers: %s: its interpreter or loader is missing in the VM\n", l.argv[0])
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return refuse(exitCannotRun, "vers: %s: %s\n", l.argv[0], errno)
	}
	return refuse(exitCannotRun, "vers: %s: %s\n", l.argv[0], err)
}
