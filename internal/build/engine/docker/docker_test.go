package docker_test

import (
	"bytes"
	"context"
	"io/fs"
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
	"vers/internal/build/engine/docker"
	"vers/internal/build/engine/enginetest"
)

// daemon starts a program that listens on a socket, and ends it with the test.
func daemon(t *testing.T, socket, program string, args ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("container engines are started in namespaces of their own, which needs root")
	}
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("%s is not installed; scripts/deps --tests installs it", program)
	}
	var log bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		if t.Failed() {
			t.Logf("%s said:\n%s", program, tail(log.String()))
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
			t.Fatalf("%s ended:\n%s", program, tail(log.String()))
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen: %v", program, err)
		}
	}
}

func tail(text string) string { return text[max(0, len(text)-6000):] }

// removeGroups removes the empty control groups that engines leave, the deepest first.
func removeGroups() {
	var folders []string
	for _, pattern := range []string{"/sys/fs/cgroup/*/docker", "/sys/fs/cgroup/docker", "/sys/fs/cgroup/*/libpod_parent", "/sys/fs/cgroup/libpod_parent"} {
		roots, _ := filepath.Glob(pattern)
		for _, root := range roots {
			_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
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

// leftovers lists containers, and processes that tests started.
func leftovers(t *testing.T, list ...string) []string {
	t.Helper()
	var found []string
	if len(list) > 0 {
		out, err := exec.Command(list[0], list[1:]...).Output()
		if err != nil {
			t.Error(err)
		}
		found = append(found, strings.Fields(string(out))...)
	}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		text, _ := os.ReadFile(path)
		if line := strings.ReplaceAll(string(text), "\x00", " "); strings.Contains(line, "sleep 1000") {
			found = append(found, path+" "+line)
		}
	}
	return found
}

func open(t *testing.T, socket, name string) *docker.Engine {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	e, err := docker.New(ctx, docker.Options{Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	if e.Name() != name {
		t.Fatalf("the engine is %s, not %s", e.Name(), name)
	}
	return e
}

func TestDocker(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join("/run", "test-docker.sock")
	daemon(t, socket, "dockerd", "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"-p", filepath.Join(dir, "pid"), "-H", "unix://"+socket)
	enginetest.Run(t, enginetest.Options{
		Open:      func(t *testing.T, _ string) engine.Engine { return open(t, socket, engine.Docker) },
		Leftovers: func(t *testing.T) []string { return leftovers(t, "docker", "-H", "unix://"+socket, "ps", "-aq") },
	})
}

func TestPodman(t *testing.T) {
	dir := t.TempDir()
	registries := filepath.Join(dir, "registries.conf")
	if err := os.WriteFile(registries, []byte("[[registry]]\nlocation = \"127.0.0.1\"\ninsecure = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_REGISTRIES_CONF", registries)
	t.Setenv("TMPDIR", dir) // cache mounts are kept there
	socket := filepath.Join("/run", "test-podman.sock")
	global := []string{"--root", filepath.Join(dir, "data"), "--runroot", filepath.Join(dir, "run"), "--tmpdir", filepath.Join(dir, "tmp"),
		"--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--runtime", "runc"}
	daemon(t, socket, "podman", append(global, "system", "service", "--time=0", "unix://"+socket)...)
	enginetest.Run(t, enginetest.Options{
		Open: func(t *testing.T, _ string) engine.Engine { return open(t, socket, engine.Podman) },
		Leftovers: func(t *testing.T) []string {
			return leftovers(t, append(append([]string{"podman"}, global...), "ps", "-a", "--external", "-q")...)
		},
	})
}

// What a process that has ended left is swept; what lives stays.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join("/run", "test-sweep.sock")
	daemon(t, socket, "dockerd", "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"-p", filepath.Join(dir, "pid"), "-H", "unix://"+socket, "--bridge=none", "--iptables=false")
	e := open(t, socket, engine.Docker)
	image, err := e.Load(t.Context(), "base:1", bytes.NewReader(enginetest.Base(t)), engine.Config{Env: []string{"PATH=/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	mine, err := e.Start(t.Context(), engine.Container{Image: image, Network: engine.NetworkNone})
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	docker := func(args ...string) string {
		out, err := exec.Command("docker", append([]string{"-H", "unix://" + socket}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("docker %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	own := docker("ps", "-q")
	labels := strings.Split(docker("inspect", "-f", `{{index .Config.Labels "dev.vers.machine"}} {{index .Config.Labels "dev.vers.process"}}`, own), " ")
	docker("run", "-d", "--network=none", "--label", "dev.vers.machine="+labels[0], "--label", "dev.vers.process="+labels[1]+"0", "base:1", "sleep", "100")
	docker("run", "-d", "--network=none", "--name", "stranger", "base:1", "sleep", "100")
	if err := e.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := docker("ps", "-a", "--format", "{{.ID}} {{.Names}}"); strings.Count(left, "\n") != 1 || !strings.Contains(left, own) || !strings.Contains(left, "stranger") {
		t.Errorf("left after the sweep:\n%s", left)
	}
	docker("rm", "-f", "stranger")
}
