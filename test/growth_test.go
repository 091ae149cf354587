package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// usage is what a server holds of the host.
type usage struct {
	qemus, sockets, files, descriptors int
	layers, flats, vms                 int
}

func (u usage) String() string {
	return fmt.Sprintf("%d QEMU processes, %d sockets, %d files, %d descriptors, %d layers, %d flat files, %d VM directories",
		u.qemus, u.sockets, u.files, u.descriptors, u.layers, u.flats, u.vms)
}

// exceeds reports whether something has grown. Pooled database connections come and go: four descriptors do not count.
func (u usage) exceeds(before usage) bool {
	return u.qemus > before.qemus || u.sockets > before.sockets || u.files > before.files || u.layers > before.layers ||
		u.flats > before.flats || u.vms > before.vms || u.descriptors > before.descriptors+4
}

func measure(t *testing.T, s *server) usage {
	t.Helper()
	count := func(pattern string) int {
		found, err := filepath.Glob(pattern)
		must(t, err)
		return len(found)
	}
	u := usage{
		qemus:       len(qemuProcesses(t, s)),
		descriptors: count(fmt.Sprintf("/proc/%d/fd/*", s.cmd.Process.Pid)),
		layers:      count(s.data() + "/layers/*"),
		flats:       count(s.data() + "/flats/*"),
		vms:         count(s.data() + "/vms/*"),
	}
	must(t, filepath.Walk(filepath.Join(s.data(), "vms"), func(_ string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return nil // a VM that is just being removed
		}
		if u.files++; info.Mode()&os.ModeSocket != 0 {
			u.sockets++
		}
		return nil
	}))
	return u
}

// qemuProcesses lists the processes that run in a VM directory of the server.
func qemuProcesses(t *testing.T, s *server) []int {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	must(t, err)
	var pids []int
	for _, link := range links {
		cwd, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(cwd, s.data()+"/vms/") {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		must(t, err)
		pids = append(pids, pid)
	}
	return pids
}

// TestKillReturnsEverything makes and deletes machines in every way and counts what is left.
func TestKillReturnsEverything(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	u := newUser(t, s)
	u.run(`vers run --vm-alias base --mem-size 256 --wait`)
	commit := u.run(`vers commit base --format json | jq -r .commit_id`)
	u.run(`vers kill base`)
	u.run(`vers run-commit ` + commit + ` --wait && vers kill`)
	var before usage
	eventually(t, "the server is at rest", func() error {
		before = measure(t, s)
		if before.qemus != 0 || before.vms != 0 {
			return fmt.Errorf("there is still %s", before)
		}
		return nil
	})
	for range 3 {
		u.run(`vers run-commit ` + commit + ` -N one --wait`)
		u.run(`vers branch one --count 3`)
		u.run(`vers execute one true`)
		u.run(`vers pause one`)
		u.run(`vers kill --yes $(vers status -q)`)
		u.run(`for c in $(vers commit list -q | grep -v ` + commit + `); do vers commit delete $c; done`)
	}
	eventually(t, "everything is returned", func() error {
		if after := measure(t, s); after.exceeds(before) {
			return fmt.Errorf("before: %s\nafter:  %s", before, after)
		}
		return nil
	})
}

// TestIdleClonesShare starts clones of one commit and looks at what is private to them.
func TestIdleClonesShare(t *testing.T) {
	u := newUser(t, shared)
	u.run(`vers run --vm-alias base --mem-size 512 --wait`)
	u.run(`vers execute base 'head -c 100M /dev/urandom > /dev/shm/touched'`)
	commit := u.run(`vers commit base --format json | jq -r .commit_id`)
	u.run(`vers kill base`)
	u.run(`vers run-commit ` + commit + ` --wait`)
	for _, pid := range qemuProcesses(t, shared) {
		private := guestPrivate(t, pid, 512<<20)
		t.Logf("an idle clone has %.1f MiB of guest pages of its own", float64(private)/(1<<20))
		if private > 24<<20 {
			t.Errorf("an idle clone of a machine that touched 100 MiB holds %d MiB of its own: it does not share the commit's pages", private>>20)
		}
	}
}

// guestPrivate adds up the anonymous pages of the mapping that is the guest's RAM.
func guestPrivate(t *testing.T, pid int, size int64) int64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	must(t, err)
	inside := false
	for _, line := range strings.Split(string(data), "\n") {
		fields := strings.Fields(line)
		if len(fields) > 1 && strings.Contains(fields[0], "-") {
			bounds := strings.SplitN(fields[0], "-", 2)
			low, err1 := strconv.ParseUint(bounds[0], 16, 64)
			high, err2 := strconv.ParseUint(bounds[1], 16, 64)
			inside = err1 == nil && err2 == nil && int64(high-low) == size
			continue
		}
		if inside && len(fields) == 3 && fields[0] == "Anonymous:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			must(t, err)
			return kib << 10
		}
	}
	t.Fatalf("process %d has no mapping of %d bytes", pid, size)
	return 0
}
