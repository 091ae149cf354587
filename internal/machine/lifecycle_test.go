package machine_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/machine"
	"vers/internal/machine/fake"
	"vers/internal/machine/machinetest"
)

// operations is what a user does to a VM, with booting VMs as a conflict.
func (r *rig) operations() map[string]func(c machine.Caller, id string) error {
	m := r.Manager
	return map[string]func(c machine.Caller, id string) error{
		"pause":  func(c machine.Caller, id string) error { return m.Pause(r.ctx, c, id, true) },
		"resume": func(c machine.Caller, id string) error { return m.Resume(r.ctx, c, id, true) },
		"commit": func(c machine.Caller, id string) error {
			_, _, err := m.Commit(r.ctx, c, id, machine.CommitRequest{SkipWaitBoot: true})
			return err
		},
		"branch": func(c machine.Caller, id string) error {
			_, _, _, err := m.Branch(r.ctx, c, id, machine.BranchRequest{Count: 1, SkipWaitBoot: true})
			return err
		},
		"resize": func(c machine.Caller, id string) error { return m.Resize(r.ctx, c, id, 96, true) },
		"labels": func(c machine.Caller, id string) error {
			return m.SetLabels(r.ctx, c, id, map[string]string{"a": "b"})
		},
		"get": func(c machine.Caller, id string) error { _, err := m.Get(r.ctx, c, id); return err },
		"wait": func(c machine.Caller, id string) error {
			ctx, cancel := context.WithTimeout(r.ctx, 20*time.Millisecond)
			defer cancel()
			_, err := m.WaitReady(ctx, c, id)
			return err
		},
		"guest": func(c machine.Caller, id string) error {
			ctx, cancel := context.WithTimeout(r.ctx, 20*time.Millisecond)
			defer cancel()
			_, err := m.Guest(ctx, c, id)
			return err
		},
		"dial": func(c machine.Caller, id string) error {
			ctx, cancel := context.WithTimeout(r.ctx, 20*time.Millisecond)
			defer cancel()
			conn, err := m.DialGuest(ctx, c, id, 80)
			if err == nil {
				conn.Close()
			}
			return err
		},
		"delete": func(c machine.Caller, id string) error { return m.Delete(r.ctx, c, id, true) },
	}
}

// refusal is what an operation says in a state that does not allow it; the zero value: it succeeds.
type refusal struct {
	kind fault.Kind
	part string // after "VM '<id>' "
}

func TestStates(t *testing.T) {
	t.Parallel()
	booting := refusal{fault.Conflict, "is still booting"}
	waits := refusal{fault.Timeout, "is still booting: context deadline exceeded"}
	dead := refusal{fault.Conflict, "is dead: its process ended"}
	for _, tt := range []struct {
		state   machine.State
		refuses map[string]refusal
		after   map[string]machine.State // where it is not the same
	}{
		{machine.StateBooting, map[string]refusal{
			"pause": booting, "resume": booting, "commit": booting, "branch": booting, "resize": booting, "delete": booting,
			"wait": waits, "guest": waits, "dial": waits,
		}, nil},
		{machine.StateRunning, nil, map[string]machine.State{"pause": machine.StatePaused}},
		{machine.StatePaused, map[string]refusal{
			"resize": {fault.Conflict, "is paused: resume it before resizing, its own file system must grow too"},
			"guest":  {fault.Conflict, "is paused: resume it first"},
			"dial":   {fault.Conflict, "is paused: resume it first"},
		}, map[string]machine.State{"resume": machine.StateRunning}},
		{machine.StateDead, map[string]refusal{
			"pause": dead, "resume": dead, "commit": dead, "branch": dead, "resize": dead, "wait": dead, "guest": dead, "dial": dead,
		}, nil},
	} {
		t.Run(string(tt.state), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, machinetest.Options{})
			r.Driver.Serve(80, func(string, net.Conn) {})
			for name, do := range r.operations() {
				if tt.state == machine.StateBooting && name == "labels" {
					continue // waits for the boot, see TestLabelsWaitForTheBoot
				}
				id, finish := r.inState(tt.state)
				err := do(r.Acme, id)
				if want, refused := tt.refuses[name]; refused {
					wantError(t, name, err, want.kind, "VM '"+id+"' "+want.part)
				} else if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				want, changes := tt.after[name]
				if !changes {
					want = tt.state
				}
				if _, refused := tt.refuses[name]; name != "delete" || refused {
					if vm, err := r.Manager.Get(r.ctx, r.Acme, id); err != nil || vm.State != string(want) {
						t.Errorf("after %s it is %s (%v), want %s", name, vm.State, err, want)
					}
				}
				finish()
				r.awaitBoots()
			}
			r.consistent()
			r.empty()
		})
	}
}

