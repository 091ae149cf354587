package test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vers/internal/build/engine"
	"vers/internal/build/engine/docker"
	"vers/internal/build/engine/enginetest"
)

const onSmall = "[container]\nimage = { name = 'localhost/small', tag = '1', pull = 'never' }\n"

// scriptUser has a build script and an image for it.
func scriptUser(t *testing.T, script string) *user {
	t.Helper()
	u := newUser(t, shared)
	loadImage(t, ownEngine(t, u), "localhost/small:1", small(t))
	u.script(script)
	return u
}

func (u *user) script(text string) {
	u.t.Helper()
	must(u.t, os.WriteFile(filepath.Join(u.dir, "build.toml"), []byte(onSmall+text), 0o644))
}

// T12, B17: who is not root, and has a Docker that answers, gets an ext4 with all owners in it.
func TestBuildScriptT12WithoutRoot(t *testing.T) {
	const somebody = 65533
	socket, _ := enginetest.Daemon{Name: engine.Docker, Isolated: true}.Start(t)
	must(t, os.Chmod(socket, 0o666))
	e, err := docker.New(t.Context(), docker.Options{Socket: socket})
	must(t, err)
	loadImage(t, e, "localhost/small:1", small(t))
	u := newUser(t, shared)
	must(t, os.Chown(u.dir, somebody, somebody))
	sh(t, "install -m 755 "+bin+"/vers "+u.dir+"/vers")
	u.script("[[commands]]\ncommand = 'echo made > /etc/made; chown 1000:50 /etc/made; chmod 4755 /etc/made'\n[export]\nall = true\n")
	cmd := exec.Command("./vers", "rootfs", "build", "build.toml", "-o", "out.ext4", "--engine", "docker")
	cmd.Dir, cmd.Env = u.dir, []string{"HOME=" + u.dir, "TMPDIR=" + u.dir, "DOCKER_HOST=unix://" + socket, "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: somebody, Gid: somebody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	u.run(`e2fsck -fn out.ext4 && debugfs -R "stat /etc/made" out.ext4 2>/dev/null > stat`)
	stat := strings.Join(strings.Fields(u.run(`cat stat`)), " ")
	for _, want := range []string{"Mode: 04755", "User: 1000 Group: 50", "Type: regular"} {
		if !strings.Contains(stat, want) {
			t.Errorf("no %q in\n%s", want, stat)
		}
	}
	if got := u.run(`debugfs -R "stat /etc" out.ext4 2>/dev/null | grep User:`); !strings.Contains(strings.Join(strings.Fields(got), " "), "User: 0 Group: 0") {
		t.Errorf("a folder of root's belongs to %s", got)
	}
}

// T17, B13: a signal during a script ends everything that came with it.
func TestBuildScriptT17Interrupt(t *testing.T) {
	const slow = "[[commands]]\ncommand = 'echo be\\\"\\\"gun; sleep 1000.17'\n[export]\nall = true\n"
	t.Run(engine.Embedded, func(t *testing.T) {
		u := scriptUser(t, strings.ReplaceAll(slow, `\"\"`, `""`))
		interrupt(t, u, syscall.SIGINT, 130, "--engine", "embedded")
		if runs, _ := filepath.Glob(filepath.Join(u.home, ".cache", "vers", "builder", "run", "*")); len(runs) > 0 {
			t.Errorf("folders of containers are left: %v", runs)
		}
		interrupt(t, u, syscall.SIGTERM, 143, "--engine", "embedded")
		if got := u.try(`vers rootfs build . -o out.ext4 --engine embedded --timeout 3s`); got.code != 6 || !strings.Contains(got.stderr, "--timeout 3s") {
			t.Errorf("--timeout: %+v", got)
		}
		nothingRuns(t, u)
	})
	t.Run(engine.Docker, func(t *testing.T) {
		socket, client := enginetest.Daemon{Name: engine.Docker, Isolated: true}.Start(t)
		e, err := docker.New(t.Context(), docker.Options{Socket: socket})
		must(t, err)
		loadImage(t, e, "localhost/small:1", small(t))
		u := newUser(t, shared)
		u.script(strings.ReplaceAll(slow, `\"\"`, `""`))
		interrupt(t, u, syscall.SIGINT, 130, "--engine", "docker", "--set", "container.connection_uri=unix://"+socket)
		if left := enginetest.Containers(t, client); len(left) > 0 {
			t.Errorf("containers are left: %v", left)
		}
	})
}

// interrupt sends a signal to a build in the middle of a command.
func interrupt(t *testing.T, u *user, signal syscall.Signal, code int, flags ...string) {
	t.Helper()
	temp := t.TempDir()
	cmd := exec.Command(filepath.Join(bin, "vers"), append([]string{"rootfs", "build", ".", "-o", "out.ext4"}, flags...)...)
	cmd.Dir, cmd.Env = u.dir, append(u.env(), "TMPDIR="+temp)
	seen := &awaited{text: "begun", seen: make(chan struct{})}
	cmd.Stderr = seen
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-seen.seen:
	case err := <-ended:
		t.Fatalf("%v\n%s", err, seen.log.String())
	}
	must(t, cmd.Process.Signal(signal))
	select {
	case <-ended:
	case <-time.After(time.Minute):
		_ = cmd.Process.Kill()
		t.Fatal("it does not end")
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("after %v it ends with %d, want %d\n%s", signal, got, code, seen.log.String())
	}
	if left, _ := os.ReadDir(temp); len(left) > 0 {
		t.Errorf("temporary files are left: %v", left)
	}
	nothingRuns(t, u)
}

