package machine_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"vers/internal/fault"
	"vers/internal/guest"
	"vers/internal/machine"
	"vers/internal/machine/fake"
	"vers/internal/machine/machinetest"
	"vers/internal/machine/testguest"
	"vers/internal/memory"
)

// cloneSteps are the steps of a clone that can fail.
var cloneSteps = []fake.Op{fake.OpNetwork, fake.OpStart, fake.OpLoad, fake.OpResume}

func TestRestoreIsAllOrNone(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	_, c := r.Clone(t, r.cold().ID)
	before := r.books()
	fails := func(name string) {
		t.Helper()
		if vms, err := r.Manager.BranchCommit(r.ctx, r.Acme, c.ID, 5, machine.NetworkRequest{}); err == nil {
			t.Errorf("%s: %d VMs in spite of a failure", name, len(vms))
		}
		r.Driver.SetHook(nil)
		r.unchanged(before)
		r.consistent()
	}
	for _, op := range cloneSteps {
		for _, n := range []int{1, 3, 5} {
			r.Driver.SetHook(failing(op, nth(n)))
			fails(fmt.Sprintf("%s fails for VM %d", op, n))
		}
	}
	r.limited(func() {
		r.Driver.SetHook(r.refuseOne())
		fails("one agent does not take its identity")
	})
	for _, dir := range []string{"layers", "vms"} {
		undo := r.block(dir)
		vms, err := r.Manager.BranchCommit(r.ctx, r.Acme, c.ID, 3, machine.NetworkRequest{})
		undo()
		if err == nil {
			t.Errorf("without %s: %d VMs", dir, len(vms))
		}
		r.unchanged(before)
	}
	vms, err := r.Manager.BranchCommit(r.ctx, r.Acme, c.ID, 5, machine.NetworkRequest{})
	must(t, err)
	if len(vms) != 5 {
		t.Errorf("%d VMs of 5", len(vms))
	}
	r.empty()
}

// limited does something with a versd that gives agents little time for an identity.
func (r *rig) limited(do func()) {
	r.t.Helper()
	r.Options.ReadyLimit = 200 * time.Millisecond
	r.Restart(r.t)
	do()
	r.Options.ReadyLimit = 0
	r.Restart(r.t)
}

// refuseOne makes the agent of one machine, the first that is asked, never take an identity.
func (r *rig) refuseOne() fake.Hook {
	var mu sync.Mutex
	who := ""
	return func(op fake.Op, s machine.Spec) error {
		mu.Lock()
		defer mu.Unlock()
		if op == fake.OpRenew && (who == "" || who == s.ID) {
			who = s.ID
			return errTest
		}
		return nil
	}
}

// block makes a directory of the store one in which nothing can be made, as on a full disk.
func (r *rig) block(dir string) (undo func()) {
	r.t.Helper()
	path := filepath.Join(r.Dir, dir)
	must(r.t, os.Rename(path, path+".away"))
	must(r.t, os.WriteFile(path, nil, 0o600))
	return func() {
		r.t.Helper()
		must(r.t, os.Remove(path))
		must(r.t, os.Rename(path+".away", path))
	}
}

// blockAtSwitch blocks a directory of the store as soon as the first disk is switched.
func (r *rig) blockAtSwitch(dir string) (hook fake.Hook, undo func()) {
	var once sync.Once
	unblock := func() {}
	hook = func(op fake.Op, _ machine.Spec) error {
		if op == fake.OpSwitch {
			once.Do(func() { unblock = r.block(dir) })
		}
		return nil
	}
	return hook, func() {
		r.t.Helper()
		r.Driver.SetHook(nil)
		unblock()
	}
}

