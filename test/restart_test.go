package test

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestRestart kills versd at rest, in the middle of branches and in the middle of commits. Afterwards the machines
// run, what was acknowledged restores, what was half made is gone.
func TestRestart(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	u := newUser(t, s)
	u.run(`vers run --vm-alias main --mem-size 256 --wait`)
	u.count()
	u.run(`vers execute main 'echo kept > /root/kept'`)
	commit := u.run(`vers commit main --format json | jq -r .commit_id`)

	t.Run("at rest", func(t *testing.T) {
		before := number(t, u.run(`vers execute main 'tail -n1 /dev/shm/n'`))
		s.kill()
		must(t, s.start())
		if state := u.run(`vers status main --format json | jq -r .state`); state != "running" {
			t.Fatalf("after a crash of versd the machine is %s", state)
		}
		if after := number(t, u.run(`vers execute main 'tail -n1 /dev/shm/n'`)); after <= before {
			t.Errorf("the counter stood at %d and is at %d", before, after)
		}
	})
	t.Run("long command survives", func(t *testing.T) {
		u.run(`vers execute main 'nohup sh -c "sleep 3; echo done > /root/long" >/dev/null 2>&1 &'`)
		s.kill()
		must(t, s.start())
		eventually(t, "the command started before the crash ends", func() error {
			if r := u.try(`vers execute main 'cat /root/long'`); r.code != 0 {
				return fmt.Errorf("%s", r.stderr)
			}
			return nil
		})
	})
	t.Run("while a machine boots", func(t *testing.T) {
		u.run(`vers run --vm-alias early --mem-size 192 --env GREETING=kept`)
		s.kill()
		must(t, s.start())
		if got := u.run(`vers execute early 'echo $GREETING'`); got != "kept" {
			t.Errorf("the variable of its run request is %q in a machine that booted through a crash of versd", got)
		}
		u.run(`vers kill early`)
	})
	acknowledged := []string{commit}
	for _, during := range []string{"vers branch main --count 2 --format json | jq -r .new_ids[]", "vers commit main --format json | jq -r .commit_id"} {
		for round := range 4 {
			t.Run(fmt.Sprintf("during %s %d", strings.Fields(during)[1], round), func(t *testing.T) {
				ids := u.killDuring(during, time.Duration(20+rand.IntN(400))*time.Millisecond)
				must(t, s.start())
				if during[5] == 'c' {
					acknowledged = append(acknowledged, ids...)
				}
				checkAfterCrash(t, u, s, acknowledged)
			})
		}
	}
}

// killDuring starts a command, kills versd after a moment, and gives what the command printed as done.
func (u *user) killDuring(script string, after time.Duration) []string {
	u.t.Helper()
	cmd := exec.Command("bash", "-c", "set -o pipefail; "+script+" 2>/dev/null")
	cmd.Dir, cmd.Env = u.dir, u.env()
	timer := time.AfterFunc(after, u.server.kill)
	out, err := cmd.Output()
	if timer.Stop() {
		u.server.kill()
	} else {
		<-u.server.exited
	}
	if err != nil {
		return nil
	}
	return strings.Fields(string(out))
}

func checkAfterCrash(t *testing.T, u *user, s *server, acknowledged []string) {
	t.Helper()
	if got := u.run(`vers execute main 'cat /root/kept'`); got != "kept" {
		t.Errorf("the machine that ran through the crash has %q", got)
	}
	var vms []struct {
		ID    string `json:"vm_id"`
		State string `json:"state"`
	}
	u.json("vers status --format json", &vms)
	for _, vm := range vms {
		if vm.State != "running" {
			t.Errorf("VM %s is %s after the crash", vm.ID, vm.State)
		}
		u.run("vers execute " + vm.ID + " true")
	}
	if n := len(qemuProcesses(t, s)); n != len(vms) {
		t.Errorf("%d QEMU processes for %d VMs", n, len(vms))
	}
	listed := u.run("vers commit list -q")
	for _, id := range acknowledged {
		if !strings.Contains(listed, id) {
			t.Errorf("acknowledged commit %s is not listed", id)
		}
	}
	last := acknowledged[len(acknowledged)-1]
	u.run("vers run-commit " + last + " -N again --wait && vers execute again 'cat /root/kept' && vers kill again")
	for _, id := range strings.Fields(listed) {
		if out, err := exec.Command(bin+"/versd", "verify", "--config", s.config(), id).CombinedOutput(); err != nil {
			t.Errorf("verify of commit %s: %v\n%s", id, err, out)
		}
	}
	u.run(`for vm in $(vers status -q); do [ $vm = $(vers alias main) ] || vers kill $vm; done`)
}

// TestCleanStop stops versd as an operator does: the machines run on.
func TestCleanStop(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	u := newUser(t, s)
	u.run(`vers run --vm-alias main --mem-size 256 --wait`)
	s.stop()
	if n := len(qemuProcesses(t, s)); n != 1 {
		t.Fatalf("%d QEMU processes after a clean stop, want 1", n)
	}
	r := u.try("vers status")
	if r.code != 1 || !strings.Contains(r.stderr, s.socket()) {
		t.Errorf("without a server: exit %d, %q; want 1 and the address", r.code, r.stderr)
	}
	must(t, s.start())
	u.run(`vers execute main true`)
}
