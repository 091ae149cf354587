// A first process for tests: it does with the initramfs, the kernel's modules and the image what the agent relies on,
// reports on the console, and powers off.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "only for PID 1 of a test guest")
		os.Exit(2)
	}
	console, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
	if err == nil {
		os.Stdout, os.Stderr = console, console
		if err = run(); err != nil {
			fmt.Println("error:", err)
		} else {
			fmt.Println("guest: done")
		}
		// Wait until the console has sent everything.
		_ = unix.IoctlSetInt(int(console.Fd()), unix.TCSBRK, 1)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range [][3]string{{"devtmpfs", "/dev", "devtmpfs"}, {"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"}} {
		if err := unix.Mount(m[0], m[1], m[2], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := waitFor("/dev/vda"); err != nil {
		return err
	}
	if err := unix.Mount("/dev/vda", "/newroot", "ext4", unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mount the image: %w", err)
	}
	if err := grow(); err != nil {
		return err
	}
	// The image has no device nodes of its own; the agent mounts devtmpfs over its /dev, and so does this.
	if err := unix.Mount("devtmpfs", "/newroot/dev", "devtmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount the image's /dev: %w", err)
	}
	for _, command := range []string{
		"cat /etc/hostname", "cat /etc/resolv.conf", "git --version", "python3 -c 'print(6*7)'", "id -un",
		"passwd -S root", "stat -c '%a %F' / /tmp /proc", "stat -f -c '%b blocks of %S' /",
	} {
		if err := inImage(command); err != nil {
			return err
		}
	}
	if err := unix.Unmount("/newroot/dev", 0); err != nil {
		return fmt.Errorf("unmount the image's /dev: %w", err)
	}
	return unix.Unmount("/newroot", 0)
}

// loadModules does not accept a module that is already there: the list has each once.
func loadModules() error {
	list, err := os.ReadFile("/lib/modules/order")
	if err != nil {
		return err
	}
	for _, path := range strings.Fields(string(list)) {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
			return fmt.Errorf("load %s: %w", path, err)
		}
		f.Close()
		fmt.Println("loaded:", path)
	}
	return nil
}

func waitFor(path string) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s does not appear", path)
}

// grow enlarges the mounted file system to its disk.
func grow() error {
	disk, err := os.Open("/dev/vda")
	if err != nil {
		return err
	}
	defer disk.Close()
	var size uint64
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, disk.Fd(), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); errno != 0 {
		return fmt.Errorf("size of the disk: %w", errno)
	}
	root, err := os.Open("/newroot")
	if err != nil {
		return err
	}
	defer root.Close()
	const ext4Resize = 0x40086610 // EXT4_IOC_RESIZE_FS
	blocks := size / 4096
	start := time.Now()
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, root.Fd(), ext4Resize, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return fmt.Errorf("grow to %d blocks: %w", blocks, errno)
	}
	fmt.Println("grown: ms", time.Since(start).Milliseconds())
	return nil
}

func inImage(command string) error {
	cmd := exec.Command("/bin/sh", "-c", command)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: "/newroot"}
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/usr/sbin:/bin:/sbin", "HOME=/root"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", command, err, out)
	}
	fmt.Printf("%s: %s\n", command, strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", ", "))
	return nil
}
