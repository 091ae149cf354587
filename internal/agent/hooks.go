package agent

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"vers/internal/guest"
)

// hookLimit is how long one clone hook may run.
const hookLimit = 5 * time.Minute

// afterRenew does what must not hold up a confirmation.
func (s *Server) afterRenew(id guest.Identity, generation int64, rsaKey bool) {
	s.runHooks(id, generation)
	if rsaKey {
		if err := s.makeRSAKey(id.Hostname, generation); err != nil {
			s.log.Error("cannot make an RSA host key for the image's sshd", "error", err)
		}
	}
}

// runHooks runs the executables in hookDir one after the other, in the order of their names. Their output goes to
// hookLog. A hook that fails does not stop the others.
func (s *Server) runHooks(id guest.Identity, generation int64) {
	entries, err := os.ReadDir(s.path(hookDir)) // sorted
	if err != nil || len(entries) == 0 {
		return
	}
	log, err := os.OpenFile(s.path(hookLog), os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o644)
	if err != nil {
		s.log.Error("cannot open the log of clone hooks", "error", err)
		return
	}
	defer func() { _ = log.Close() }()
	acc, err := lookupAccount(s.config.Root, "")
	if err != nil {
		return
	}
	env := s.login(acc)
	env.add(map[string]string{
		"VERS_VM_ID": id.VMID, "VERS_REASON": id.Reason, "VERS_GENERATION": fmt.Sprint(generation),
	})
	for _, entry := range entries {
		path := filepath.Join(s.path(hookDir), entry.Name())
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			continue
		}
		s.runHook(launch{argv: []string{path}, path: path, env: env.list(), dir: "/"}, log)
	}
}

func (s *Server) runHook(l launch, log io.Writer) {
	p, err := start(l)
	if err != nil {
		_, _ = fmt.Fprintf(log, "%s: %v\n", l.path, err)
		return
	}
	s.exposeToOOM(p)
	timer := time.AfterFunc(hookLimit, func() { _, _ = p.signal(syscall.SIGKILL) })
	defer timer.Stop()
	code := p.follow(func(_ string, data []byte) { _, _ = log.Write(data) })
	_, _ = fmt.Fprintf(log, "%s: exit code %d\n", l.path, code)
}
