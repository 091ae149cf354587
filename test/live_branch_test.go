package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// counter appends one rising number to a file in memory (tmpfs) and then to one on disk (synchronous writes), over and
// over. At every instant memory is equal to disk or one ahead.
const counter = `cat > /root/count.pl <<'END'
use IO::Handle;
open my $pid, '>', '/dev/shm/pid' or die $!; print $pid "$$\n"; close $pid;
open my $memory, '>>', '/dev/shm/memory' or die $!;
open my $disk, '>>', '/root/disk.log' or die $!;
for (;;) {
  $n++;
  syswrite $memory, "$n\n";
  syswrite $disk, "$n\n";
  $disk->sync or die $!;
  select undef, undef, undef, 0.01;
}
END
setsid perl /root/count.pl >/dev/null 2>&1 </dev/null &
until [ -s /root/disk.log ]; do sleep 0.1; done`

// inspect prints, for a branched machine: the counter in memory, the last number and the wholeness of the log on disk,
// read after the page cache is dropped so that it comes from the virtual disk, and the identity. The writer is stopped
// first; every child goes on from the same number, some got further than others.
const inspect = `kill -STOP $(cat /dev/shm/pid)
tail -n1 /dev/shm/memory
echo 3 > /proc/sys/vm/drop_caches
tail -1 /root/disk.log
awk 'NR != $1 {print "gap at " NR; exit 1}' /root/disk.log && echo whole
cat /etc/machine-id
hostname
od -An -tx1 -N16 /dev/urandom
cat /proc/sys/kernel/random/boot_id`

// TestLiveBranch branches a machine that writes: memory and disk of all children agree with each other and with one
// instant of the parent, all go on independently, and each has an identity of its own.
func TestLiveBranch(t *testing.T) {
	const count = 10
	u := newUser(t, shared)
	u.run(`vers run --vm-alias parent --mem-size 256 --wait`)
	must(t, os.WriteFile(filepath.Join(u.dir, "counter"), []byte(counter), 0o600))
	must(t, os.WriteFile(filepath.Join(u.dir, "inspect"), []byte(inspect), 0o600))
	u.run(`vers execute parent "$(cat counter)"`)

	var branch struct {
		NewIDs []string `json:"new_ids"`
	}
	u.json(fmt.Sprintf("vers branch parent --count %d --format json", count), &branch)
	if len(branch.NewIDs) != count {
		t.Fatalf("%d children, want %d", len(branch.NewIDs), count)
	}
	identities := map[string]map[string]bool{"machine-id": {}, "hostname": {}, "random": {}, "boot id": {}}
	first := make([]int, 0, count)
	for _, id := range branch.NewIDs {
		out := u.run("vers execute " + id + ` "$(cat inspect)"`)
		lines := strings.Split(out, "\n")
		if len(lines) < 7 {
			t.Fatalf("child %s answers:\n%s", id, out)
		}
		memory, disk := number(t, lines[0]), number(t, lines[1])
		if memory < disk || memory > disk+1 {
			t.Errorf("child %s: memory says %d, disk says %d", id, memory, disk)
		}
		if lines[2] != "whole" {
			t.Errorf("child %s: its log has a gap: %s", id, lines[2])
		}
		first = append(first, disk)
		for i, what := range []string{"machine-id", "hostname", "random", "boot id"} {
			value := lines[3+i]
			if value == "" || identities[what][value] {
				t.Errorf("child %s: %s %q is empty or another child's", id, what, value)
			}
			identities[what][value] = true
		}
	}
	t.Logf("children stopped at %v", first)
	hostKeys := map[string]bool{}
	for _, id := range branch.NewIDs {
		key := u.run("curl -sS --unix-socket " + shared.socket() + " http://vers/api/v1/vm/" + id + "/ssh_key | jq -r .ssh_host_key")
		if key == "" || hostKeys[key] {
			t.Errorf("child %s: SSH host key %q is empty or another child's", id, key)
		}
		hostKeys[key] = true
	}

	// Independent: what one does is not seen elsewhere, and the parent never stopped counting.
	u.run("vers execute " + branch.NewIDs[0] + " 'echo only here > /root/own'")
	if r := u.try("vers execute " + branch.NewIDs[1] + " 'cat /root/own'"); r.code == 0 {
		t.Error("a file of one child is seen in another")
	}
	before := number(t, u.run("vers execute parent 'tail -n1 /dev/shm/memory'"))
	eventually(t, "the parent goes on counting", func() error {
		if now := number(t, u.run("vers execute parent 'tail -n1 /dev/shm/memory'")); now <= before {
			return fmt.Errorf("still at %d", now)
		}
		return nil
	})
	if r := u.try("vers execute parent 'cat /root/own'"); r.code == 0 {
		t.Error("a file of a child is seen in the parent")
	}
}

// TestOneInstant branches a paused machine: nothing runs between the capture and the look, so all children hold
// exactly the parent's state.
func TestOneInstant(t *testing.T) {
	u := newUser(t, shared)
	u.run(`vers run --vm-alias parent --mem-size 256 --wait`)
	u.run(`vers execute parent 'head -c 4M /dev/urandom > /dev/shm/blob; cp /dev/shm/blob /root/blob; sync'`)
	want := u.run(`vers execute parent 'sha256sum < /dev/shm/blob'`)
	u.run(`vers pause parent`)
	var branch struct {
		NewIDs []string `json:"new_ids"`
	}
	u.json("vers branch parent --count 2 --format json", &branch)
	if state := u.run("vers status parent --format json | jq -r .state"); state != "paused" {
		t.Errorf("the parent was paused before the branch and is %s after it", state)
	}
	for _, id := range branch.NewIDs {
		got := u.run("vers execute " + id + ` 'echo 3 > /proc/sys/vm/drop_caches; sha256sum < /dev/shm/blob; sha256sum < /root/blob'`)
		if got != want+"\n"+want {
			t.Errorf("child %s: memory and disk hold\n%s\nwant twice\n%s", id, got, want)
		}
	}
	u.run(`vers resume parent`)
	if got := u.run(`vers execute parent 'sha256sum < /dev/shm/blob'`); got != want {
		t.Errorf("the parent holds %s, want %s", got, want)
	}
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil {
		t.Fatalf("%q is not a number", s)
	}
	return n
}
