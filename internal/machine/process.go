package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
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

// FindProcess identifies the process that has a pid now. A process that has ended but was not reaped does not count.
func FindProcess(pid int) (Process, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Process{}, err
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Process{}, err
	}
	// The command name is in parentheses and may hold anything: fields are counted after the last one.
	_, rest, ok := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')'):]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return Process{}, fmt.Errorf("read the start time of process %d: unexpected format", pid)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return Process{}, fmt.Errorf("process %d has ended", pid)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return Process{}, fmt.Errorf("read the start time of process %d: %w", pid, err)
	}
	return Process{PID: pid, StartTime: start, BootID: strings.TrimSpace(string(boot))}, nil
}
