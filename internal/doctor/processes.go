package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// otherUser is a user that a test process runs as when we are root: VMs run as users of their own, too.
const otherUser = 65534

// namespaces starts a process in new ones.
func namespaces(ctx context.Context) Check {
	c := Check{Name: "namespaces", Level: Recommended}
	cmd := exec.CommandContext(ctx, "/bin/true")
	flags := uintptr(syscall.CLONE_NEWNS | syscall.CLONE_NEWNET)
	if os.Geteuid() != 0 {
		flags |= syscall.CLONE_NEWUSER
		c.Fix = "sysctl -w kernel.unprivileged_userns_clone=1, or run versd as root"
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if err := cmd.Run(); err != nil {
		c.Detail = fmt.Sprintf("mount and network namespaces cannot be made (%v): QEMU sees the host's network and files", err)
		return c
	}
	c.OK, c.Detail = true, "each QEMU gets mount and network namespaces of its own"
	return c
}

// guestMemory tries on a process of another user what a commit does with QEMU: find and read its pages.
func guestMemory(ctx context.Context) []Check {
	pages := Check{Name: "guest pages", Level: Required, Fix: "run versd as root, or sysctl -w kernel.yama.ptrace_scope=0"}
	scan := pagemapScan()
	child, err := startChild(ctx)
	if err != nil {
		pages.Detail = "not known, a test process cannot be started: " + err.Error()
		return []Check{pages, scan}
	}
	defer child.end()
	if err := child.read(); err != nil {
		pages.Detail = fmt.Sprintf("memory of other processes cannot be read (%v): no branches, no commits", err)
		if scope, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); err == nil {
			pages.Detail += "; kernel.yama.ptrace_scope is " + strings.TrimSpace(string(scope))
		}
		return []Check{pages, scan}
	}
	pages.OK, pages.Detail = true, "pagemap and process_vm_readv work on processes of other users"
	if os.Geteuid() != 0 {
		pages.Detail = "pagemap and process_vm_readv work on our own processes"
	}
	return []Check{pages, scan}
}

// child is a process that waits for the end of its input.
type child struct {
	cmd   *exec.Cmd
	input interface{ Close() error }
}

func startChild(ctx context.Context) (*child, error) {
	cmd := exec.CommandContext(ctx, "/bin/cat")
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: otherUser, Gid: otherUser}}
	}
	input, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &child{cmd: cmd, input: input}, nil
}

func (c *child) end() {
	_ = c.input.Close() // either of these ends it
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// read looks up the first page of the child's stack in its pagemap, and copies it.
func (c *child) read() error {
	pid := c.cmd.Process.Pid
	address, err := firstMapping(pid)
	if err != nil {
		return err
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return err
	}
	defer f.Close()
	entry := make([]byte, 8)
	if _, err := f.ReadAt(entry, int64(address)/int64(os.Getpagesize())*8); err != nil {
		return fmt.Errorf("read pagemap: %w", err)
	}
	page := make([]byte, 64)
	local := []unix.Iovec{{Base: &page[0]}}
	local[0].SetLen(len(page))
	remote := []unix.RemoteIovec{{Base: uintptr(address), Len: len(page)}}
	if _, err := unix.ProcessVMReadv(pid, local, remote, 0); err != nil {
		return fmt.Errorf("process_vm_readv: %w", err)
	}
	return nil
}

// firstMapping is the address of the first readable mapping of a process: its program.
func firstMapping(pid int) (uint64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || !strings.HasPrefix(fields[1], "r") {
			continue
		}
		start, _, _ := strings.Cut(fields[0], "-")
		return strconv.ParseUint(start, 16, 64)
	}
	return 0, errors.Join(lines.Err(), fmt.Errorf("process %d has no readable memory", pid))
}

// pagemapScan asks the kernel for its fast way to find dirty pages. The argument asks for an empty range, so only a
// kernel without the call refuses with ENOTTY.
func pagemapScan() Check {
	const (
		pagemapScanCall = 0xc0606610 // _IOWR('f', 16, struct pm_scan_arg), include/uapi/linux/fs.h
		argumentSize    = 96
	)
	c := Check{Name: "PAGEMAP_SCAN", Level: Info}
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		c.Detail = "not known: " + err.Error()
		return c
	}
	defer f.Close()
	argument := [argumentSize / 8]uint64{argumentSize}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), pagemapScanCall, uintptr(unsafe.Pointer(&argument))); errno == unix.ENOTTY {
		c.Detail = "the kernel is older than 6.7: finding dirty pages of large VMs takes a little longer"
		return c
	}
	c.OK, c.Detail = true, "dirty pages are found quickly"
	return c
}
