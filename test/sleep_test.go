package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// counting appends to a file, one number a line and none left out. It makes no process for that, which would take most of an
// emulated guest's time.
const counting = `cat > /root/count.pl <<'END'
open F, '>>', $ARGV[0] or die $!;
for (;;) { syswrite F, ++$n . "\n"; select undef, undef, undef, 0.02 }
END
`

// count lets the VM main count in memory.
func (u *user) count() {
	u.t.Helper()
	must(u.t, os.WriteFile(filepath.Join(u.dir, "count"), []byte(counting+"setsid perl /root/count.pl /dev/shm/n >/dev/null 2>&1 </dev/null &\nuntil [ -s /dev/shm/n ]; do sleep 0.1; done"), 0o600))
	u.run(`vers execute main "$(cat count)"`)
}

// wakes reads from the server's own numbers how many VMs woke since it started, and how long that took in all.
func (u *user) wakes() (n int, took time.Duration) {
	u.t.Helper()
	for line := range strings.Lines(u.run("curl -sf --unix-socket " + u.server.socket() + " http://localhost/metrics | grep ^vers_wake")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		number, err := strconv.ParseFloat(value, 64)
		must(u.t, err)
		switch name {
		case `vers_wakes_total{result="woken"}`:
			n = int(number)
		case "vers_wake_seconds_sum":
			took = time.Duration(number * float64(time.Second))
		}
	}
	return n, took
}

// TestSleep puts a machine to sleep whose memory counts. It survives the end of versd, wakes once for ten clients, and counts
// on without a gap. How long a wake takes is measured by bench.
func TestSleep(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	u := newUser(t, s)
	u.run(`vers run --vm-alias main --mem-size 256 --wait`)
	u.count()
	identity := u.run(`vers execute main 'cat /etc/machine-id /proc/sys/kernel/random/boot_id; hostname'`)
	state := func() string { return u.run(`vers status main --format json | jq -r .state`) }
	asleep := func(when string) {
		t.Helper()
		u.run("vers info main")
		if got := state(); got != "sleeping" {
			t.Fatalf("%s it is %s", when, got)
		}
		if n := len(qemuProcesses(t, s)); n != 0 {
			t.Fatalf("%s there are %d QEMU processes", when, n)
		}
	}
	last := number(t, u.run(`vers execute main 'tail -n1 /dev/shm/n'`))
	u.run("vers sleep main")
	asleep("put to sleep")
	s.kill()
	must(t, s.start())
	asleep("after a crash of versd")

	began := time.Now()
	var clients sync.WaitGroup
	seen := make([]string, 10)
	for i := range seen {
		clients.Go(func() { seen[i] = u.try(`vers execute main 'tail -n1 /dev/shm/n; date +%s'`).stdout })
	}
	clients.Wait()
	for _, out := range seen {
		now, clock, _ := strings.Cut(strings.TrimSpace(out), "\n")
		if n := number(t, now); n < last {
			t.Errorf("it slept at %d and counts %d", last, n)
		}
		// Guest and host may differ by a second, and the guest tells whole ones.
		if at := time.Unix(int64(number(t, clock)), 0); at.Before(began.Add(-2*time.Second)) || at.After(time.Now().Add(2*time.Second)) {
			t.Errorf("its clock says %v; it was asked after %v", at, began)
		}
	}
	if n, took := u.wakes(); n != 1 || took <= 0 {
		t.Errorf("ten clients woke it %d times, in %v", n, took)
	}
	if got := u.run(`vers execute main 'cat /etc/machine-id /proc/sys/kernel/random/boot_id; hostname'`); got != identity {
		t.Errorf("it was %q and is %q", identity, got)
	}

	for _, wake := range []string{"vers resume main", "vers execute main true", "vers logs main", "vers commit main", "vers branch main -n child && vers kill child"} {
		u.run("vers sleep main")
		asleep("again")
		_, before := u.wakes()
		u.run(wake)
		_, after := u.wakes()
		t.Logf("%s: awake after %v", wake, after-before)
		if got := state(); got != "running" {
			t.Errorf("after %s it is %s", wake, got)
		}
	}
	u.wholeCount()

	for round := range 6 {
		what := []string{"vers sleep main", "vers sleep main && vers execute main true"}[round%2]
		t.Run(fmt.Sprintf("versd is killed during %s, %d", what, round), func(t *testing.T) {
			u.killDuring(what, time.Duration(20+rand.IntN(1500))*time.Millisecond)
			must(t, s.start())
			found := state()
			if n := len(qemuProcesses(t, s)); found != "running" && found != "sleeping" || n != map[string]int{"running": 1}[found] {
				t.Errorf("after the crash it is %s with %d QEMU processes", found, n)
			}
			t.Logf("found %s", found)
			u.run("vers resume main")
			u.wholeCount()
		})
	}
}

// TestSleepThroughStop: versd stop --all ends what runs, not what sleeps.
func TestSleepThroughStop(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	u := newUser(t, s)
	u.run(`vers run --vm-alias main --mem-size 256 --wait`)
	u.count()
	u.run("vers sleep main && vers resume main && vers sleep main") // its row names a process that has ended
	must(t, s.stopAll())
	must(t, s.start())
	u.wholeCount()
}

// wholeCount checks that the count in memory goes on and has no gap.
func (u *user) wholeCount() {
	u.t.Helper()
	before := number(u.t, u.run(`vers execute main 'tail -n1 /dev/shm/n'`))
	eventually(u.t, "it counts on", func() error {
		if now := number(u.t, u.run(`vers execute main 'tail -n1 /dev/shm/n'`)); now <= before {
			return fmt.Errorf("still at %d", now)
		}
		return nil
	})
	u.run(`vers execute main "awk 'NR != \$1 {print \"gap at \" NR; exit 1}' /dev/shm/n"`)
}

// TestSleepByItself: nobody uses the machine, so it sleeps; its time is over, so it is gone.
func TestSleepByItself(t *testing.T) {
	t.Parallel()
	u := newUser(t, newServer(t))
	u.run(`vers run --vm-alias main --mem-size 256 --sleep-after 10s --wait`)
	u.run(`vers execute main 'sleep 15'`) // used for longer than that
	if got := u.run(`vers status main --format json | jq -r .state`); got != "running" {
		t.Errorf("while a command runs in it, it is %s", got)
	}
	eventually(t, "it sleeps", func() error {
		if got := u.run(`vers status main --format json | jq -r .state`); got != "sleeping" {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	})
	u.run(`vers ttl main 1s`)
	eventually(t, "it is deleted", func() error {
		if r := u.try(`vers status main`); r.code != 3 {
			return fmt.Errorf("%s", r.stdout)
		}
		return nil
	})
}
