package machine_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/machine"
	"vers/internal/machine/fake"
	"vers/internal/machine/machinetest"
)

func TestCommit(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm := r.cold()
	text, id := "what it is", ident.New()
	c, timing, err := r.Manager.Commit(r.ctx, r.Acme, vm.ID, machine.CommitRequest{CommitID: strings.ToUpper(id), Name: "first", Description: &text})
	must(t, err)
	if c.ID != id || c.Name != "first" || *c.Description != text || c.OwnerID != r.Acme.KeyID || c.ParentVM != vm.ID || c.ParentCommit != "" || !c.Durable {
		t.Errorf("%+v", c)
	}
	if timing.Paused <= 0 || timing.Durable < timing.Paused {
		t.Errorf("%+v", timing)
	}
	// Acknowledged is on stable storage, and listed.
	must(t, r.Commits.Verify(r.ctx, c.ID))
	r.Restart(t)
	second := r.commit(vm.ID)
	if second.Name != "commit-"+second.ID[:8] || second.Description != nil {
		t.Errorf("%+v", second)
	}
	list, total, err := r.Catalog.Commits(r.ctx, r.Acme.OrgID, 10, 0)
	must(t, err)
	if total != 2 || list[0].ID != second.ID || list[1].ID != c.ID {
		t.Errorf("%d commits are listed: %+v", total, list)
	}
	before := r.books()
	_, _, err = r.Manager.Commit(r.ctx, r.Acme, vm.ID, machine.CommitRequest{CommitID: id})
	wantError(t, "an id that is taken", err, fault.Conflict, "commit '"+id+"' exists already")
	_, _, err = r.Manager.Commit(r.ctx, r.Acme, vm.ID, machine.CommitRequest{CommitID: "first"})
	wantError(t, "an id that is none", err, fault.Invalid, "commit_id 'first' is not a UUID")
	r.unchanged(before)

	for _, c := range []machine.Commit{c, second} {
		restored, err := r.Manager.Restore(r.ctx, r.Acme, c.ID, machine.NetworkRequest{})
		must(t, err)
		r.goesOn(restored.ID, r.instant(c))
	}
	if first, second := r.instant(c), r.instant(second); second.Attempts < first.Attempts {
		t.Errorf("the later commit is at %+v, the earlier one at %+v", second, first)
	}
	r.empty()
}

// One of two commits with the same id is made, and is whole.
func TestCommitsWithOneID(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vms := []machine.VM{r.cold(), r.cold()}
	for range 10 {
		id := ident.New()
		errs := make([]error, len(vms))
		var group sync.WaitGroup
		for i, vm := range vms {
			group.Go(func() {
				_, _, errs[i] = r.Manager.Commit(r.ctx, r.Acme, vm.ID, machine.CommitRequest{CommitID: id})
			})
		}
		group.Wait()
		if (errs[0] == nil) == (errs[1] == nil) {
			t.Fatalf("two commits with one id: %v, %v", errs[0], errs[1])
		}
		must(t, r.Commits.Verify(r.ctx, id))
		_, err := r.Manager.Restore(r.ctx, r.Acme, id, machine.NetworkRequest{})
		must(t, err)
	}
	r.consistent()
	r.empty()
}

func TestCommitKeepsPaused(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm := r.cold()
	c, _, err := r.Manager.Commit(r.ctx, r.Acme, vm.ID, machine.CommitRequest{KeepPaused: true})
	must(t, err)
	if at, now := r.instant(c), r.Machine(t, vm.ID).Counters(); at != now {
		t.Errorf("a VM that was to stay paused went on from %+v to %+v", at, now)
	}
	again := r.commit(vm.ID) // of a paused VM: it stays paused
	if r.instant(again) != r.instant(c) {
		t.Errorf("a paused VM changed from %+v to %+v", r.instant(c), r.instant(again))
	}
	r.consistent()
	r.Restart(t)
	r.consistent()
	if got := row(t, r.Catalog, vm.ID).State; got != string(machine.StatePaused) {
		t.Errorf("it is %s", got)
	}
	must(t, r.Manager.Resume(r.ctx, r.Acme, vm.ID, false))
	r.empty()
}

