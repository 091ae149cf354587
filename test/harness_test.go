// Package test drives the real programs the way a user does: versd with real QEMU, vers from a shell.
package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vers/internal/build/engine/enginetest"
	"vers/internal/image/imagetest"
)

// bin is the folder of the programs under test, built once by TestMain, or found where $VERS_TEST_PROGRAMS says.
var bin string

const programs = "VERS_TEST_PROGRAMS"

// shared is the server that most tests use; tests that kill or fill it start their own.
var shared *server

func TestMain(m *testing.M) {
	enginetest.Main()
	becomeWarden()
	code, err := runSuite(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "test:", err)
		code = 1
	}
	os.Exit(code)
}

func runSuite(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("/var/tmp", "vers-test.")
	if err != nil {
		return 1, err
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return 1, err
	}
	w, err := startWarden(dir)
	if err != nil {
		return 1, errors.Join(err, os.RemoveAll(dir))
	}
	defer func() {
		if endErr := errors.Join(os.RemoveAll(dir), w.end()); endErr != nil && err == nil {
			code, err = 1, endErr
		}
	}()
	bin = filepath.Join(dir, "bin")
	if err := makePrograms(); err != nil {
		return 1, err
	}
	shared, err = startServer(filepath.Join(dir, "shared"))
	if err != nil {
		return 1, err
	}
	defer func() {
		if stopErr := shared.stopAll(); stopErr != nil && err == nil {
			code, err = 1, stopErr
		}
	}()
	return m.Run(), nil
}

func makePrograms() error {
	if made := os.Getenv(programs); made != "" {
		return linkTree(made, bin)
	}
	for _, program := range []string{"vers", "versd", "vers-agent"} {
		build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(bin, program), "vers/cmd/"+program)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", program, err, out)
		}
	}
	if out, err := exec.Command("make", "-s", "-C", "..", "builder", "BUILDER="+filepath.Join(bin, "vers-builder")).CombinedOutput(); err != nil {
		return fmt.Errorf("build vers-builder: %w\n%s", err, out)
	}
	return nil
}

// scratch makes a folder of the test's in the folder of the run, on a file system that is not in memory.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(filepath.Dir(bin), "")
	must(t, err)
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// server is a running versd with its own data directory.
type server struct {
	dir    string       // home of everything: data, socket, log
	enter  func(func()) // runs what starts versd in another network namespace; nil: in ours
	cmd    *exec.Cmd
	exited chan struct{}
}

func (s *server) data() string   { return filepath.Join(s.dir, "data") }
func (s *server) socket() string { return filepath.Join(s.dir, "versd.sock") }
func (s *server) config() string { return filepath.Join(s.dir, "versd.toml") }
func (s *server) log() string {
	data, _ := os.ReadFile(filepath.Join(s.dir, "versd.log"))
	return string(data)
}

// startServer makes a data directory from the prepared base (kernel, image) and starts versd on it.
func startServer(dir string, extraConfig ...string) (*server, error) {
	return startServerIn(nil, dir, extraConfig...)
}

// startServerIn is startServer for a versd in another network namespace, which enter runs things in.
func startServerIn(enter func(func()), dir string, extraConfig ...string) (*server, error) {
	base, err := imagetest.Base(context.Background())
	if err != nil {
		return nil, fmt.Errorf("prepare kernel and image for the tests: %w", err)
	}
	s := &server{dir: dir, enter: enter}
	if err := os.MkdirAll(s.data(), 0o711); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	if err := linkTree(base, s.data()); err != nil {
		return nil, err
	}
	if err := s.configure(extraConfig...); err != nil {
		return nil, err
	}
	return s, s.start()
}

// configure writes the server's configuration file.
func (s *server) configure(extraConfig ...string) error {
	config := fmt.Sprintf("data_dir = %q\nsocket = %q\nlisten = \"127.0.0.1:0\"\naccelerator = %q\n", s.data(), s.socket(), accelerator())
	config += strings.Join(extraConfig, "\n")
	if strings.Contains(config, "[gateway]") {
		return os.WriteFile(s.config(), []byte(config), 0o600)
	}
	config += "\n[gateway]\nlisten = \"127.0.0.1:0\"\nssh = \"127.0.0.1:0\"\n"
	return os.WriteFile(s.config(), []byte(config), 0o600)
}

// accelerator is what the suite runs on: ACCEL=kvm make test, where KVM is good. Proving that it is not takes a server eight
// seconds; the others believe the first.
func accelerator() string {
	if a := os.Getenv("ACCEL"); a != "" {
		return a
	}
	if shared == nil {
		return "auto"
	}
	var found struct {
		Accelerator string `json:"accelerator"`
	}
	data, err := os.ReadFile(filepath.Join(shared.data(), "accelerator.json"))
	if err == nil && json.Unmarshal(data, &found) == nil && found.Accelerator == "tcg" {
		return found.Accelerator
	}
	return "auto"
}

// linkTree gives dst the files of src, as hard links where it can; versd never writes to them.
func linkTree(src, dst string) error {
	return filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		target := filepath.Join(dst, rel)
		if d.IsDir() {
			return os.MkdirAll(target, 0o711)
		}
		if !d.Type().IsRegular() || strings.HasSuffix(path, ".lock") {
			return nil
		}
		if os.Link(path, target) == nil {
			return nil
		}
		out, err := exec.Command("cp", "--sparse=always", path, target).CombinedOutput() // another file system
		if err != nil {
			return fmt.Errorf("copy %s: %w: %s", path, err, out)
		}
		return nil
	})
}