// inState gives a new VM in a state; finish ends a boot.
func (r *rig) inState(s machine.State) (id string, finish func()) {
	r.t.Helper()
	if s == machine.StateBooting {
		vm, finish := r.booting(machine.RunRequest{})
		return vm.ID, finish
	}
	vm := r.cold()
	switch s {
	case machine.StatePaused:
		must(r.t, r.Manager.Pause(r.ctx, r.Acme, vm.ID, false))
	case machine.StateDead:
		r.Machine(r.t, vm.ID).Crash()
		r.AwaitState(r.t, r.Acme, vm.ID, machine.StateDead)
	}
	return vm.ID, func() {}
}

// What waits for a boot goes on when it has ended.
func TestBootIsWaitedFor(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	m := r.Manager
	for name, do := range map[string]func(id string) error{
		"pause":  func(id string) error { return m.Pause(r.ctx, r.Acme, id, false) },
		"commit": func(id string) error { _, _, err := m.Commit(r.ctx, r.Acme, id, machine.CommitRequest{}); return err },
		"branch": func(id string) error {
			_, _, _, err := m.Branch(r.ctx, r.Acme, id, machine.BranchRequest{Count: 1})
			return err
		},
		"guest":  func(id string) error { _, err := m.Guest(r.ctx, r.Acme, id); return err },
		"labels": func(id string) error { return m.SetLabels(r.ctx, r.Acme, id, map[string]string{"a": "b"}) },
		"delete": func(id string) error { return m.Delete(r.ctx, r.Acme, id, false) },
	} {
		vm, finish := r.booting(machine.RunRequest{})
		done := make(chan error, 1)
		go func() { done <- do(vm.ID) }()
		select {
		case err := <-done:
			t.Fatalf("%s did not wait for the boot: %v", name, err)
		case <-time.After(5 * time.Millisecond):
		}
		finish()
		if err := <-done; err != nil {
			t.Errorf("%s after the boot: %v", name, err)
		}
	}
	r.empty()
}

// Record and machine agree also where the machine refuses, or the client has gone.
func TestRefusedStateChange(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm := r.cold()
	r.Driver.SetHook(failing(fake.OpPause, always))
	wantError(t, "pause", r.Manager.Pause(r.ctx, r.Acme, vm.ID, false), fault.Internal, errTest.Error())
	r.consistent()
	r.Driver.SetHook(nil)
	must(t, r.Manager.Pause(r.ctx, r.Acme, vm.ID, false))
	r.Driver.SetHook(failing(fake.OpResume, always))
	wantError(t, "resume", r.Manager.Resume(r.ctx, r.Acme, vm.ID, false), fault.Internal, errTest.Error())
	r.consistent()

	ctx, leave := context.WithCancel(r.ctx)
	r.Driver.SetHook(func(op fake.Op, _ machine.Spec) error {
		if op == fake.OpResume {
			leave()
		}
		return nil
	})
	must(t, r.Manager.Resume(ctx, r.Acme, vm.ID, false))
	r.consistent()
	if got := row(t, r.Catalog, vm.ID).State; got != string(machine.StateRunning) {
		t.Errorf("after a resume whose client left it is %s", got)
	}
	r.empty()
}

