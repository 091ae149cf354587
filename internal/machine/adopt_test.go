package machine_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/machine"
	"vers/internal/machine/machinetest"
	"vers/internal/machine/testguest"
)

// change changes a VM's row while versd does not run.
func (r *rig) change(vmID string, change func(*machine.VM)) {
	r.t.Helper()
	vm := row(r.t, r.Catalog, vmID)
	change(&vm)
	must(r.t, r.Catalog.UpdateVM(r.ctx, vm))
}

func TestAdoptRunningAndPaused(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	running, paused := r.cold(), r.clone()
	r.Exec(t, r.Acme, running.ID, "echo kept > note")
	must(t, r.Manager.Pause(r.ctx, r.Acme, paused.ID, false))
	before := r.books()
	for range 3 {
		r.Restart(t)
		r.consistent()
	}
	r.unchanged(before)
	if got := r.Exec(t, r.Acme, running.ID, "cat note"); got != "kept\n" {
		t.Errorf("the note is %q", got)
	}
	must(t, r.Manager.Resume(r.ctx, r.Acme, paused.ID, false))
	r.Exec(t, r.Acme, paused.ID, "true")
	for _, vm := range []machine.VM{running, paused} {
		r.goesOn(r.clones(vm.ID))
		r.Machine(t, vm.ID).Crash() // an adopted VM is watched
		r.AwaitState(t, r.Acme, vm.ID, machine.StateDead)
	}
	r.empty()
}

// clones commits a VM and restores it: what goesOn wants to see.
func (r *rig) clones(vmID string) (string, testguest.Counters) {
	r.t.Helper()
	vm, c := r.Clone(r.t, vmID)
	return vm.ID, r.instant(c)
}

// The record is what the user asked for; a crash of versd may have come before the machine was told.
func TestAdoptBringsTheRecordAbout(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	runs, stands := r.cold(), r.cold()
	r.Stop(t)
	r.change(runs.ID, func(vm *machine.VM) { vm.State = string(machine.StatePaused) })
	must(t, r.Machine(t, stands.ID).Pause(r.ctx))
	r.Start(t)
	r.consistent()
	r.empty()
}

func TestAdoptCreating(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	base := r.cold()
	removed := func(name string, change func(*machine.VM), spoil func(vmID string)) {
		t.Helper()
		_, c := r.Clone(t, base.ID)
		vm, err := r.Manager.Restore(r.ctx, r.Acme, c.ID, machine.NetworkRequest{})
		must(t, err)
		r.Stop(t)
		r.change(vm.ID, change)
		spoil(vm.ID)
		r.Start(t)
		if _, err := r.Catalog.VM(r.ctx, vm.ID); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: a half-made VM is still there: %v", name, err)
		}
		if _, ok := r.Driver.Machine(vm.ID); ok {
			t.Errorf("%s: the machine of a half-made VM runs", name)
		}
		if _, err := os.Stat(filepath.Join(r.Dir, "vms", vm.ID)); !os.IsNotExist(err) {
			t.Errorf("%s: the directory of a half-made VM: %v", name, err)
		}
		r.consistent()
	}
	creating := func(vm *machine.VM) { vm.State = string(machine.StateCreating) }
	removed("its process runs", creating, func(string) {})
	removed("its process is gone", creating, func(id string) { r.Machine(t, id).Crash() })
	removed("its process was never recorded", func(vm *machine.VM) { creating(vm); vm.Process, vm.Spec = nil, nil },
		func(id string) { r.Machine(t, id).Crash() })
	r.empty()
}

func TestAdoptBooting(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*rig, string){
		"its process runs":               func(*rig, string) {},
		"its process is gone":            func(r *rig, id string) { r.Machine(r.t, id).Crash() },
		"its process was never recorded": func(r *rig, id string) { r.Machine(r.t, id).Crash(); r.change(id, forget) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, machinetest.Options{})
			vm, finish := r.booting(machine.RunRequest{Env: map[string]string{"GREETING": "hello"}})
			r.Stop(t)
			if got := row(t, r.Catalog, vm.ID).State; got != string(machine.StateBooting) {
				t.Fatalf("versd stopped in the middle of a boot, and the VM is %s", got)
			}
			spoil(r, vm.ID)
			finish()
			r.Start(t)
			got, err := r.Manager.WaitReady(r.ctx, r.Acme, vm.ID)
			must(t, err)
			if got.State != string(machine.StateRunning) || len(got.BootEnv) != 0 {
				t.Errorf("%+v", got)
			}
			if got := r.Exec(t, r.Acme, vm.ID, "echo $GREETING"); got != "hello\n" {
				t.Errorf("the variable of the run is %q", got)
			}
			r.consistent()
			r.Machine(t, vm.ID).Crash()
			r.AwaitState(t, r.Acme, vm.ID, machine.StateDead)
			r.empty()
		})
	}
}

func forget(vm *machine.VM) { vm.Process, vm.Spec = nil, nil }

func TestAdoptDeadAndGone(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	dead, gone, paused := r.cold(), r.cold(), r.cold()
	must(t, r.Manager.Pause(r.ctx, r.Acme, paused.ID, false))
	r.Machine(t, dead.ID).Crash()
	was := r.AwaitState(t, r.Acme, dead.ID, machine.StateDead)
	r.Stop(t)
	r.Driver.EndAll() // as a restart of the host does
	r.Start(t)
	for id, reason := range map[string]string{
		dead.ID: was.Reason, gone.ID: "its process ended while versd was not running", paused.ID: "its process ended while versd was not running",
	} {
		if vm := row(t, r.Catalog, id); vm.State != string(machine.StateDead) || vm.Reason != reason {
			t.Errorf("VM %s is %s: %s; want it dead: %s", id, vm.State, vm.Reason, reason)
		}
	}
	if bytes, vms := r.Manager.Booked(); bytes != 0 || vms != 0 {
		t.Errorf("%d bytes are booked for %d dead VMs", bytes, vms)
	}
	r.consistent()
	r.empty()
}

