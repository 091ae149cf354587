package enginetest

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vers/internal/build/engine"
)

// Daemon is Docker or Podman, started by hand for one test and ended with it, with all data in the test's folder.
type Daemon struct {
	Name string // engine.Docker or engine.Podman
	// Isolated starts it in mount, PID and network namespaces of its own, so that whatever it does to them ends with it.
	// Its containers reach no network then. A test that is in such namespaces already leaves it out; others need Main.
	Isolated bool
	Prepare  string   // shell lines before the start of an isolated one
	Args     []string // more arguments
}

// Start starts the daemon. client is a command line of its own tool that talks to it.
func (d Daemon) Start(t *testing.T) (socket string, client []string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("container engines are started in namespaces of their own, which needs root")
	}
	program := map[string]string{engine.Docker: "dockerd", engine.Podman: "podman"}[d.Name]
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("%s is not installed; scripts/deps --tests installs it", program)
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil { // for other users, and for user namespaces
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "socket")
	var args []string
	if d.Name == engine.Docker {
		client = []string{"docker", "-H", "unix://" + socket}
		args = []string{program, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"), "-p", filepath.Join(dir, "pid"), "-H", "unix://" + socket}
	} else {
		client = []string{"podman", "--root", filepath.Join(dir, "data"), "--runroot", filepath.Join(dir, "run"), "--tmpdir", filepath.Join(dir, "tmp"),
			"--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--runtime", "runc"}
		args = append(slices.Clone(client), "system", "service", "--time=0", "unix://"+socket)
	}
	env := append(os.Environ(), "TMPDIR="+dir) // Podman keeps cache mounts there
	cmd := exec.Command(args[0], append(args[1:], d.Args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if d.Isolated {
		path, args := cmd.Path, cmd.Args[1:]
		cmd = exec.Command("/proc/self/exe") // Main becomes the program
		cmd.Args = append([]string{path}, args...)
		env = append(env, isolated+"="+d.Prepare)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL // should the test have no time to end it
	cmd.Env = env
	t.Cleanup(func() { unmountBelow(t, dir) }) // Docker leaves its data folder as a mount at times
	runDaemon(t, cmd, socket)
	return socket, client
}

// unmountBelow ends the mounts in a folder of the test's.
func unmountBelow(t *testing.T, dir string) {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Error(err)
		return
	}
	var found []string
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			found = append(found, fields[4])
		}
	}
	for _, path := range slices.Backward(found) {
		if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", path, err)
		}
	}
}

// runDaemon runs a program until the test ends, and waits until it listens on a socket.
func runDaemon(t *testing.T, cmd *exec.Cmd, socket string) {
	t.Helper()
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	end := func() string {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		return log.String()[max(0, log.Len()-6000):]
	}
	t.Cleanup(func() {
		if said := end(); t.Failed() {
			t.Logf("%s said:\n%s", cmd.Path, said)
		}
		removeGroups()
	})
	for deadline := time.Now().Add(time.Minute); ; {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			_ = conn.Close()
			return
		}
		select {
		case <-ended:
			t.Fatalf("%s ended:\n%s", cmd.Path, end())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen: %v", cmd.Path, err)
		}
	}
}

// removeGroups removes the empty control groups that engines leave, the deepest first.
func removeGroups() {
	var folders []string
	for _, pattern := range []string{"/sys/fs/cgroup/*/docker", "/sys/fs/cgroup/docker", "/sys/fs/cgroup/*/libpod_parent", "/sys/fs/cgroup/libpod_parent"} {
		roots, _ := filepath.Glob(pattern)
		for _, root := range roots {
			_ = filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
				if err == nil && entry.IsDir() {
					folders = append(folders, path)
				}
				return nil
			})
		}
	}
	for _, folder := range slices.Backward(folders) {
		_ = os.Remove(folder) // fails while somebody uses it
	}
}

// Containers lists what a daemon has, running or not.
func Containers(t *testing.T, client []string) []string {
	t.Helper()
	list := []string{"ps", "-aq"}
	if client[0] == "podman" {
		list = append(list, "--external")
	}
	out, err := exec.Command(client[0], append(slices.Clone(client[1:]), list...)...).Output()
	if err != nil {
		t.Error(err)
	}
	return strings.Fields(string(out))
}