// Without room nothing of a commit stays, and the VM goes on.
func TestCommitWithoutRoom(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	for name, vm := range map[string]machine.VM{"root": r.cold(), "clone": r.clone()} {
		for where, fill := range map[string]func() (undo func()){
			"for the device state": func() func() {
				dir := r.Dir + "/vms/" + vm.ID
				r.Driver.SetFull(dir, true)
				return func() { r.Driver.SetFull(dir, false) }
			},
			"for the new layer": func() func() { return r.block("layers") },
			"in the pause": func() func() {
				r.Driver.SetHook(failing(fake.OpCapture, always))
				return func() { r.Driver.SetHook(nil) }
			},
			"after the disk was switched": func() func() {
				r.Driver.SetHook(failing(fake.OpSwitch, always))
				return func() { r.Driver.SetHook(nil) }
			},
			"for what is written": func() func() {
				hook, undo := r.blockAtSwitch("commits")
				r.Driver.SetHook(hook)
				return undo
			},
		} {
			before := r.books()
			layer := row(t, r.Catalog, vm.ID).LayerID
			undo := fill()
			_, _, err := r.Manager.Commit(r.ctx, r.Acme, vm.ID, machine.CommitRequest{})
			undo()
			if err == nil {
				t.Errorf("no room %s: a %s was committed", where, name)
			}
			r.leaves(before, vm.ID, layer)
			r.goesOnWith(vm.ID)
		}
		c := r.commit(vm.ID)
		restored, err := r.Manager.Restore(r.ctx, r.Acme, c.ID, machine.NetworkRequest{})
		must(t, err)
		r.goesOn(restored.ID, r.instant(c))
	}
	r.empty()
}

// goesOnWith checks that a VM's guest runs.
func (r *rig) goesOnWith(vmID string) {
	r.t.Helper()
	i := r.Machine(r.t, vmID)
	from := i.Counters()
	machinetest.Await(r.t, "VM "+vmID+" counts", func() bool { return i.Counters().Finished > from.Finished })
}

// Every VM is booked with all of its memory, whoever makes it and however it ends.
func TestMemoryIsBooked(t *testing.T) {
	t.Parallel()
	const each, all = 129, 400 // 128 MiB and what the process takes
	r := newRig(t, machinetest.Options{MemoryMiB: all})
	vm, c := r.Clone(t, r.cold().ID)
	refused := func(what string, err error, count, vms int) {
		t.Helper()
		free := all - vms*each
		wantError(t, what, err, fault.Exhausted, fmt.Sprintf("Insufficient system resources: asked for %d MiB of memory (%d × %d MiB with the VM's own overhead), "+
			"%d MiB are free of %d MiB for VMs (%d VMs hold the rest); ask for less, or delete VMs", count*each, count, each, free, all, vms))
	}
	before := r.books()
	layer := row(t, r.Catalog, vm.ID).LayerID
	_, err := r.Manager.BranchCommit(r.ctx, r.Acme, c.ID, 2, machine.NetworkRequest{})
	refused("two from a commit", err, 2, 2)
	r.unchanged(before)
	_, _, _, err = r.Manager.Branch(r.ctx, r.Acme, vm.ID, machine.BranchRequest{Count: 2})
	refused("two children", err, 2, 2)
	r.leaves(before, vm.ID, layer)

	third, err := r.Manager.Restore(r.ctx, r.Acme, c.ID, machine.NetworkRequest{})
	must(t, err)
	cold := machine.RunRequest{Config: machinetest.Small, Cold: true, WaitBoot: true}
	for what, do := range map[string]func() error{
		"restore": func() error { _, err := r.Manager.Restore(r.ctx, r.Acme, c.ID, machine.NetworkRequest{}); return err },
		"run":     func() error { _, err := r.Manager.Run(r.ctx, r.Acme, cold); return err },
	} {
		refused(what, do(), 1, 3)
	}
	r.Restart(t)
	_, err = r.Manager.Run(r.ctx, r.Acme, cold)
	refused("run after a restart", err, 1, 3)

	// A dead VM takes none, whether versd saw it die or not.
	r.Machine(t, third.ID).Crash()
	r.AwaitState(t, r.Acme, third.ID, machine.StateDead)
	must(t, r.Manager.Delete(r.ctx, r.Acme, r.cold().ID, false))
	r.Stop(t)
	r.Machine(t, vm.ID).Crash()
	r.Start(t)
	r.cold()
	r.cold()
	_, err = r.Manager.Restore(r.ctx, r.Acme, c.ID, machine.NetworkRequest{})
	refused("restore", err, 1, 3)
	r.empty()
}