// versd was killed after a capture had switched the disk, before it was recorded.
func TestAdoptAfterACaptureCutShort(t *testing.T) {
	t.Parallel()
	for _, state := range []machine.State{machine.StateRunning, machine.StatePaused} {
		r := newRig(t, machinetest.Options{})
		vm := r.clone()
		if state == machine.StatePaused {
			must(t, r.Manager.Pause(r.ctx, r.Acme, vm.ID, false))
		}
		before := r.books()
		layer := row(t, r.Catalog, vm.ID).LayerID
		r.Stop(t)
		r.switchDisk(vm.ID)
		r.Start(t)
		if after := row(t, r.Catalog, vm.ID); after.LayerID == layer || after.State != string(state) {
			t.Errorf("it is %s on layer %s, as before the capture", after.State, after.LayerID)
		}
		if l, err := r.Catalog.Layer(r.ctx, layer); err != nil || !l.Frozen {
			t.Errorf("the layer that was switched away from is not frozen: %+v, %v", l, err)
		}
		before.Layers++
		before.LayerFiles++
		r.unchanged(before)
		r.consistent()

		// From here on it is a VM as any other.
		id, from := r.clones(vm.ID)
		r.goesOn(id, from)
		r.Restart(t)
		r.consistent()
		r.empty()
	}
}

// switchDisk makes a VM's machine do what a capture does up to where versd is killed.
func (r *rig) switchDisk(vmID string) {
	r.t.Helper()
	vm := row(r.t, r.Catalog, vmID)
	overlay, err := r.Commits.NewLayer(r.ctx, vm.OrgID, vm.LayerID, r.image(vm), vm.Config.FSSizeMiB<<20, 0, 0)
	must(r.t, err)
	i := r.Machine(r.t, vmID)
	got, err := i.Capture(r.ctx, machine.CaptureRequest{
		DeviceState: filepath.Join(r.Dir, "vms", vmID, "capture-"+ident.New()+".state"),
		Overlay:     machine.Layer{Path: r.Commits.LayerPath(overlay.ID), Format: "qcow2"}, KeepPaused: true,
	})
	must(r.t, err)
	got.Memory.Release()
}

func (r *rig) image(vm machine.VM) string {
	r.t.Helper()
	_, image, err := r.Commits.Chain(r.ctx, vm.LayerID)
	must(r.t, err)
	return image
}

// What a crash left is removed: directories and files without a row, and processes of VMs that nobody knows.
func TestAdoptRemovesWhatNobodyOwns(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm, _ := r.Clone(t, r.cold().ID)
	before := r.books()
	r.Stop(t)
	dir := filepath.Join(r.Dir, "vms", ident.New())
	must(t, os.MkdirAll(dir, 0o700))
	for _, name := range []string{"layers/" + ident.New() + ".qcow2", "flats/x.ram.1.tmp", "commits/y.tmp"} {
		must(t, os.WriteFile(filepath.Join(r.Dir, name), nil, 0o600))
	}
	stray := exec.CommandContext(r.ctx, "sleep", "1000")
	stray.Args[0], stray.Dir = "qemu-of-nobody", dir
	must(t, stray.Start())
	ended := make(chan error, 1)
	go func() { ended <- stray.Wait() }()
	machinetest.Await(t, "it has its name", func() bool { // which it gets a moment after its start
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", stray.Process.Pid))
		must(t, err)
		return len(name) > 0
	})
	r.Start(t)
	select {
	case <-ended:
	case <-time.After(machinetest.Patience / 4):
		t.Error("a stray process was not killed")
		must(t, stray.Process.Kill())
		<-ended
	}
	r.unchanged(before)
	r.goesOnWith(vm.ID)
	r.empty()
}

// A user id that a VM has is not given to another one.
func TestAdoptKeepsUserIDs(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	first, dead := r.cold(), r.cold()
	r.Machine(t, dead.ID).Crash()
	r.AwaitState(t, r.Acme, dead.ID, machine.StateDead)
	r.Restart(t)
	seen := map[int]string{}
	for _, vm := range []machine.VM{first, dead, r.cold(), r.clone()} {
		uid := row(t, r.Catalog, vm.ID).UID
		if other, taken := seen[uid]; taken {
			t.Errorf("VMs %s and %s share user id %d", vm.ID, other, uid)
		}
		seen[uid] = vm.ID
	}
	r.empty()
}

// A VM that versd cannot make sense of is an error with its id, not a VM that is lost.
func TestAdoptRefuses(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm := r.cold()
	r.cold() // a VM that is adopted before versd gives up
	r.Stop(t)
	good := row(t, r.Catalog, vm.ID)
	r.change(vm.ID, func(vm *machine.VM) { vm.Spec = json.RawMessage(`{"id": 1}`) })
	wantError(t, "start", r.TryStart(t), fault.Internal, "adopt VM "+vm.ID)
	if n := r.Driver.Networks(); n != 0 {
		t.Errorf("a versd that did not start has left %d networks open", n)
	}
	must(t, r.Catalog.UpdateVM(r.ctx, good))
	r.Start(t)
	r.goesOnWith(vm.ID)
	r.empty()
}
