// Package boot makes a guest out of a kernel and a root disk: it is what vers-agent does as the first process, in the
// initramfs. In order: file systems, modules, root disk, network, change of root; then it starts the agent proper as a
// child and becomes the image's own init, or stays as a small reaper if the image has none.
package boot

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vers/internal/agent"
)

const (
	greeting    = "vers-agent: hello\n"
	newRoot     = "/newroot"
	deviceLimit = 30 * time.Second // for the root disk and the network cards to appear
	devicePoll  = 2 * time.Millisecond
)

// Files a guest's processes may open. The soft limit is above the kernel's 1024, which servers outgrow; far higher
// ones make old programs slow that close all possible descriptors.
const (
	openFilesSoft = 65536
	openFilesHard = 1 << 20
)

// Run is the life of the first process. It returns only if the guest cannot start.
func Run() error {
	unix.Umask(0o022)
	if err := mountEarly(); err != nil {
		return err
	}
	options, err := commandLine()
	if err != nil {
		return err
	}
	if options["vers.mode"] == "probe" {
		return probe()
	}
	limit := unix.Rlimit{Cur: openFilesSoft, Max: openFilesHard}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		complain("raise the limit of open files", err)
	}
	if err := loadModules("/lib/modules/order"); err != nil {
		return err
	}
	device := options["root"]
	if device == "" {
		device = "/dev/vda"
	}
	if err := mountRoot(device); err != nil {
		return err
	}
	// Before the change of root: the network needs /proc and /sys only, and the moved mounts keep them.
	if err := mountLate(); err != nil {
		return err
	}
	listener, err := setUpNetwork()
	if err != nil {
		return err
	}
	if err := writeResolver(newRoot); err != nil {
		complain("write /etc/resolv.conf", err)
	}
	if err := switchRoot(); err != nil {
		return err
	}
	return handOver(listener)
}

// commandLine gives the kernel's options of the form name=value.
func commandLine() (map[string]string, error) {
	data, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	return parseCommandLine(string(data)), nil
}

func parseCommandLine(line string) map[string]string {
	options := map[string]string{}
	for _, word := range strings.Fields(line) {
		if name, value, ok := strings.Cut(word, "="); ok {
			options[name] = value
		}
	}
	return options
}

// probe shows that a kernel runs, and ends.
func probe() error {
	console, err := os.OpenFile("/dev/console", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := console.WriteString(greeting); err != nil {
		return err
	}
	// Until the last byte has left the serial port.
	if err := unix.IoctlSetInt(int(console.Fd()), unix.TCSBRK, 1); err != nil {
		return err
	}
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// Fail says on the console why the guest cannot start, and powers it off.
func Fail(err error) {
	complain("the guest cannot start", err)
	unix.Sync()
	_ = unix.IoctlSetInt(2, unix.TCSBRK, 1)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// complain writes to the console. There is nothing better this early.
func complain(what string, err error) {
	fmt.Fprintf(os.Stderr, "vers-agent: %s: %v\n", what, err)
}

// handOver starts the agent and becomes what the image wants as its first process. It returns only on failure.
func handOver(listener *os.File) error {
	decided, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	r := &reaper{listener: listener, decided: decided}
	if err := r.startAgent(); err != nil {
		return err
	}
	noSerialLogin()
	for _, path := range imageInits {
		if !usableInit(path) {
			continue
		}
		// The pipe closes with the exec, and that tells the agent: this is no longer the reaper.
		if _, err := tell.WriteString(path); err != nil {
			return err
		}
		err := syscall.Exec(path, []string{path}, []string{"HOME=/", "TERM=linux", "PATH=" + initPath})
		complain("start "+path+" as the first process", err)
		if _, err := tell.WriteString("\n"); err != nil {
			return err
		}
	}
	if _, err := tell.WriteString("\n"); err != nil {
		return err
	}
	if err := tell.Close(); err != nil {
		return err
	}
	// The reaper has next to nothing to collect. Collecting every two minutes all the same would take pages from
	// those that idle clones share.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(reaperMemory)
	return r.loop()
}

const reaperMemory = 16 << 20

const initPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// waitFor polls until ready says so. Devices appear by themselves within milliseconds of their driver.
func waitFor(what string, ready func() (bool, error)) error {
	for end := time.Now().Add(deviceLimit); ; time.Sleep(devicePoll) {
		ok, err := ready()
		if err != nil {
			return fmt.Errorf("look for %s: %w", what, err)
		}
		if ok {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s did not appear within %v", what, deviceLimit)
		}
	}
}

// loadModules loads the modules that a file lists in order.
func loadModules(list string) error {
	data, err := os.ReadFile(list)
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel with everything built in
	}
	if err != nil {
		return err
	}
	for _, path := range strings.Fields(string(data)) {
		if err := loadModule(path); err != nil {
			return fmt.Errorf("load kernel module %s: %w", path, err)
		}
	}
	return nil
}

func loadModule(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	flags := 0
	if !strings.HasSuffix(path, ".ko") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	err = unix.FinitModule(int(file.Fd()), "", flags)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// mountRoot waits for the disk, mounts it and grows its file system to it.
func mountRoot(device string) error {
	var st unix.Stat_t
	err := waitFor("the root disk "+device, func() (bool, error) {
		err := unix.Stat(device, &st)
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return err
	}
	// Access times would make every read dirty the disk that clones share.
	if err := unix.Mount(device, newRoot, "ext4", unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mount the root disk %s: %w", device, err)
	}
	size, err := agent.DiskSize(unix.Major(st.Rdev), unix.Minor(st.Rdev))
	if err == nil {
		err = agent.GrowExt4(newRoot, size)
	}
	if err != nil {
		complain("grow the root file system to its disk", err) // smaller than it could be, but whole
	}
	return nil
}
