package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// File descriptors that the supervisor gives to init.
const (
	configFD = 3 // surroundings as JSON
	stepsFD  = 4 // the steps' network namespace, if they have one
)

// initMain is the first process of the PID namespace: it changes into a root file system of its own, starts the worker,
// and collects every process that nobody else waits for. When it ends, everything in the namespace does.
func initMain() int {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "vers-builder: init has no namespace of its own")
		return 1
	}
	config := os.NewFile(configFD, "config")
	data, err := io.ReadAll(config)
	_ = config.Close()
	var s surroundings
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err == nil {
		err = enterRoot(s, data)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "vers-builder: prepare the surroundings of a build:", err)
		return 1
	}
	worker := exec.Command("/proc/self/exe", "worker")
	worker.Stdin, worker.Stdout, worker.Stderr = os.Stdin, os.Stdout, os.Stderr
	worker.Dir = "/"
	worker.Env = append(os.Environ(), "HOME=/root", "TMPDIR="+temporaryDir, "CONTAINERS_CONF="+containersConf,
		"CONTAINERS_REGISTRIES_CONF="+registriesConf, "CONTAINERS_STORAGE_CONF="+storageConf, "REGISTRY_AUTH_FILE="+authFile)
	if err := worker.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "vers-builder: start the worker:", err)
		return 1
	}
	return reapUntil(worker.Process.Pid)
}

// reapUntil collects children until the given one ends, and returns its code.
func reapUntil(pid int) int {
	for {
		var status syscall.WaitStatus
		ended, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 1
		case ended == pid && status.Signaled():
			return 128 + int(status.Signal())
		case ended == pid:
			return status.ExitStatus()
		}
	}
}

// pauseMain is the first process of a session's container: it sleeps, and collects what the commands leave behind.
func pauseMain() {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	for {
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(-1, &status, 0, nil); errors.Is(err, unix.ECHILD) {
			<-children
		}
	}
}