// nothingRuns looks for a command of a build, its output and its mounts.
func nothingRuns(t *testing.T, u *user) {
	t.Helper()
	if got := u.run(`ls -A | grep -v build.toml; find "$HOME/.cache/vers/buildfs" -type f 2>/dev/null; grep -F "$HOME" /proc/self/mountinfo; true`); got != "" {
		t.Errorf("it leaves\n%s", got)
	}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		if text, _ := os.ReadFile(path); bytes.Contains(text, []byte("sleep\x001000.17")) {
			t.Errorf("%s still runs", path)
		}
	}
}

// awaited is output in which a text is waited for.
type awaited struct {
	text string
	seen chan struct{}
	log  bytes.Buffer
	done bool
}

func (a *awaited) Write(p []byte) (int, error) {
	a.log.Write(p)
	if !a.done && strings.Contains(a.log.String(), a.text) {
		a.done = true
		close(a.seen)
	}
	return len(p), nil
}

// Flags of the build: what is shown, and what is kept after a failure.
func TestBuildScriptFlags(t *testing.T) {
	u := scriptUser(t, "[[commands]]\nname = 'first'\ncommand = 'echo sho\"\"wn; echo kept > /etc/kept'\n[[commands]]\nname = 'second'\ncommand = 'echo the \"\"end; exit 3'\n[export]\nall = true\n")
	const build = `TMPDIR=$PWD vers rootfs build . -o out.ext4 --engine embedded `
	loud := u.try(build)
	if loud.code != 1 || !strings.Contains(loud.stderr, "    shown\n") || !strings.Contains(loud.stderr, "command 2 of 2 (second) failed: exit code 3") {
		t.Errorf("%+v", loud)
	}
	quiet := u.try(build + `--quiet-scripts`)
	if quiet.code != 1 || strings.Contains(quiet.stderr, "shown") || !strings.Contains(quiet.stderr, "the end") {
		t.Errorf("--quiet-scripts shows the end of what failed only: %+v", quiet)
	}
	if got := u.run(`ls -A`); got != "build.toml" {
		t.Errorf("without --keep there are\n%s", got)
	}
	kept := u.try(build + `--keep --json`)
	if kept.code != 1 || !strings.Contains(kept.stdout, `"failed_step": "second"`) || !strings.Contains(kept.stdout, `"exit_code": 3`) {
		t.Errorf("--keep: %+v", kept)
	}
	if got := u.run(`tar -xOf vers-rootfs-*.tar --wildcards '*etc/kept'`); got != "kept" {
		t.Errorf("the kept archive has %q", got)
	}
}

// checks.boot and checks.commands run in a VM; the result appears only when they succeed, and the VM goes.
func TestBuildScriptChecks(t *testing.T) {
	const commands = "[[commands]]\ncommand = 'echo yes > /etc/answer'\n[export]\nall = true\n[filesystem]\nsize_mib = 64\n[checks]\nboot = true\n"
	u := scriptUser(t, commands+"commands = ['grep yes /etc/answer', 'test -d /proc/1']\n")
	u.run(`vers rootfs build . -o out.ext4 --engine embedded && test -s out.ext4`)
	u.script(commands + "commands = ['true', 'echo it says; grep no /etc/answer']\n")
	failed := u.try(`rm out.ext4; vers rootfs build . -o out.ext4 --register checked --engine embedded`)
	if failed.code != 1 || !strings.Contains(failed.stderr, "checks.commands[1] (echo it says; grep no /etc/answer) failed in the VM: exit code 1") || !strings.Contains(failed.stderr, "it says") {
		t.Errorf("a check that fails: %+v", failed)
	}
	if got := u.run(`ls; vers rootfs list -q; vers status -q`); got != "build.toml\ndefault" {
		t.Errorf("after a check that failed there are\n%s", got)
	}
}
