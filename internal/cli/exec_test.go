package cli

import (
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"vers/test/rig"
)

// interrupt starts a real process that waits for a remote command, and sends it a real signal once the command has begun.
func interrupt(t *testing.T, server *rig.Server, signal os.Signal, args ...string) *exec.Cmd {
	t.Helper()
	vers, err := exec.LookPath("vers") // testscript.Main put it there
	if err != nil {
		t.Skip("the test binary is not installed as vers")
	}
	cmd := exec.Command(vers, append([]string{"exec"}, args...)...)
	cmd.Env = append(os.Environ(), "VERS_URL="+server.URL, "VERS_API_KEY="+server.Key, "HOME="+t.TempDir())
	cmd.Dir = t.TempDir()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if _, err := io.ReadFull(out, make([]byte, len("begun\n"))); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// Ctrl-C ends the remote command, whose end decides the exit code.
func TestInterrupt(t *testing.T) {
	// Guests of the rig are children of this program. If it was started by nohup they would ignore hang-ups, and a shell
	// cannot trap what it was started to ignore.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	server := rig.New(t)
	id := server.Run(t).ID
	for name, c := range map[string]struct {
		signal os.Signal
		args   []string
		code   int
	}{
		"dies of it":       {os.Interrupt, []string{id, "echo begun; exec sleep 600"}, 130},
		"dies of TERM":     {syscall.SIGTERM, []string{id, "echo begun; exec sleep 600"}, 143},
		"argument vector":  {os.Interrupt, []string{id, "sh", "-c", "echo begun; exec sleep 600"}, 130},
		"handles it":       {os.Interrupt, []string{id, "trap 'exit 9' INT; echo begun; while :; do sleep 0.05; done"}, 9},
		"over SSH, dies":   {os.Interrupt, []string{"--ssh", id, "echo begun; exec sleep 600"}, 130},
		"over SSH, TERM":   {syscall.SIGTERM, []string{"--ssh", id, "trap 'exit 8' TERM; echo begun; while :; do sleep 0.05; done"}, 8},
		"over SSH, hangup": {syscall.SIGHUP, []string{"-i", id, "trap 'exit 7' HUP; echo begun; while :; do sleep 0.05; done"}, 7},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := interrupt(t, server, c.signal, c.args...)
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
		})
	}
}

// A command that does not care is left by the second Ctrl-C, and goes on.
func TestInterruptTwice(t *testing.T) {
	server := rig.New(t)
	id := server.Run(t).ID
	told, end := filepath.Join(t.TempDir(), "told"), filepath.Join(t.TempDir(), "end")
	cmd := interrupt(t, server, os.Interrupt, id, "trap 'touch "+told+"' INT; echo begun; until [ -e "+end+" ]; do sleep 0.05; done; touch "+end+".seen")
	exists := func(path string) {
		t.Helper()
		for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit); time.Sleep(5 * time.Millisecond) {
			if _, err := os.Stat(path); err == nil {
				return
			}
		}
		t.Fatal(path + " did not appear")
	}
	exists(told)
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGINT {
		t.Errorf("ended with %v", cmd.ProcessState)
	}
	if err := os.WriteFile(end, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	exists(end + ".seen")
}