// A VM is shown to nobody before its agent has confirmed who it is.
func TestIdentityIsAwaited(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	must(t, r.Catalog.PutEnv(r.ctx, r.Acme.OrgID, map[string]string{"GREETING": "hello"}))
	_, c := r.Clone(t, r.cold().ID)
	before := r.books()
	r.Options.ReadyLimit = 500 * time.Millisecond
	r.Restart(t)
	asked := make(chan string, 1000)
	r.Driver.SetHook(func(op fake.Op, s machine.Spec) error {
		if op != fake.OpRenew {
			return nil
		}
		asked <- s.ID
		return errTest
	})
	done := make(chan error, 1)
	go func() {
		_, err := r.Manager.Restore(r.ctx, r.Acme, c.ID, machine.NetworkRequest{})
		done <- err
	}()
	id := <-asked
	_, err := r.Manager.Get(r.ctx, r.Acme, id)
	wantError(t, "get before the identity is confirmed", err, fault.NotFound, "not found")
	list, err := r.Manager.List(r.ctx, r.Acme)
	must(t, err)
	if len(list) != before.VMs {
		t.Errorf("%d VMs are listed, want %d", len(list), before.VMs)
	}
	wantError(t, "delete before the identity is confirmed", r.Manager.Delete(r.ctx, r.Acme, id, false), fault.NotFound, "not found")
	wantError(t, "restore", <-done, fault.Timeout, "the agent did not confirm the VM's identity within 500ms")
	r.Driver.SetHook(nil)
	r.unchanged(before)
	r.Options.ReadyLimit = 0
	r.Restart(t)

	vm, err := r.Manager.Restore(r.ctx, r.Acme, c.ID, machine.NetworkRequest{})
	must(t, err)
	client, err := r.Manager.Guest(r.ctx, r.Acme, vm.ID)
	must(t, err)
	info, err := client.Hello(r.ctx)
	must(t, err)
	if info.VMID != vm.ID {
		t.Errorf("the agent of VM %s says %+v", vm.ID, info)
	}
	if got := r.Exec(t, r.Acme, vm.ID, "echo $GREETING"); got != "hello\n" {
		t.Errorf("the organisation's variable is %q", got)
	}
	r.empty()
}

// A machine that ends while its agent is awaited fails the restore then, not when the limit is reached.
func TestEndBeforeTheIdentity(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	_, c := r.Clone(t, r.cold().ID)
	before := r.books()
	for name, end := range map[string]func(fake.Instance){"crash": fake.Instance.Crash, "power off": fake.Instance.PowerOff} {
		r.Driver.SetHook(func(op fake.Op, s machine.Spec) error {
			if op != fake.OpDial {
				return nil
			}
			i, _ := r.Driver.Machine(s.ID)
			end(i)
			return errTest
		})
		began := time.Now()
		_, err := r.Manager.Restore(r.ctx, r.Acme, c.ID, machine.NetworkRequest{})
		wantError(t, name, err, fault.Internal, "ended before its agent confirmed the VM's identity")
		if took := time.Since(began); took > machinetest.Patience/2 {
			t.Errorf("%s: noticed after %v", name, took)
		}
		r.Driver.SetHook(nil)
		r.unchanged(before)
	}
}

// A creation is not given up because its client left.
func TestRestoreWithoutItsClient(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	_, c := r.Clone(t, r.cold().ID)
	ctx, leave := context.WithCancel(r.ctx)
	r.Driver.SetHook(func(op fake.Op, _ machine.Spec) error {
		if op == fake.OpLoad {
			leave()
		}
		return nil
	})
	vm, err := r.Manager.Restore(ctx, r.Acme, c.ID, machine.NetworkRequest{})
	must(t, err)
	if vm.State != string(machine.StateRunning) || vm.ParentCommit != c.ID || vm.GrandparentVM != c.ParentVM {
		t.Errorf("%+v", vm)
	}
	r.consistent()
	r.empty()
}

