package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
	"vers/internal/machine"
)

// process is an operating-system process, held by a pidfd so that its number cannot come to mean another one. It is
// reaped when it is a child of ours.
type process struct {
	id   machine.Process
	fd   *os.File // pidfd; readable when the process is gone
	done chan struct{}

	mu   sync.Mutex
	code int // exit code; -1: unknown or killed by a signal
}

// openProcess finds the process that id means. fault.NotFound if it is gone.
func openProcess(id machine.Process) (*process, error) {
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, fault.NotFoundf("process %d is gone", id.PID)
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", id.PID, err)
	}
	// Only now that the number is held does the start time prove which process it is.
	now, err := machine.FindProcess(id.PID)
	if err == nil && now != id {
		err = fault.NotFoundf("process %d is gone, its number belongs to another one now", id.PID)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return watchProcess(id, fd), nil
}

// watchProcess takes over a pidfd.
func watchProcess(id machine.Process, pidfd int) *process {
	_ = unix.SetNonblock(pidfd, true) // lets the Go runtime wait for it without a thread
	p := &process{id: id, fd: os.NewFile(uintptr(pidfd), "pidfd"), done: make(chan struct{}), code: -1}
	go p.watch()
	return p
}

func (p *process) watch() {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return // released before it began
	}
	gone := false
	err = raw.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		gone = err == nil && n == 1
		return gone
	})
	if err != nil || !gone {
		return // released
	}
	p.reap()
	close(p.done)
}

// reap collects the exit code if the process is a child of ours and nobody else has done it.
func (p *process) reap() {
	var status unix.WaitStatus
	for {
		pid, err := unix.Wait4(p.id.PID, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && pid == p.id.PID && status.Exited() {
			p.mu.Lock()
			p.code = status.ExitStatus()
			p.mu.Unlock()
		}
		return
	}
}

func (p *process) exitCode() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.code
}

// wait waits for the end of the process.
func (p *process) wait(ctx context.Context) error {
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of process %d: %w", p.id.PID, context.Cause(ctx))
	}
}

// kill sends SIGKILL. A process that is gone already is no error.
func (p *process) kill() error {
	err := p.signal()
	select {
	case <-p.done: // then it does not matter why it could not be signalled
		return nil
	default:
		return err
	}
}

func (p *process) signal() error {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return fmt.Errorf("kill process %d: %w", p.id.PID, err)
	}
	var result error
	err = raw.Control(func(fd uintptr) { result = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	if err = errors.Join(err, result); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.id.PID, err)
	}
	return nil
}

// release stops watching. The process goes on.
func (p *process) release() { p.fd.Close() }

// startLauncher starts the launcher with plan, detached. out becomes stdout and stderr, monitor the QMP listener.
func startLauncher(launcher []string, plan launchPlan, out, monitor int) (*process, error) {
	planFile, err := sealedPlan(plan)
	if err != nil {
		return nil, err
	}
	defer unix.Close(planFile)
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/null: %w", err)
	}
	defer unix.Close(null)
	pidfd := -1
	// Not os/exec: it would switch the descriptors to blocking mode and own the child's end.
	pid, err := syscall.ForkExec(launcher[0], append(launcher[:len(launcher):len(launcher)], launcherCommand), &syscall.ProcAttr{
		Dir: "/",
		// One thread and no garbage collection: the launcher lives for a few milliseconds.
		Env:   []string{"GOMAXPROCS=1", "GOGC=off"},
		Files: []uintptr{uintptr(null), uintptr(out), uintptr(out), uintptr(monitor), uintptr(planFile)},
		Sys:   plan.Confinement.attributes(&pidfd),
	})
	if err != nil {
		return nil, fmt.Errorf("start the launcher %s: %w", launcher[0], err)
	}
	id, err := machine.FindChild(pid) // it may have ended already
	if err == nil && pidfd < 0 {
		err = errors.New("this kernel lacks pidfd")
	}
	if err != nil {
		_ = syscall.Kill(pid, syscall.SIGKILL) // our child, not yet waited for: the number cannot mean another one
		_, _ = syscall.Wait4(pid, nil, 0, nil)
		if pidfd >= 0 {
			unix.Close(pidfd)
		}
		return nil, fmt.Errorf("start the launcher %s: %w", launcher[0], err)
	}
	return watchProcess(id, pidfd), nil
}

// sealedPlan gives a file descriptor from which the launcher reads plan.
func sealedPlan(plan launchPlan) (int, error) {
	data, err := json.Marshal(plan)
	if err != nil {
		return -1, fmt.Errorf("write the launch plan: %w", err)
	}
	fd, err := unix.MemfdCreate("vers-plan", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("write the launch plan: %w", err)
	}
	if _, err = unix.Pwrite(fd, data, 0); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("write the launch plan: %w", err)
	}
	return fd, nil
}
