package qemu

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// launcherCommand is the hidden sub-command under which an executable is the launcher.
const launcherCommand = "vers-qemu-launcher"

// launcherExit is the exit code of a launcher that could not start QEMU. Its reason is on stderr.
const launcherExit = 125

// Descriptors that the launcher is started with. QEMU gets those below planFD.
const (
	monitorFD = 3 // listening socket for QMP
	planFD    = 4 // launchPlan as JSON
)

// launchPlan is what the launcher has to do before it becomes QEMU.
type launchPlan struct {
	Confinement confinement
	Dir         string   // working directory, and the only one besides WritableDirs where files can be made
	UID, GID    int      // 0, 0: stay who we are
	Argv        []string // empty: only try whether all this is possible here, then exit 0
	Env         []string
	Trees       []string // directories and files QEMU may read, besides the system's
	Writable    []string // directories and files QEMU may write, as far as their owner and mode allow
	KVM         bool     // it needs /dev/kvm
}

// IsLauncher reports whether the process was started as the launcher; args is os.Args.
func IsLauncher(args []string) bool { return len(args) == 2 && args[1] == launcherCommand }

// LauncherMain confines the process and turns it into QEMU. It does not return. Executables that use this package call
// it first thing in main, and test binaries in TestMain, when IsLauncher(os.Args).
func LauncherMain() {
	// Credentials and capabilities belong to a thread; the one that sets them must be the one that calls execve.
	runtime.LockOSThread()
	err := launch()
	fmt.Fprintf(os.Stderr, "vers launcher: %v\n", err)
	os.Exit(launcherExit)
}

func launch() error {
	planFile := os.NewFile(planFD, "plan")
	data, err := io.ReadAll(planFile)
	if err != nil {
		return fmt.Errorf("read the launch plan: %w", err)
	}
	unix.Umask(0o022) // for the places in the new root
	var plan launchPlan
	if err := json.Unmarshal(data, &plan); err != nil {
		return fmt.Errorf("read the launch plan: %w", err)
	}
	// Everything but stdin, stdout, stderr and the monitor stays behind.
	if err := unix.CloseRange(planFD, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close descriptors on exec: %w", err)
	}
	if err := setLimits(); err != nil {
		return err
	}
	if plan.Confinement.namespaces() {
		if err := buildRoot(plan); err != nil {
			return err
		}
	} else if err := unix.Chdir(plan.Dir); err != nil {
		return fmt.Errorf("enter %s: %w", plan.Dir, err)
	}
	if err := dropPrivileges(plan); err != nil {
		return err
	}
	unix.Umask(0o077)
	if len(plan.Argv) == 0 {
		os.Exit(0)
	}
	err = syscall.Exec(plan.Argv[0], plan.Argv, plan.Env)
	return fmt.Errorf("execute %s: %w", plan.Argv[0], err)
}

// setLimits: no core dumps (guest memory would end up on disk), enough descriptors for a deep chain of layers, and first
// choice for the kernel when memory runs out.
func setLimits() error {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	files.Max = min(files.Max, 8192)
	files.Cur = files.Max
	for limit, value := range map[int]syscall.Rlimit{
		syscall.RLIMIT_CORE: {}, syscall.RLIMIT_NOFILE: files, unix.RLIMIT_MEMLOCK: {}, unix.RLIMIT_MSGQUEUE: {},
	} {
		if err := syscall.Setrlimit(limit, &value); err != nil {
			return fmt.Errorf("set resource limit %d: %w", limit, err)
		}
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("500"), 0); err != nil {
		return fmt.Errorf("set oom_score_adj: %w", err)
	}
	return nil
}

// dropPrivileges gives up user, groups, capabilities and every way to get them back.
func dropPrivileges(plan launchPlan) error {
	if plan.Confinement.capable() {
		for capability := 0; ; capability++ {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(capability), 0, 0, 0); err == unix.EINVAL {
				break // beyond the last one this kernel knows
			} else if err != nil {
				return fmt.Errorf("drop capability %d: %w", capability, err)
			}
		}
	}
	if plan.Confinement == confinedAsRoot {
		// Raw calls: they act on this thread alone, which is the one that becomes QEMU.
		if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 {
			return fmt.Errorf("drop supplementary groups: %w", e)
		}
		if plan.UID != 0 || plan.GID != 0 {
			gid, uid := uintptr(plan.GID), uintptr(plan.UID)
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); e != 0 {
				return fmt.Errorf("become group %d: %w", plan.GID, e)
			}
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); e != 0 {
				return fmt.Errorf("become user %d: %w", plan.UID, e)
			}
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("drop ambient capabilities: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}