// A branch whose children or whose commit fail leaves neither; the source goes on.
func TestBranchIsAllOrNone(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	for name, source := range map[string]string{"root": r.cold().ID, "clone": r.clone().ID} {
		steps := map[string]fake.Hook{}
		for _, op := range append(cloneSteps, fake.OpCapture, fake.OpSwitch) {
			steps[string(op)] = failing(op, nth(1))
		}
		if name == "clone" {
			steps["patch"] = failing(fake.OpPatch, nth(2))
		}
		fails := func(step string, hook fake.Hook) {
			t.Helper()
			before := r.books()
			layer := row(t, r.Catalog, source).LayerID
			r.Driver.SetHook(hook)
			vms, _, _, err := r.Manager.Branch(r.ctx, r.Acme, source, machine.BranchRequest{Count: 3})
			r.Driver.SetHook(nil)
			if err == nil {
				t.Errorf("%s fails for a %s: %d children", step, name, len(vms))
			}
			r.leaves(before, source, layer)
		}
		for step, hook := range steps {
			fails(step, hook)
		}
		r.limited(func() { fails("renew", r.refuseOne()) })
		before := r.books()
		layer := row(t, r.Catalog, source).LayerID
		hook, unblock := r.blockAtSwitch("commits")
		r.Driver.SetHook(hook)
		_, _, _, err := r.Manager.Branch(r.ctx, r.Acme, source, machine.BranchRequest{Count: 3})
		unblock()
		wantError(t, "the commit of a "+name+" cannot be written", err, fault.Internal, "write commit")
		r.leaves(before, source, layer)
	}
	r.empty()
}

// leaves checks what a failed branch or commit has left: at most one more layer of the source.
func (r *rig) leaves(before books, source, layer string) {
	r.t.Helper()
	if row(r.t, r.Catalog, source).LayerID != layer {
		before.Layers++
		before.LayerFiles++
	}
	r.unchanged(before)
	r.consistent()
	r.Exec(r.t, r.Acme, source, "true")
}

func TestCountOfChildren(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm, c := r.Clone(t, r.cold().ID)
	before := r.books()
	for count, says := range map[int]string{-1: "count must be at least 1, not -1", 0: "count must be at least 1, not 0", 1001: "count must be at most 1000, not 1001"} {
		_, _, _, err := r.Manager.Branch(r.ctx, r.Acme, vm.ID, machine.BranchRequest{Count: count})
		wantError(t, "branch", err, fault.Invalid, says)
		_, err = r.Manager.BranchCommit(r.ctx, r.Acme, c.ID, count, machine.NetworkRequest{})
		wantError(t, "branch a commit", err, fault.Invalid, says)
	}
	r.unchanged(before)
}

// Where little is dirty the children get the pages written into them, on top of the source's base; else they share the
// flat file of the new commit.
func TestPathOfABranch(t *testing.T) {
	t.Parallel()
	const first, half = 1000, machine.PatchLimit / 2 / memory.PageSize
	for _, tt := range []struct {
		name    string
		root    bool
		bare    bool
		pages   int64 // that the source writes
		count   int
		patches bool
	}{
		{name: "a clone", count: 3, patches: true},
		{name: "a root VM", root: true, count: 3},
		{name: "a driver that cannot", bare: true, count: 3},
		{name: "much for one", pages: half, count: 1, patches: true},
		{name: "just enough for two", pages: half - 2, count: 2, patches: true}, // and the counter's two pages
		{name: "too much for two", pages: half, count: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, machinetest.Options{})
			r.Driver.SetBare(tt.bare)
			vm := r.cold()
			if !tt.root {
				vm, _ = r.Clone(t, vm.ID)
			}
			source := r.Machine(t, vm.ID)
			machinetest.Await(t, "the pattern page is in use", func() bool { return source.Counters().Attempts&testguest.PatternBit != 0 })
			must(t, r.Manager.Pause(r.ctx, r.Acme, vm.ID, false)) // so that the pattern page stays
			if tt.pages > 0 {
				must(t, source.Write(first, tt.pages, 7))
			}
			seen := &starts{}
			r.Driver.SetHook(seen.hook)
			children, c := r.branch(vm.ID, tt.count)
			r.Driver.SetHook(nil)

			base, patches := c.ID, 0
			if tt.patches {
				base, patches = vm.MemoryBase, tt.count
			}
			if n := seen.memoryFiles[r.Commits.FlatPath(base)]; n != tt.count || seen.patches != patches {
				t.Errorf("%d of %d children map the flat file of %s, %d were patched, want %d", n, tt.count, base, seen.patches, patches)
			}
			from := r.instant(c)
			for _, child := range children {
				if child.MemoryBase != base {
					t.Errorf("a child's memory base is %s, want %s", child.MemoryBase, base)
				}
				r.goesOn(child.ID, from)
			}
			if tt.pages > 0 {
				page, err := r.Machine(t, children[0].ID).ReadPage(first + tt.pages - 1)
				must(t, err)
				if page[0] != 7 || page[memory.PageSize-1] != 7 {
					t.Error("a page that the source wrote is not in its child")
				}
			}
			// The second generation stands on the first.
			grandchildren, second := r.branch(children[0].ID, 1)
			r.goesOn(grandchildren[0].ID, r.instant(second))
			r.empty()
		})
	}
}