// A process that cannot be ended keeps its VM: it can be deleted later.
func TestDeleteFails(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm := r.cold()
	before := r.books()
	r.Driver.SetHook(failing(fake.OpKill, nth(1)))
	wantError(t, "delete", r.Manager.Delete(r.ctx, r.Acme, vm.ID, false), fault.Internal, "end the process of VM "+vm.ID)
	r.unchanged(before)
	r.consistent()
	must(t, r.Manager.Delete(r.ctx, r.Acme, vm.ID, false))
	wantError(t, "second delete", r.Manager.Delete(r.ctx, r.Acme, vm.ID, false), fault.NotFound, "VM '"+vm.ID+"' not found")
	r.empty()
}

// A VM may be deleted before its boot has begun. Who waits for the boot is told.
func TestDeletedBeforeItBoots(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	for range 50 {
		ctx, cancel := context.WithCancel(r.ctx)
		deleted := make(chan struct{})
		go func() {
			defer close(deleted)
			for ctx.Err() == nil {
				list, err := r.Manager.List(r.ctx, r.Acme)
				if err != nil || len(list) == 0 {
					continue
				}
				if err := r.Manager.Delete(r.ctx, r.Acme, list[0].ID, false); err != nil {
					t.Error(err)
				}
				return
			}
		}()
		_, err := r.Manager.Run(r.ctx, r.Acme, machine.RunRequest{Config: machinetest.Small, Cold: true, WaitBoot: true})
		if err != nil && !fault.Is(err, fault.NotFound) {
			t.Errorf("run of a VM that is deleted meanwhile: %v", err)
		}
		if err != nil {
			cancel()
		}
		<-deleted
		cancel()
	}
	r.empty()
}

func TestResize(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm := r.cold()
	for _, size := range []int64{machinetest.Small.FSSizeMiB, 1} {
		wantError(t, "shrink", r.Manager.Resize(r.ctx, r.Acme, vm.ID, size, false), fault.Invalid, "has 64 MiB and can only grow")
	}
	wantError(t, "beyond the host", r.Manager.Resize(r.ctx, r.Acme, vm.ID, 1<<40, false), fault.Exhausted, "asked for a disk of 1099511627776 MiB")
	r.Driver.SetHook(failing(fake.OpGrow, nth(1)))
	wantError(t, "refused", r.Manager.Resize(r.ctx, r.Acme, vm.ID, 96, false), fault.Internal, errTest.Error())
	r.consistent()
	must(t, r.Manager.Resize(r.ctx, r.Acme, vm.ID, 96, false))

	// Clones have the size that their source had at the commit.
	before := r.commit(vm.ID)
	must(t, r.Manager.Resize(r.ctx, r.Acme, vm.ID, 128, false))
	clone, err := r.Manager.Restore(r.ctx, r.Acme, before.ID, machine.NetworkRequest{})
	must(t, err)
	r.Restart(t)
	for id, want := range map[string]int64{vm.ID: 128, clone.ID: 96} {
		if got := row(t, r.Catalog, id).Config.FSSizeMiB; got != want {
			t.Errorf("VM %s has %d MiB, want %d", id, got, want)
		}
	}
	r.empty()
}

