package docker_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vers/internal/build/engine"
	"vers/internal/build/engine/docker"
	"vers/internal/build/engine/enginetest"
)

// leftovers lists containers, and processes that tests started.
func leftovers(t *testing.T, client []string) []string {
	t.Helper()
	found := enginetest.Containers(t, client)
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		text, _ := os.ReadFile(path)
		if line := strings.ReplaceAll(string(text), "\x00", " "); strings.Contains(line, "sleep 1000") {
			found = append(found, path+" "+line)
		}
	}
	return found
}

func open(t *testing.T, socket, name, authFile string) *docker.Engine {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	e, err := docker.New(ctx, docker.Options{Socket: socket, AuthFile: authFile})
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
	socket, client := enginetest.Daemon{Name: engine.Docker}.Start(t)
	authFile := filepath.Join(t.TempDir(), "config.json")
	enginetest.Run(t, enginetest.Options{
		Open:      func(t *testing.T, _ string) engine.Engine { return open(t, socket, engine.Docker, authFile) },
		AuthFile:  authFile,
		Leftovers: func(t *testing.T) []string { return leftovers(t, client) },
	})
}

func TestPodman(t *testing.T) {
	registries := filepath.Join(t.TempDir(), "registries.conf")
	if err := os.WriteFile(registries, []byte("[[registry]]\nlocation = \"127.0.0.1\"\ninsecure = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_REGISTRIES_CONF", registries)
	socket, client := enginetest.Daemon{Name: engine.Podman}.Start(t)
	authFile := filepath.Join(t.TempDir(), "config.json")
	enginetest.Run(t, enginetest.Options{
		Open:      func(t *testing.T, _ string) engine.Engine { return open(t, socket, engine.Podman, authFile) },
		AuthFile:  authFile,
		Leftovers: func(t *testing.T) []string { return leftovers(t, client) },
	})
}

// What a process that has ended left is swept; what lives stays.
func TestSweep(t *testing.T) {
	socket, client := enginetest.Daemon{Name: engine.Docker, Args: []string{"--bridge=none", "--iptables=false"}}.Start(t)
	e := open(t, socket, engine.Docker, "")
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
		out, err := exec.Command(client[0], append(client[1:len(client):len(client)], args...)...).CombinedOutput()
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
