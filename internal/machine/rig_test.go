package machine_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/machine"
	"vers/internal/machine/fake"
	"vers/internal/machine/machinetest"
	"vers/internal/machine/testguest"
	"vers/internal/memory"
)

var errTest = errors.New("this is a test")

// rig is a machinetest.Rig that looks into the manager as well.
type rig struct {
	*machinetest.Rig
	t   *testing.T
	ctx context.Context
}

func newRig(t *testing.T, o machinetest.Options) *rig {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*machinetest.Patience)
	t.Cleanup(cancel)
	return &rig{Rig: machinetest.New(t, o), t: t, ctx: ctx}
}

// wantError checks kind and part of the message of an error.
func wantError(t testing.TB, what string, err error, kind fault.Kind, part string) {
	t.Helper()
	if err == nil || fault.KindOf(err) != kind || !strings.Contains(err.Error(), part) {
		t.Errorf("%s: %v (%v), want %v with %q", what, err, fault.KindOf(err), kind, part)
	}
}

// cold runs a VM that boots, and makes no template: a root VM, whose memory stands on nothing.
func (r *rig) cold() machine.VM {
	r.t.Helper()
	vm, err := r.Manager.Run(r.ctx, r.Acme, machine.RunRequest{Config: machinetest.Small, Cold: true, WaitBoot: true})
	must(r.t, err)
	return vm
}

// clone gives a VM whose memory stands on a commit.
func (r *rig) clone() machine.VM {
	r.t.Helper()
	vm, _ := r.Clone(r.t, r.cold().ID)
	return vm
}

// booting starts a VM whose boot has come to its agent, and does not come to its end until finish is called.
func (r *rig) booting(req machine.RunRequest) (vm machine.VM, finish func()) {
	r.t.Helper()
	asked := make(chan struct{})
	var once sync.Once
	r.Driver.SetHook(func(op fake.Op, _ machine.Spec) error {
		if op != fake.OpReady {
			return nil
		}
		once.Do(func() { close(asked) })
		return errTest
	})
	req.Config, req.WaitBoot, req.Cold = machinetest.Small, false, true
	vm, err := r.Manager.Run(r.ctx, r.Acme, req)
	must(r.t, err)
	<-asked
	return vm, func() { r.Driver.SetHook(nil) }
}

func (r *rig) commit(vmID string) machine.Commit {
	r.t.Helper()
	c, _, err := r.Manager.Commit(r.ctx, r.Acme, vmID, machine.CommitRequest{})
	must(r.t, err)
	return c
}

func (r *rig) branch(vmID string, count int) ([]machine.VM, machine.Commit) {
	r.t.Helper()
	vms, c, timing, err := r.Manager.Branch(r.ctx, r.Acme, vmID, machine.BranchRequest{Count: count})
	must(r.t, err)
	if len(vms) != count || timing.Paused <= 0 || timing.Durable < timing.Paused {
		r.t.Fatalf("branch gave %d VMs of %d and %+v", len(vms), count, timing)
	}
	return vms, c
}

// books is everything that VMs and commits take.
type books struct {
	machinetest.Usage
	Booked       int64
	Holders, IDs int
}

func (r *rig) books() books {
	r.t.Helper()
	b := books{Usage: r.Settle(r.t), IDs: r.Manager.UIDs()}
	b.Booked, b.Holders = r.Manager.Booked()
	return b
}

// unchanged checks that something that failed has left nothing.
func (r *rig) unchanged(before books) {
	r.t.Helper()
	after := r.books()
	// Work in the background may hold on to something for a moment.
	for end := time.Now().Add(machinetest.Patience / 4); after != before && time.Now().Before(end); after = r.books() {
		time.Sleep(time.Millisecond)
	}
	if after != before {
		r.t.Errorf("it was\n%+v and is now\n%+v", before, after)
	}
}

// empty deletes everything, and checks that nothing is left.
func (r *rig) empty() {
	r.t.Helper()
	r.Empty(r.t)
	if bytes, vms := r.Manager.Booked(); bytes != 0 || vms != 0 || r.Manager.UIDs() != 0 {
		r.t.Errorf("without VMs, %d bytes of memory are booked for %d VMs, and %d user ids", bytes, vms, r.Manager.UIDs())
	}
}

// awaitBoots waits until no VM of acme is booting.
func (r *rig) awaitBoots() {
	r.t.Helper()
	machinetest.Await(r.t, "boots end", func() bool {
		list, err := r.Manager.List(r.ctx, r.Acme)
		must(r.t, err)
		return !slices.ContainsFunc(list, func(vm machine.VM) bool { return vm.State == string(machine.StateBooting) })
	})
}

// consistent checks that manager, catalogue and machines agree about every VM.
func (r *rig) consistent() {
	r.t.Helper()
	rows, err := r.Catalog.AllVMs(r.ctx)
	must(r.t, err)
	shown := map[string]machine.VM{}
	for _, c := range []machine.Caller{r.Acme, r.Other} {
		list, err := r.Manager.List(r.ctx, c)
		must(r.t, err)
		for _, vm := range list {
			shown[vm.ID] = vm
		}
	}
	if len(rows) != len(shown) {
		r.t.Errorf("the catalogue has %d VMs, %d are shown", len(rows), len(shown))
	}
	for _, row := range rows {
		vm := shown[row.ID]
		if vm.State != row.State || vm.Reason != row.Reason || vm.LayerID != row.LayerID || len(vm.Labels) != len(row.Labels) {
			r.t.Errorf("the catalogue has %+v, shown is %+v", row, vm)
		}
		for key, value := range row.Labels {
			if vm.Labels[key] != value {
				r.t.Errorf("VM %s is labelled %v, the catalogue has %v", row.ID, vm.Labels, row.Labels)
			}
		}
		r.agrees(row)
	}
}

