package enginetest

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vers/internal/mounts"
)

// isolated asks a test program to become a daemon, in the namespaces that it was started in. It holds Daemon.Prepare.
const isolated = "VERS_TEST_ISOLATED"

// Main is the first thing that TestMain does where tests start isolated daemons: it is what those are started by.
func Main() {
	prepare, asked := os.LookupEnv(isolated)
	if !asked {
		return
	}
	err := Isolate()
	if err == nil && prepare != "" {
		sh := exec.Command("/bin/sh", "-ec", prepare)
		sh.Stdout, sh.Stderr = os.Stdout, os.Stderr
		err = sh.Run()
	}
	if err == nil {
		env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, isolated+"=") })
		err = syscall.Exec(os.Args[0], os.Args, env)
	}
	fmt.Fprintln(os.Stderr, "start a daemon by itself:", err)
	os.Exit(1)
}

// Isolate gives a process in namespaces of its own what it needs there: mounts that nobody else sees, its own /proc and
// /run. The working directory stays.
func Isolate() error {
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	root, err := mounts.MakePrivate()
	if err == nil {
		err = os.Chdir(here)
	}
	if err == nil {
		err = root.OwnRoot()
	}
	if err != nil {
		return fmt.Errorf("keep mounts private: %w", err)
	}
	for target, kind := range map[string]string{"/proc": "proc", "/run": "tmpfs"} {
		if err := unix.Mount(kind, target, kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
	}
	return nil
}
