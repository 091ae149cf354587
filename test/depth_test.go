package test

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestGenerations: a commit of a VM restored from a commit of a VM …: nothing of any generation is lost, and the chain of
// disk files does not grow with their number.
func TestGenerations(t *testing.T) {
	const generations = 12
	u := newUser(t, shared)
	u.run(`vers run --vm-alias g --mem-size 256 --wait`)
	for i := range generations {
		u.run(fmt.Sprintf(`vers execute g 'echo %d >> /root/disk; echo %d >> /dev/shm/memory; sync'`, i, i))
		u.run(`C=$(vers commit g --format json | jq -r .commit_id); vers kill g; vers run-commit $C -N g`)
	}
	want := ""
	for i := range generations {
		want += fmt.Sprintf("%d\n", i)
	}
	if got := u.run(`vers execute g 'echo 3 > /proc/sys/vm/drop_caches; cat /root/disk /dev/shm/memory'`); got != strings.TrimSuffix(want+want, "\n") {
		t.Errorf("after %d generations disk and memory hold\n%s", generations, got)
	}
	last := u.run(`vers commit g --format json | jq -r .commit_id`)
	eventually(t, "the disk layers are merged", func() error {
		u.run(`vers run-commit ` + last + ` -N deep`)
		defer u.run(`vers kill deep`)
		open := sh(t, fmt.Sprintf("tr '\\0' '\\n' < /proc/%d/cmdline | grep -c 'layers/'", newest(t, u)))
		if n := number(t, open); n > 10 {
			return fmt.Errorf("a restored VM has %d disk layers", n)
		}
		return nil
	})
	if got := u.run(`vers run-commit ` + last + ` -N deep && vers execute deep 'cat /root/disk'`); !strings.HasSuffix(got, strings.TrimSuffix(want, "\n")) {
		t.Errorf("from the merged disk:\n%s", got)
	}
}

// newest gives the process of the user's HEAD.
func newest(t *testing.T, u *user) int {
	t.Helper()
	dir := u.server.data() + "/vms/" + u.run("vers head")
	for _, pid := range qemuProcesses(t, u.server) {
		if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil && cwd == dir {
			return pid
		}
	}
	t.Fatalf("no process runs in %s", dir)
	return 0
}