func TestRunRefuses(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{MemoryMiB: 1000})
	must(t, r.Images.Add(r.ctx, fake.Image{Name: "large", MiB: 65}))
	before := r.books()
	for _, tt := range []struct {
		name   string
		config catalog.VMConfig
		kind   fault.Kind
		says   string
	}{
		{"memory", catalog.VMConfig{MemSizeMiB: -1}, fault.Invalid, "Invalid memory size (must be positive)"},
		{"vCPUs", catalog.VMConfig{VCPUCount: -1}, fault.Invalid, "Invalid vCPU count (must be positive)"},
		{"disk", catalog.VMConfig{FSSizeMiB: -1}, fault.Invalid, "Invalid filesystem size (must be positive)"},
		{"little memory", catalog.VMConfig{MemSizeMiB: 127}, fault.Invalid, "Invalid memory size: 127 MiB is too little for a guest to boot; the least is 128 MiB"},
		{"much memory", catalog.VMConfig{MemSizeMiB: 1001}, fault.Exhausted, "asked for 1001 MiB of memory, this host has 1000 MiB for VMs in all"},
		{"many vCPUs", catalog.VMConfig{VCPUCount: 100000}, fault.Exhausted, "asked for 100000 vCPUs, the limit on this host is"},
		{"large disk", catalog.VMConfig{FSSizeMiB: 1 << 40}, fault.Exhausted, "asked for a disk of 1099511627776 MiB, the file system of " + r.Dir},
		{"image", catalog.VMConfig{ImageName: "none"}, fault.NotFound, "rootfs image 'none' not found"},
		{"kernel", catalog.VMConfig{KernelName: "none.bin"}, fault.NotFound, "kernel image 'none.bin' not found"},
		{"disk below image", catalog.VMConfig{ImageName: "large", FSSizeMiB: 64}, fault.Invalid, "Invalid filesystem size: 64 MiB is smaller than rootfs image 'large' (65 MiB)"},
	} {
		_, err := r.Manager.Run(r.ctx, r.Acme, machine.RunRequest{Config: tt.config, WaitBoot: true})
		wantError(t, tt.name, err, tt.kind, tt.says)
	}
	r.unchanged(before)
}

// No VM starts where another organisation, or nobody, has the image.
func TestImagesOfOrganisations(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	must(t, r.Images.Add(r.ctx, fake.Image{Name: "private", OrgID: r.Acme.OrgID}))
	config := machinetest.Small
	config.ImageName = "private"
	_, err := r.Manager.Run(r.ctx, r.Acme, machine.RunRequest{Config: config, WaitBoot: true})
	must(t, err)
	_, err = r.Manager.Run(r.ctx, r.Other, machine.RunRequest{Config: config, WaitBoot: true})
	wantError(t, "run another organisation's image", err, fault.NotFound, "rootfs image 'private' not found")
}

func TestDeleteCommit(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	child, base := r.Clone(t, r.cold().ID)
	wantError(t, "with a VM", r.Manager.DeleteCommit(r.ctx, r.Acme, base.ID), fault.Conflict,
		"commit '"+base.ID+"' is in use: 1 active VMs were started from it; delete them first")
	second := r.commit(child.ID)
	r.Machine(t, child.ID).Crash()
	r.AwaitState(t, r.Acme, child.ID, machine.StateDead)
	must(t, r.Manager.DeleteCommit(r.ctx, r.Acme, base.ID)) // a dead VM does not count
	gone := "commit '" + base.ID + "' not found"
	wantError(t, "again", r.Manager.DeleteCommit(r.ctx, r.Acme, base.ID), fault.NotFound, gone)
	_, err := r.Manager.Restore(r.ctx, r.Acme, base.ID, machine.NetworkRequest{})
	wantError(t, "restore", err, fault.NotFound, gone)

	// What stands on it stays, even where memory has to be put together from the deltas again.
	must(t, r.Manager.Delete(r.ctx, r.Acme, child.ID, false))
	r.Collect(t)
	flats, err := r.Catalog.Flats(r.ctx)
	must(t, err)
	for _, f := range flats {
		must(t, r.Catalog.RemoveFlat(r.ctx, f.CommitID))
		must(t, os.Remove(r.Commits.FlatPath(f.CommitID)))
	}
	must(t, r.Commits.Verify(r.ctx, second.ID))
	restored, err := r.Manager.Restore(r.ctx, r.Acme, second.ID, machine.NetworkRequest{})
	must(t, err)
	r.goesOn(restored.ID, r.instant(second))
	r.empty()
	if left, err := filepath.Glob(filepath.Join(r.Dir, "flats", "*")); err != nil || len(left) > 0 {
		t.Errorf("flat files are left: %v (%v)", left, err)
	}
}