// agrees checks that a VM's machine does what its row says.
func (r *rig) agrees(row machine.VM) {
	r.t.Helper()
	i, runs := r.Driver.Machine(row.ID)
	want := map[string]machine.Status{"running": machine.StatusRunning, "paused": machine.StatusPaused}[row.State]
	if !runs {
		if want != "" {
			r.t.Errorf("VM %s is %s and has no machine", row.ID, row.State)
		}
		return
	}
	status, err := i.Status(r.ctx)
	must(r.t, err)
	layer, err := i.ActiveLayer(r.ctx)
	must(r.t, err)
	if status != want || layer != r.Commits.LayerPath(row.LayerID) {
		r.t.Errorf("VM %s is %s on layer %s, its machine is %s on %s", row.ID, row.State, row.LayerID, status, layer)
	}
}

// always makes a step fail every time.
func always(int) bool { return true }

// nth makes a step fail the nth time.
func nth(n int) func(int) bool { return func(i int) bool { return i == n } }

// failing gives a hook with which a step fails at the times that when says, counted from 1.
func failing(op fake.Op, when func(n int) bool) fake.Hook {
	var mu sync.Mutex
	n := 0
	return func(at fake.Op, _ machine.Spec) error {
		if at != op {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if n++; when(n) {
			return errTest
		}
		return nil
	}
}

// starts records how machines are started.
type starts struct {
	mu            sync.Mutex
	boots, clones int
	patches       int
	memoryFiles   map[string]int
}

func (s *starts) hook(op fake.Op, spec machine.Spec) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case op == fake.OpPatch:
		s.patches++
	case op == fake.OpStart && spec.MemoryFile == "":
		s.boots++
	case op == fake.OpStart:
		s.clones++
		if s.memoryFiles == nil {
			s.memoryFiles = map[string]int{}
		}
		s.memoryFiles[spec.MemoryFile]++
	}
	return nil
}

// want checks how many machines have booted and were started from memory since the last time.
func (s *starts) want(t *testing.T, when string, boots, clones int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.boots != boots || s.clones != clones {
		t.Errorf("%s: %d machines booted and %d were started from memory, want %d and %d", when, s.boots, s.clones, boots, clones)
	}
	s.boots, s.clones, s.patches, s.memoryFiles = 0, 0, 0, nil
}

// instant reads a commit's memory and disk, and checks that they are of one instant.
func (r *rig) instant(c machine.Commit) testguest.Counters {
	r.t.Helper()
	path, release, err := r.Commits.Flat(r.ctx, c.ID)
	must(r.t, err)
	defer release()
	counters := readCounters(r.t, path)
	disk := r.disk(c.LayerID)
	on := r.Driver.DiskCount(disk)
	if on == 0 && len(disk) == 2 && counters.Finished > 0 {
		return counters // its layers were merged meanwhile, into a file whose content the driver does not know
	}
	if counters.Finished > on || on > counters.Attempts || counters.Attempts > counters.Finished+1 {
		r.t.Errorf("commit %s: memory has %+v, its disk %d", c.ID, counters, on)
	}
	return counters
}

func (r *rig) disk(layerID string) []machine.Layer {
	r.t.Helper()
	files, err := r.Commits.Files(r.ctx, layerID)
	must(r.t, err)
	disk := make([]machine.Layer, len(files))
	for i, f := range files {
		disk[i].Path = f
	}
	return disk
}

// goesOn checks that a VM counts on from where a commit was taken, without a gap.
func (r *rig) goesOn(vmID string, from testguest.Counters) {
	r.t.Helper()
	i := r.Machine(r.t, vmID)
	var numbers []uint32
	machinetest.Await(r.t, "VM "+vmID+" counts on", func() bool {
		console, err := i.Console(r.ctx)
		must(r.t, err)
		numbers = testguest.ParseConsole(console)
		return len(numbers) > 2
	})
	if first := numbers[0]; first < from.Finished || first > from.Finished+1 {
		r.t.Errorf("VM %s went on with %d after %+v", vmID, first, from)
	}
	for at, n := range numbers {
		if n != numbers[0]+uint32(at) {
			r.t.Fatalf("VM %s counted %d as number %d after %d", vmID, n, at, numbers[0])
		}
	}
}

func row(t *testing.T, c *catalog.Catalog, vmID string) machine.VM {
	t.Helper()
	vm, err := c.VM(t.Context(), vmID)
	must(t, err)
	return vm
}

func readCounters(t *testing.T, path string) testguest.Counters {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	page := make([]byte, memory.PageSize)
	_, err = f.ReadAt(page, testguest.CounterPage*memory.PageSize)
	must(t, err)
	return testguest.ParseCounters(page)
}
