package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
)

// Kill ends the process if it still is the one that was recorded, and waits until it is gone. It reports whether there
// was one.
func (p Process) Kill(ctx context.Context) (bool, error) {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	if !p.Alive() { // after the open: the pid cannot be given to another process unnoticed
		return false, nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return false, fmt.Errorf("end process %d: %w", p.PID, err)
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200)
		if n > 0 {
			return true, nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return true, err
		}
		if ctx.Err() != nil {
			return true, fmt.Errorf("process %d does not end: %w", p.PID, ctx.Err())
		}
	}
}

// Alive reports whether the process runs: the same pid, started at the same time in the same boot of the host.
func (p Process) Alive() bool {
	now, err := FindProcess(p.PID)
	return err == nil && now == p
}

// FindProcess identifies the process that has a pid now. fault.NotFound if there is none; one that has ended but was not
// reaped does not count.
func FindProcess(pid int) (Process, error) {
	p, state, err := readProcess(pid)
	if err == nil && (state == 'Z' || state == 'X') {
		return Process{}, fault.NotFoundf("process %d has ended", pid)
	}
	return p, err
}

// FindChild identifies a child of this process that was not waited for. It is there until then, also when it has ended.
func FindChild(pid int) (Process, error) {
	p, _, err := readProcess(pid)
	return p, err
}

func readProcess(pid int) (p Process, state byte, err error) {
	boot, err := HostBootID()
	if err != nil {
		return p, 0, err
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return p, 0, fault.NotFoundf("process %d is gone", pid)
	}
	var start uint64
	if err == nil {
		start, state, err = parseStat(string(stat))
	}
	if err != nil {
		return p, 0, fmt.Errorf("read the start time of process %d: %w", pid, err)
	}
	return Process{PID: pid, StartTime: start, BootID: boot}, state, nil
}

// clockTick is the unit of the times in /proc/<pid>/stat: 100 a second on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// CPUTime gives the CPU time that the process has used, in user and kernel mode, all threads. fault.NotFound if it is gone.
func (p Process) CPUTime() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, fault.NotFoundf("process %d is gone", p.PID)
	}
	if err != nil {
		return 0, err
	}
	after := strings.LastIndexByte(string(stat), ')')
	fields := strings.Fields(string(stat[after+1:]))
	if start, _, err := parseStat(string(stat)); err != nil || start != p.StartTime {
		return 0, errors.Join(err, fault.NotFoundf("process %d is gone", p.PID))
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read the CPU time of process %d: %w", p.PID, err)
	}
	kernel, err := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+kernel) * clockTick, err
}

// parseStat reads start time (clock ticks since boot) and state from /proc/<pid>/stat. The second field, the name, may
// hold spaces and parentheses; the rest starts after the last ')'.
func parseStat(stat string) (start uint64, state byte, err error) {
	after := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[after+1:])
	if after < 0 || len(fields) < 20 || len(fields[0]) != 1 {
		return 0, 0, errors.New("/proc/<pid>/stat has an unknown form")
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return start, fields[0][0], err
}

// HostBootID tells one boot of the host from all others.
func HostBootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the host's boot id: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}
