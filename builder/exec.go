package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containers/buildah/pkg/chrootuser"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vers/internal/build/engine/embedded/wire"
	"vers/internal/fault"
)

// Codes of commands that could not be started, as in shells and in Docker.
const (
	codeNotExecutable = 126
	codeNotFound      = 127
)

// exec runs a command in the container to its end, to its time limit, or until the client interrupts it.
func (s *session) exec(_ context.Context, e wire.Exec) (int, error) {
	process, err := s.process(e)
	if err != nil {
		return 0, err
	}
	data, err := json.Marshal(process)
	if err != nil {
		return 0, err
	}
	// Each in a folder of its own: a runtime that was killed leaves its halves.
	dir, err := os.MkdirTemp(s.bundle, "exec-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	file, pidFile := filepath.Join(dir, "process.json"), filepath.Join(dir, "pid")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return 0, err
	}
	before := s.processes()
	cmd := exec.Command(s.worker.Runtime, "exec", "--process", file, "--pid-file", pidFile, s.name)
	cmd.Stdout, cmd.Stderr = s.worker.conn.Writer(wire.Output), s.worker.conn.Writer(wire.Errors)
	// What the command leaves in the background may keep its output open.
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	s.worker.readAhead()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var limit <-chan time.Time
	if e.Timeout > 0 {
		timer := time.NewTimer(e.Timeout)
		defer timer.Stop()
		limit = timer.C
	}
	select {
	case err = <-ended:
	case <-limit:
		s.killSince(before, cmd, ended)
		return 0, fault.New(fault.Timeout, "the command '%s' did not end within %s, and was killed", strings.Join(e.Args, " "), e.Timeout)
	case <-s.worker.ahead: // nothing but Interrupt, or the end
		s.worker.ahead = nil
		s.killSince(before, cmd, ended)
		return 0, fault.New(fault.Timeout, "the command was interrupted")
	}
	return s.code(err, pidFile)
}

// code is the command's. One that could not be started has no process ID; the runtime said why.
func (s *session) code(err error, pidFile string) (int, error) {
	if errors.Is(err, exec.ErrWaitDelay) {
		return 0, nil
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	if err == nil {
		return 0, nil
	}
	if _, statErr := os.Stat(pidFile); statErr == nil {
		return exit.ExitCode(), nil
	}
	return codeNotFound, nil
}

// killSince kills everything in the container that came after a moment, until nothing new appears.
func (s *session) killSince(before map[int]string, cmd *exec.Cmd, ended <-chan error) {
	_ = cmd.Process.Kill()
	for {
		killed := 0
		for pid, started := range s.processes() {
			if before[pid] != started && unix.Kill(pid, unix.SIGKILL) == nil {
				killed++
			}
		}
		if killed == 0 {
			break
		}
		time.Sleep(5 * time.Millisecond) // until the kernel has ended them
	}
	_ = <-ended // killed
}

// processes are those of the container, with the times of their starts. Those that have ended are left out.
func (s *session) processes() map[int]string {
	found := map[int]string{}
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", s.pid))
	if err != nil {
		return found
	}
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err != nil || link != namespace {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if err != nil || len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
			continue
		}
		found[pid] = fields[19]
	}
	return found
}

// process is a command in the runtime's words.
func (s *session) process(e wire.Exec) (*specs.Process, error) {
	if len(e.Args) == 0 {
		return nil, fault.Invalidf("a command without a program")
	}
	name := e.User
	if name == "" {
		name = s.config.User
	}
	user, home, err := s.user(name)
	if err != nil {
		return nil, err
	}
	capabilities, err := s.capabilities()
	if err != nil {
		return nil, err
	}
	if e.Privileged {
		capabilities = all()
	}
	process := &specs.Process{
		Args: e.Args, User: user, Env: s.environment(e.Env, home), Cwd: e.Dir, Capabilities: sets(capabilities), Rlimits: ownLimits(),
	}
	if user.UID != 0 && !e.Privileged {
		process.Capabilities = &specs.LinuxCapabilities{Bounding: capabilities}
	}
	if process.Cwd == "" {
		process.Cwd = s.config.WorkingDir
	}
	if process.Cwd == "" {
		process.Cwd = "/"
	}
	return process, nil
}

// user looks a name or number up in the container's own files.
func (s *session) user(name string) (specs.User, string, error) {
	if name == "" {
		name = "0"
	}
	uid, gid, home, err := chrootuser.GetUser(s.root, name)
	if err != nil {
		return specs.User{}, "", fault.Invalidf("user %q: %w", name, err)
	}
	user := specs.User{UID: uid, GID: gid}
	if !strings.Contains(name, ":") {
		user.AdditionalGids, _ = chrootuser.GetAdditionalGroupsForUser(s.root, uint64(uid)) // none where there is no such file
	}
	if home == "" {
		home = "/"
	}
	return user, home, nil
}
