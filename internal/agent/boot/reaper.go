package boot

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vers/internal/agent"
)

// imageInits are the places where an image has its own init, in the order in which they are tried.
var imageInits = [...]string{"/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/etc/init", "/bin/init"}

// usableInit reports whether path is an init that can run this image. Base images of containers often have busybox as
// /sbin/init, without the scripts it would start.
func usableInit(path string) bool {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	info, err := os.Stat(target)
	if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 || info.Size() == 0 {
		return false
	}
	if strings.HasPrefix(filepath.Base(target), "busybox") {
		return exists("/sbin/openrc") || exists("/etc/init.d/rcS")
	}
	return true
}

// noSerialLogin keeps systemd from offering a login on the console: nobody could type there, and without udev its start
// would take 90 s of waiting for the device.
func noSerialLogin() {
	const dir = "/run/systemd/system"
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = os.Symlink(os.DevNull, dir+"/serial-getty@ttyS0.service")
	}
	if err != nil {
		complain("mask the login on the console", err)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// reaper is the first process of an image without an init. It starts children without os/exec: that would wait for
// them too, and take their status away from the loop.
type reaper struct {
	listener *os.File
	decided  *os.File // read end of the pipe that tells the agent what the first process is
	pid      int      // of the agent
	started  time.Time
}

// agentName begins with '@': systemd does not kill such processes at shutdown, when the agent still has work to do.
const agentName = "@vers-agent"

const agentCgroup = "/sys/fs/cgroup/vers-agent"

// startAgent starts the agent proper, outside of every cgroup that an init may manage, and exempt from the OOM killer.
func (r *reaper) startAgent() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	// The console may be taken away by an image's getty; the kernel's log stays.
	log, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		log = null
	} else {
		defer func() { _ = log.Close() }()
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{agentName, "serve"}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=" + initPath, "HOME=/root"},
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd(), r.listener.Fd(), r.decided.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	r.pid, r.started = pid, time.Now()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("-1000"), 0); err != nil {
		complain("exempt the agent from the OOM killer", err)
	}
	err = os.Mkdir(agentCgroup, 0o755)
	if err == nil || errors.Is(err, os.ErrExist) {
		err = os.WriteFile(filepath.Join(agentCgroup, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
	}
	if err != nil {
		complain("give the agent a cgroup", err)
	}
	return nil
}

// Signals by which programs ask a first process to end the machine: busybox, sysvinit and systemd each have their own.
const (
	sigHalt     = syscall.Signal(37) // SIGRTMIN+3
	sigPowerOff = syscall.Signal(38)
	sigReboot   = syscall.Signal(39)
)

// loop reaps processes for ever, and starts the agent again when it dies.
func (r *reaper) loop() error {
	// All signals are caught: an unexpected one must not end the first process, which would be the kernel's end too.
	// Ignoring them instead would make every process of the guest ignore them.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals)
	go answerSignals(signals)
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.ECHILD):
			// Only if the agent could not be started again.
		case err != nil:
			return fmt.Errorf("wait for processes: %w", err)
		case pid != r.pid:
			continue
		default:
			complain("the agent ended and is started again", fmt.Errorf("wait status %#x", uint32(status)))
		}
		if lived := time.Since(r.started); lived < restartPause {
			time.Sleep(restartPause - lived)
		}
		if err := r.startAgent(); err != nil {
			complain("start the agent again", err)
			time.Sleep(restartPause)
		}
	}
}

// restartPause keeps an agent that dies at once from taking the whole processor.
const restartPause = time.Second

func answerSignals(signals <-chan os.Signal) {
	for sig := range signals {
		switch sig {
		case syscall.SIGUSR1, syscall.SIGUSR2, sigHalt, sigPowerOff:
			complain("power off", agent.Kernel{}.PowerOff())
		case syscall.SIGTERM, syscall.SIGINT, sigReboot:
			unix.Sync()
			_ = unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
			complain("restart", unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
		}
	}
}
