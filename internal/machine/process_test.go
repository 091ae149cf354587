package machine

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
)

func TestProcessStat(t *testing.T) {
	const rest = " S 1 2 3 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 77123 1 1"
	for _, name := range []string{"qemu", "a b", "x) R 1 (y", ")"} {
		start, state, err := parseStat("42 (" + name + ")" + rest)
		if err != nil || start != 77123 || state != 'S' {
			t.Errorf("%q: start %d, state %c, %v", name, start, state, err)
		}
	}
	for _, bad := range []string{"", "42", "42 (qemu) S 1", "42 (qemu" + rest} {
		if _, _, err := parseStat(bad); err == nil {
			t.Errorf("%q has a start time", bad)
		}
	}
}

func TestKillProcess(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	id, err := FindProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for what, other := range map[string]Process{
		"start time": {PID: id.PID, StartTime: id.StartTime + 1, BootID: id.BootID},
		"boot":       {PID: id.PID, StartTime: id.StartTime, BootID: "00000000-0000-0000-0000-000000000000"},
	} {
		if killed, err := other.Kill(t.Context()); killed || err != nil || !id.Alive() {
			t.Fatalf("with another %s: killed %v, %v; the process lives: %v", what, killed, err, id.Alive())
		}
	}
	if killed, err := id.Kill(t.Context()); !killed || err != nil {
		t.Fatalf("killed %v, %v", killed, err)
	}
	<-ended
	if killed, err := id.Kill(t.Context()); killed || err != nil || id.Alive() {
		t.Errorf("again: killed %v, %v", killed, err)
	}
	if _, err := FindProcess(id.PID); !fault.Is(err, fault.NotFound) {
		t.Errorf("looking for what is gone: %v", err)
	}
	if self, err := FindProcess(os.Getpid()); err != nil || !self.Alive() {
		t.Errorf("this process: %+v, %v", self, err)
	}
}

// A child that ends at once is known until it is waited for: its number is nobody else's.
func TestFindChild(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if p, err := FindChild(pid); err != nil || p.PID != pid || p.StartTime == 0 {
		t.Errorf("ended, not waited for: %+v, %v", p, err)
	}
	if _, err := FindProcess(pid); !fault.Is(err, fault.NotFound) {
		t.Errorf("it does not run: %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := FindChild(pid); !fault.Is(err, fault.NotFound) {
		t.Errorf("waited for: %v", err)
	}
}
