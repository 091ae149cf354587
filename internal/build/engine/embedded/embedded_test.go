package embedded_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"vers/internal/build/engine"
	"vers/internal/build/engine/embedded"
	"vers/internal/build/engine/enginetest"
	"vers/internal/fault"
)

// program builds vers-builder.
func program(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the embedded engine needs root")
	}
	path := filepath.Join(t.TempDir(), "vers-builder")
	cmd := exec.Command("make", "--no-print-directory", "-C", "../../../..", "builder", "BUILDER="+path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make builder: %v\n%s", err, out)
	}
	return path
}

func open(t *testing.T, o embedded.Options) *embedded.Engine {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	if o.Store == "" {
		o.Store = "test"
	}
	e, err := embedded.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestConformance(t *testing.T) {
	o := embedded.Options{Program: program(t), Dir: t.TempDir(), AuthFile: filepath.Join(t.TempDir(), "config.json")}
	enginetest.Run(t, enginetest.Options{
		Open: func(t *testing.T, registry string) engine.Engine {
			o.Registries = []string{registry}
			return open(t, o)
		},
		AuthFile:  o.AuthFile,
		Leftovers: func(t *testing.T) []string { return leftovers(t, o.Dir, o.Program) },
	})
}

// leftovers lists everything on this host that a builder with this folder has made, but images and caches.
func leftovers(t *testing.T, dir, program string) []string {
	t.Helper()
	sum := sha256.Sum256([]byte(dir))
	group := "vers-builder-" + hex.EncodeToString(sum[:6]) // as builder/group.go has it
	var found []string
	runs, _ := filepath.Glob(filepath.Join(dir, "run", "*"))
	hidden, _ := filepath.Glob(filepath.Join(dir, "run", ".*"))
	found = append(append(found, runs...), hidden...)
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && filepath.Base(filepath.Dir(path)) == group {
			found = append(found, path)
		}
		return nil
	})
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			found = append(found, line)
		}
	}
	for _, process := range processes(t) {
		groups, _ := os.ReadFile(process + "/cgroup") // gone meanwhile: so it is no leftover
		if isProgram(t, process, program) || strings.Contains(string(groups), group) {
			line, _ := os.ReadFile(process + "/cmdline")
			found = append(found, process+" "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	for _, name := range []string{"containers.json", "volatile-containers.json"} {
		lists, _ := filepath.Glob(filepath.Join(dir, "stores", "*", "storage", "overlay-containers", name))
		for _, list := range lists {
			data, err := os.ReadFile(list)
			var containers []struct{ Names []string }
			if err == nil {
				err = json.Unmarshal(data, &containers)
			}
			if err != nil {
				t.Error(err)
			}
			for _, container := range containers {
				found = append(found, "container "+strings.Join(container.Names, " "))
			}
		}
	}
	return found
}

// started is a builder in the middle of a step.
type started struct{ seen chan struct{} }

func (s *started) Write(p []byte) (int, error) {
	if strings.Contains(string(p), "in the middle") {
		close(s.seen)
	}
	return len(p), nil
}

// Whatever way a builder is killed, its steps end with it, and a sweep removes the rest.
func TestKilledBuilder(t *testing.T) {
	dir, path := t.TempDir(), program(t)
	e := open(t, embedded.Options{Program: path, Dir: dir})
	ctx := t.Context()
	if _, err := e.Load(ctx, "base:1", bytes.NewReader(enginetest.Base(t)), engine.Config{Env: []string{"PATH=/bin"}}); err != nil {
		t.Fatal(err)
	}
	context := t.TempDir()
	dockerfile := "FROM base:1\nRUN (setsid sleep 1000 &); echo in the mid''dle; sleep 1000\n"
	if err := os.WriteFile(filepath.Join(context, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{"supervisor", "init", "worker"} {
		log := &started{make(chan struct{})}
		result := make(chan error, 1)
		go func() {
			_, err := e.Build(ctx, engine.Build{Context: context, Pull: engine.PullNever, Log: log})
			result <- err
		}()
		select {
		case <-log.seen:
		case err := <-result:
			t.Fatal(err)
		}
		if err := syscall.Kill(processOf(t, path, role), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := <-result; !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Internal) {
			t.Errorf("%s killed: %v", role, err)
		}
		if err := e.Sweep(ctx); err != nil {
			t.Errorf("sweep after the %s was killed: %v", role, err)
		}
		if left := leftovers(t, dir, path); len(left) > 0 {
			t.Errorf("%s killed, left behind:\n%s", role, strings.Join(left, "\n"))
		}
	}
	if err := e.Sweep(ctx); err != nil {
		t.Errorf("sweep of nothing: %v", err)
	}
}

// processOf finds the process with a role of a builder that is this program.
func processOf(t *testing.T, program, role string) int {
	t.Helper()
	for _, process := range processes(t) {
		text, _ := os.ReadFile(process + "/cmdline")
		fields := strings.Split(strings.TrimRight(string(text), "\x00"), "\x00")
		if len(fields) == 2 && fields[1] == role && isProgram(t, process, program) {
			pid, err := strconv.Atoi(filepath.Base(process))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("no %s runs", role)
	return 0
}

func processes(t *testing.T) []string {
	t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// isProgram says whether a process runs this file, by whatever path. Other tests have builders too.
func isProgram(t *testing.T, process, program string) bool {
	t.Helper()
	want, err := os.Stat(program)
	if err != nil {
		t.Fatal(err)
	}
	is, err := os.Stat(process + "/exe")
	return err == nil && os.SameFile(is, want)
}

// Steps reach what the egress policy permits, through a name server of their own, and nothing with NetworkNone.
func TestEgress(t *testing.T) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	host := ""
	for _, address := range addresses {
		if ip, ok := address.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			host = ip.IP.String()
		}
	}
	if host == "" {
		t.Skip("this host has no address but loopback")
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("served")) }))
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	server.Listener = listener
	server.Start()
	defer server.Close()
	e := open(t, embedded.Options{Program: program(t), Egress: embedded.Egress{Allow: []string{listener.Addr().String()}}})
	if _, err := e.Load(t.Context(), "base:1", bytes.NewReader(enginetest.Base(t)), engine.Config{Env: []string{"PATH=/bin"}}); err != nil {
		t.Fatal(err)
	}
	build := func(step string, network engine.Network) (string, error) {
		context := t.TempDir()
		if err := os.WriteFile(filepath.Join(context, "Dockerfile"), []byte("FROM base:1\n"+step+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		_, err := e.Build(t.Context(), engine.Build{Context: context, Pull: engine.PullNever, Network: network, Log: &log, NoCache: true})
		return log.String(), err
	}
	get := "RUN grep 10.77.0.1 /etc/resolv.conf && wget -q -O - http://" + listener.Addr().String() + "/"
	if log, err := build(get, engine.NetworkDefault); err != nil || !strings.Contains(log, "served") {
		t.Errorf("a permitted address: %v\n%s", err, log)
	}
	if log, err := build("ADD http://"+listener.Addr().String()+"/x /x\nRUN grep served /x", engine.NetworkDefault); err != nil {
		t.Errorf("ADD from a permitted address: %v\n%s", err, log)
	}
	for _, flag := range []string{"", "--network=host "} {
		if log, err := build("RUN "+flag+"wget -T 3 -q -O - http://"+listener.Addr().String()+"/", engine.NetworkNone); err == nil {
			t.Errorf("without network %s: %s", flag, log)
		}
	}
}
