package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
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
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	if id.BootID != boot {
		return nil, fault.NotFoundf("process %d belonged to an earlier boot of this host", id.PID)
	}
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, fault.NotFoundf("process %d is gone", id.PID)
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", id.PID, err)
	}
	// Only now that the number is held does the start time prove which process it is.
	start, state, err := processStat(id.PID)
	if err != nil || start != id.StartTime || state == 'Z' || state == 'X' {
		unix.Close(fd)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			return nil, err
		}
		return nil, fault.NotFoundf("process %d is gone", id.PID)
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

// identify gives what tells a running process from all others.
func identify(pid int) (machine.Process, error) {
	boot, err := bootID()
	if err != nil {
		return machine.Process{}, err
	}
	start, _, err := processStat(pid)
	if err != nil {
		return machine.Process{}, err
	}
	return machine.Process{PID: pid, StartTime: start, BootID: boot}, nil
}

func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the host's boot id: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// processStat reads start time (clock ticks since boot) and state of a process.
func processStat(pid int) (start uint64, state byte, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("read the start time of process %d: %w", pid, err)
	}
	return parseStat(string(data))
}

// parseStat: the second field, the name, may hold spaces and parentheses; the rest starts after the last ')'.
func parseStat(stat string) (start uint64, state byte, err error) {
	after := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[after+1:])
	if after < 0 || len(fields) < 20 || len(fields[0]) != 1 {
		return 0, 0, errors.New("read the start time of a process: /proc/<pid>/stat has an unknown form")
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("read the start time of a process: %w", err)
	}
	return start, fields[0][0], nil
}

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
	id, err := identify(pid)
	if err != nil || pidfd < 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL) // our child, not yet waited for: the number cannot mean another one
		_, _ = syscall.Wait4(pid, nil, 0, nil)
		if pidfd >= 0 {
			unix.Close(pidfd)
		}
		return nil, errors.Join(fmt.Errorf("start the launcher %s: this kernel lacks pidfd", launcher[0]), err)
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
