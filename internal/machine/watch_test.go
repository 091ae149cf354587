package machine_test

import (
	"strings"
	"testing"
	"time"

	"vers/internal/fault"
	"vers/internal/machine"
	"vers/internal/machine/fake"
	"vers/internal/machine/machinetest"
)

// A VM whose machine ends by itself is dead, with the reason, and takes nothing but its row, directory and disk.
func TestDeath(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	for _, tt := range []struct {
		name   string
		end    func(machine.VM)
		reason string
	}{
		{"crash", func(vm machine.VM) { r.Machine(t, vm.ID).Crash() }, "its process ended"},
		{"power off from outside", func(vm machine.VM) { r.Machine(t, vm.ID).PowerOff() }, "its guest powered off or crashed; console: "},
		{"power off by the agent", func(vm machine.VM) {
			client, err := r.Manager.Guest(r.ctx, r.Acme, vm.ID)
			must(t, err)
			must(t, client.PowerOff(r.ctx))
		}, "its guest powered off or crashed; console: "},
		{"crash of a paused VM", func(vm machine.VM) {
			must(t, r.Manager.Pause(r.ctx, r.Acme, vm.ID, false))
			r.Machine(t, vm.ID).Crash()
		}, "its process ended"},
	} {
		vm, c := r.Clone(t, r.cold().ID)
		r.goesOnWith(vm.ID) // so that there is something on the console
		child, err := r.Manager.Restore(r.ctx, r.Acme, c.ID, machine.NetworkRequest{})
		must(t, err)
		before := r.books()
		tt.end(vm)
		dead := r.AwaitState(t, r.Acme, vm.ID, machine.StateDead)
		if !strings.HasPrefix(dead.Reason, tt.reason) {
			t.Errorf("%s: the reason is %q, want %q", tt.name, dead.Reason, tt.reason)
		}
		if row := row(t, r.Catalog, vm.ID); row.State != dead.State || row.Reason != dead.Reason {
			t.Errorf("%s: the catalogue has %q, %q", tt.name, row.State, row.Reason)
		}
		before.Machines--
		before.Networks--
		before.Holders--
		before.Booked -= 129 << 20
		r.unchanged(before)
		r.goesOnWith(child.ID)
		_, err = r.Manager.Guest(r.ctx, r.Acme, vm.ID)
		wantError(t, tt.name, err, fault.Conflict, "VM '"+vm.ID+"' is dead: "+tt.reason)
		must(t, r.Manager.Delete(r.ctx, r.Acme, vm.ID, false))
	}
	r.empty()
}

// A guest that the host's disk stops is shown as paused, with what to do, and can be resumed.
func TestFullHostDisk(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm := r.cold()
	for range 3 {
		r.Machine(t, vm.ID).FillDisk()
		stopped := r.AwaitState(t, r.Acme, vm.ID, machine.StatePaused)
		want := "the host's disk is full: its guest waits in the middle of a write; free space on the file system of " + r.Dir
		if !strings.HasPrefix(stopped.Reason, want) {
			t.Errorf("the reason is %q", stopped.Reason)
		}
		_, err := r.Manager.Guest(r.ctx, r.Acme, vm.ID)
		wantError(t, "a command", err, fault.Conflict, "VM '"+vm.ID+"' is paused: "+want)
		r.consistent()
		must(t, r.Manager.Resume(r.ctx, r.Acme, vm.ID, false))
		if again, err := r.Manager.Get(r.ctx, r.Acme, vm.ID); err != nil || again.Reason != "" {
			t.Errorf("after resume the reason is %q (%v)", again.Reason, err)
		}
		r.goesOnWith(vm.ID)
	}
	r.empty()
}

// A boot that does not come to its end in time leaves a dead VM that says why, and no process.
func TestBootLimit(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{BootLimit: 100 * time.Millisecond})
	for _, op := range []fake.Op{fake.OpReady, fake.OpDial, fake.OpStart, fake.OpResume, fake.OpNetwork} {
		r.Driver.SetHook(failing(op, always))
		vm, err := r.Manager.Run(r.ctx, r.Acme, machine.RunRequest{Config: machinetest.Small, Cold: true, WaitBoot: true})
		wantError(t, "run with failing "+string(op), err, fault.Conflict, "is dead: did not boot: ")
		if vm.State != string(machine.StateDead) || vm.Reason == "" {
			t.Errorf("%+v", vm)
		}
		r.Driver.SetHook(nil)
		if n := r.Driver.Running(); n != 0 {
			t.Errorf("failing %s: %d machines run", op, n)
		}
		r.consistent()
		must(t, r.Manager.Delete(r.ctx, r.Acme, vm.ID, false))
	}
	r.empty()
}

// To another organisation a VM is as good as none: the same answer as for an id that nobody has.
func TestOrganisationsAreApart(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm, c := r.Clone(t, r.cold().ID)
	must(t, r.Manager.SetLabels(r.ctx, r.Acme, vm.ID, map[string]string{"whose": "acme"}))
	before := r.books()
	for name, do := range r.operations() {
		wantError(t, name, do(r.Other, vm.ID), fault.NotFound, "VM '"+vm.ID+"' not found")
	}
	gone := "commit '" + c.ID + "' not found"
	_, err := r.Manager.Restore(r.ctx, r.Other, c.ID, machine.NetworkRequest{})
	wantError(t, "restore", err, fault.NotFound, gone)
	_, err = r.Manager.BranchCommit(r.ctx, r.Other, c.ID, 1, machine.NetworkRequest{})
	wantError(t, "branch a commit", err, fault.NotFound, gone)
	wantError(t, "delete a commit", r.Manager.DeleteCommit(r.ctx, r.Other, c.ID), fault.NotFound, gone)
	list, err := r.Manager.List(r.ctx, r.Other)
	must(t, err)
	if len(list) != 0 {
		t.Errorf("another organisation sees %+v", list)
	}
	r.unchanged(before)
	r.consistent()
	if got, err := r.Manager.Get(r.ctx, r.Acme, vm.ID); err != nil || got.Labels["whose"] != "acme" || got.State != string(machine.StateRunning) {
		t.Errorf("its own organisation sees %+v (%v)", got, err)
	}

	// Newest first, and only one's own.
	mine, err := r.Manager.Run(r.ctx, r.Other, machine.RunRequest{Config: machinetest.Small, WaitBoot: true})
	must(t, err)
	list, err = r.Manager.List(r.ctx, r.Acme)
	must(t, err)
	for i, vm := range list {
		if vm.ID == mine.ID || i > 0 && vm.CreatedAt.After(list[i-1].CreatedAt) {
			t.Errorf("listed as number %d: %+v", i, vm)
		}
	}
	r.empty()
}