// start starts versd and waits until it answers.
func (s *server) start() error {
	log, err := os.OpenFile(filepath.Join(s.dir, "versd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = exec.Command(filepath.Join(bin, "versd"), "--config", s.config())
	s.cmd.Stdout, s.cmd.Stderr = log, log
	start := func() { err = s.cmd.Start() }
	if s.enter != nil {
		s.enter(start)
	} else {
		start()
	}
	if err != nil {
		return err
	}
	s.exited = make(chan struct{})
	go func() {
		s.cmd.Wait()
		close(s.exited)
	}()
	wait := exec.Command(filepath.Join(bin, "versd"), "wait", "--config", s.config(), "--timeout", "3m")
	if out, err := wait.CombinedOutput(); err != nil {
		return fmt.Errorf("versd does not answer: %w\n%s\n%s", err, out, s.log())
	}
	return nil
}

// kill ends versd at once, as a crash would.
func (s *server) kill() {
	s.cmd.Process.Signal(syscall.SIGKILL)
	<-s.exited
}

// stop ends versd cleanly; its VMs run on.
func (s *server) stop() {
	s.cmd.Process.Signal(syscall.SIGTERM)
	<-s.exited
}

// stopAll ends versd and its VMs.
func (s *server) stopAll() error {
	out, err := exec.Command(filepath.Join(bin, "versd"), "stop", "--all", "--config", s.config()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("versd stop --all: %w\n%s", err, out)
	}
	<-s.exited
	return nil
}

// newServer starts a server of the test's own and ends it with the test.
func newServer(t *testing.T, extraConfig ...string) *server {
	t.Helper()
	s, err := startServer(scratch(t), extraConfig...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stopAll(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("versd's log:\n%s", s.log())
		}
	})
	return s
}

// url is where the server listens on TCP.
func (s *server) url(t *testing.T) string {
	t.Helper()
	address, err := os.ReadFile(filepath.Join(s.data(), "address"))
	must(t, err)
	return "http://" + strings.TrimSpace(string(address))
}

// newKey makes an API key of an organisation.
func (s *server) newKey(t *testing.T, organisation string) string {
	t.Helper()
	return strings.TrimSpace(sh(t, bin+"/versd key create --name test --org "+organisation+" --config "+s.config()+" --json | jq -r .api_key"))
}

// user is somebody at a shell: a home and a project folder of their own, pointed at one server.
type user struct {
	t      *testing.T
	server *server
	home   string
	dir    string
	url    string
	key    string        // "": whom the socket stands for
	limit  time.Duration // of a script; 0: four minutes
}

func newUser(t *testing.T, s *server) *user {
	t.Helper()
	u := &user{t: t, server: s, home: scratch(t), dir: scratch(t), url: "unix://" + s.socket()}
	t.Cleanup(func() { u.deleteAll() })
	return u
}

func (u *user) env() []string {
	return append(os.Environ(), "HOME="+u.home, "PATH="+bin+":"+os.Getenv("PATH"), "VERS_URL="+u.url, "VERS_API_KEY="+u.key, "VERS_TOKEN="+u.key, "NO_COLOR=1")
}

// onHTTP makes the user one who comes by TCP, with a key of the server's first organisation.
func (u *user) onHTTP() {
	u.t.Helper()
	u.url = u.server.url(u.t)
	u.key = u.server.newKey(u.t, "default")
}

// result of a command line.
type result struct {
	stdout, stderr string
	code           int
}

// try runs a script as typed, with stdin closed, and gives what came out. With -v it says how long that took.
func (u *user) try(script string) result {
	u.t.Helper()
	limit := u.limit
	if limit == 0 {
		limit = 4 * time.Minute
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script)
	cmd.Dir, cmd.Env, cmd.WaitDelay = u.dir, u.env(), 10*time.Second // what the shell started may outlive it
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := cmd.Run()
	if testing.Verbose() {
		u.t.Logf("%.2f s: %.150s", time.Since(began).Seconds(), script)
	}
	if ctx.Err() != nil {
		u.t.Fatalf("%s\ndid not end; stdout:\n%s\nstderr:\n%s\nversd:\n%s", script, &stdout, &stderr, u.server.log())
	}
	if err != nil && cmd.ProcessState == nil {
		u.t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// run is try for what must succeed; it gives stdout without the last line end.
func (u *user) run(script string) string {
	u.t.Helper()
	r := u.try(script)
	if r.code != 0 {
		u.t.Fatalf("%s\nended with %d\nstdout:\n%s\nstderr:\n%s\nversd:\n%s", script, r.code, r.stdout, r.stderr, tail(u.server.log()))
	}
	return strings.TrimSuffix(r.stdout, "\n")
}

// json runs a command line and decodes its output.
func (u *user) json(script string, into any) {
	u.t.Helper()
	out := u.run(script)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		u.t.Fatalf("%s\nis not JSON: %v\n%s", script, err, out)
	}
}

// deleteAll ends the VMs this user can see. On the shared server tests run one after another.
func (u *user) deleteAll() {
	u.try("vers kill --yes $(vers status -q) 2>/dev/null")
}

func tail(log string) string {
	lines := strings.Split(log, "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

// eventually waits until check succeeds: for what happens by itself and gives no event.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(100 * time.Millisecond) // mostly a program is started each time
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-tick.C
	}
}
