package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"vers/internal/build/engine"
	"vers/internal/build/engine/embedded/wire"
	"vers/internal/fault"
)

// File descriptors that the client gives (wire).
const (
	controlFD = 3
	verdictFD = 4
)

func supervisorMain() int {
	control, verdict := os.NewFile(controlFD, "control"), os.NewFile(verdictFD, "verdict")
	unix.CloseOnExec(controlFD)
	unix.CloseOnExec(verdictFD)
	// A terminal's Ctrl-C reaches the client too, which says what is to end.
	signal.Ignore(os.Interrupt)
	lines := bufio.NewReader(control)
	result := wire.Verdict{}
	line, err := lines.ReadBytes('\n')
	if err == nil {
		result, err = supervise(line, lines)
	}
	if err != nil && result.Err == nil {
		result.Err = wire.Pack(err)
	}
	if err := json.NewEncoder(verdict).Encode(result); err != nil {
		return 1
	}
	return 0
}

func supervise(line []byte, control io.Reader) (wire.Verdict, error) {
	var start wire.Start
	if err := json.Unmarshal(line, &start); err != nil || start.Version != wire.Version {
		return wire.Verdict{}, fault.Unavailablef("vers-builder %s does not belong to the program that started it: install both from one release", version)
	}
	if start.Probe {
		return wire.Verdict{Host: probe(start)}, nil
	}
	if os.Geteuid() != 0 {
		return wire.Verdict{}, fault.Unavailablef("the embedded container engine needs root; as another user, use Docker or Podman")
	}
	if err := sweep(start.Dir); err != nil || start.Sweep {
		return wire.Verdict{}, err
	}
	r, err := newRun(start)
	if err != nil {
		return wire.Verdict{}, err
	}
	defer r.close()
	return r.work(control)
}

// run is one worker and all that belongs to it. Its folder Dir/run/ID is its journal: as long as it is there, something of
// it may be left, and nobody holds its lock once the supervisor has ended.
type run struct {
	start   wire.Start
	id      string
	dir     string
	runtime string
	lock    *os.File
	group   *group
	worker  *network
	steps   *network // nil: the steps have none

	mu     sync.Mutex
	kill   func() // ends the worker; nil before it started
	reason error  // why it was killed
	killed bool
	dirty  bool // the worker did not end by itself, and could not tidy up
}

func newRun(start wire.Start) (_ *run, err error) {
	r := &run{start: start}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if r.runtime, err = findRuntime(start.Runtime); err != nil {
		return nil, err
	}
	if err := r.journal(); err != nil {
		return nil, err
	}
	if r.group, err = newGroup(start.Dir, r.id, start.Limits); err != nil {
		return nil, err
	}
	if r.worker, err = newNetwork(filepath.Join(r.dir, "net-worker"), start.Egress, start.Registries); err != nil {
		return nil, err
	}
	if start.Network != engine.NetworkNone {
		if r.steps, err = newNetwork(filepath.Join(r.dir, "net-steps"), start.Egress, nil); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// surroundings is what init and worker need to know.
type surroundings struct {
	wire.Start
	ID      string
	RunDir  string
	Program string // this program's path, as seen from outside of the build
	Runtime string // the OCI runtime's path
	Group   string // path of the steps' control group below each controller's root
}

// work runs the worker to its end, or kills it when the client goes, or when a limit is passed.
func (r *run) work(control io.Reader) (wire.Verdict, error) {
	program, err := os.Executable()
	if err != nil {
		return wire.Verdict{}, fmt.Errorf("find this program: %w", err)
	}
	config, err := json.Marshal(surroundings{r.start, r.id, r.dir, program, r.runtime, r.group.name})
	if err != nil {
		return wire.Verdict{}, err
	}
	go func() {
		_, _ = io.Copy(io.Discard, control)
		r.end(errClientGone)
	}()
	stop := make(chan struct{})
	var watchers sync.WaitGroup
	watchers.Go(func() { r.watchDisk(stop) })
	watchers.Go(func() { r.watchProcesses(stop) })
	err = r.runWorker(config, os.Stdin, os.Stdout)
	close(stop)
	watchers.Wait()
	verdict := wire.Verdict{Limit: r.group.reached()}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dirty = r.killed || err != nil
	switch {
	case r.killed && !errors.Is(r.reason, errClientGone):
		verdict.Err = wire.Pack(r.reason)
	case r.killed:
	case err != nil:
		verdict.Err = wire.Pack(fault.New(fault.Internal, "the container engine ended without an answer: %w", err))
	}
	return verdict, nil
}

var errClientGone = errors.New("the client ended the request")

// end kills the worker's PID namespace, for the first reason that is given.
func (r *run) end(reason error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.killed {
		return
	}
	r.killed, r.reason = true, reason
	if r.kill != nil {
		r.kill()
	}
}

// runWorker starts init in the worker's network namespace, and waits. The thread stays until init has ended, since the
// kernel kills init when the thread that started it ends.
func (r *run) runWorker(config []byte, stdin, stdout *os.File) (err error) {
	r.worker.space.do(func() { err = r.runInit(config, stdin, stdout) })
	return err
}

func (r *run) runInit(config []byte, stdin, stdout *os.File) error {
	cmd := exec.Command("/proc/self/exe", "init")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, os.Stderr
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer write.Close()
	cmd.ExtraFiles = []*os.File{read}
	if r.steps != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, r.steps.space.file)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	r.mu.Lock()
	if r.killed {
		r.mu.Unlock()
		return r.reason
	}
	err = cmd.Start()
	if err == nil {
		r.kill = func() { _ = cmd.Process.Kill() }
	}
	r.mu.Unlock()
	_ = read.Close()
	if err != nil {
		return fmt.Errorf("start a worker in namespaces of its own: %w", err)
	}
	_, writeErr := write.Write(config)
	_ = write.Close()
	err = cmd.Wait()
	r.mu.Lock()
	r.kill = func() {}
	r.mu.Unlock()
	return errors.Join(err, writeErr)
}

// close removes what the run had. What it cannot remove stays in the journal for the next sweep.
func (r *run) close() {
	for _, n := range []*network{r.worker, r.steps} {
		if n != nil {
			n.close()
		}
	}
	if r.dirty && r.lock != nil {
		if err := cleanStore(r.start.Dir, r.start.Store, []string{r.id}); err != nil {
			fmt.Fprintln(os.Stderr, "remove what the killed build had in the store:", err)
			_ = r.lock.Close()
			return
		}
	}
	if r.group != nil {
		r.group.remove()
	}
	if r.lock != nil {
		_ = os.RemoveAll(r.dir)
		_ = r.lock.Close()
	}
}

// findRuntime is the path of the OCI runtime.
func findRuntime(name string) (string, error) {
	if name == "" {
		name = "runc"
	}
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if err == nil || filepath.IsAbs(name) {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, name))
	}
	if err != nil {
		return "", fault.Unavailablef("the embedded container engine needs the OCI runtime %s, which is not installed: apt-get install runc", name)
	}
	return filepath.EvalSymlinks(path)
}