// Memory, disk and CPU of children are those of one instant; the source goes on without a gap.
func TestBranchIsOneInstant(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	for _, vm := range []machine.VM{r.cold(), r.clone()} {
		for range 5 {
			children, c := r.branch(vm.ID, 2)
			from := r.instant(c)
			for _, child := range children {
				r.goesOn(child.ID, from)
				if on := r.Driver.DiskCount(r.disk(row(t, r.Catalog, child.ID).LayerID)); on < from.Finished {
					t.Errorf("the disk of a child is at %d, before %+v", on, from)
				}
				if child.ParentCommit != c.ID || child.GrandparentVM != vm.ID {
					t.Errorf("%+v", child)
				}
			}
		}
		console, err := r.Machine(t, vm.ID).Console(r.ctx)
		must(t, err)
		numbers := testguest.ParseConsole(console)
		for i, n := range numbers {
			if n != numbers[0]+uint32(i) {
				t.Fatalf("the source counted %d as number %d after %d", n, i, numbers[0])
			}
		}
	}
	r.empty()
}

func TestBranchOfAPausedVM(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm := r.cold()
	_, _, _, err := r.Manager.Branch(r.ctx, r.Acme, vm.ID, machine.BranchRequest{Count: 1, KeepPaused: true})
	must(t, err)
	children, _ := r.branch(vm.ID, 1)
	for id, want := range map[string]machine.State{vm.ID: machine.StatePaused, children[0].ID: machine.StateRunning} {
		if got := row(t, r.Catalog, id).State; got != string(want) {
			t.Errorf("VM %s is %s, want %s", id, got, want)
		}
	}
	r.consistent()
	r.empty()
}

// Disks become deep by branching and are made flat again in the background; nothing is lost on the way.
func TestGenerations(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm := r.cold()
	for n := range 12 {
		r.Exec(t, r.Acme, vm.ID, fmt.Sprintf("echo %d >> generations", n))
		children, c := r.branch(vm.ID, 1)
		from := r.instant(c)
		r.goesOn(children[0].ID, from)
		must(t, r.Manager.Delete(r.ctx, r.Acme, vm.ID, false))
		vm = children[0]
	}
	if got := r.Exec(t, r.Acme, vm.ID, "wc -l < generations"); got != "12\n" {
		t.Errorf("the last one knows of %q generations", got)
	}
	client, err := r.Manager.Guest(r.ctx, r.Acme, vm.ID)
	must(t, err)
	info, err := client.Hello(r.ctx)
	must(t, err)
	if info.Generation != 13 || info.Main != guest.MainReaper {
		t.Errorf("the last one's agent says %+v", info)
	}
	r.empty()
}
