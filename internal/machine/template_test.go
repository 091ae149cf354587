package machine_test

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/machine"
	"vers/internal/machine/fake"
	"vers/internal/machine/machinetest"
)

// run runs a VM of acme that may come from a template.
func (r *rig) run(change func(*catalog.VMConfig)) machine.VM {
	r.t.Helper()
	config := machinetest.Small
	if change != nil {
		change(&config)
	}
	vm, err := r.Manager.Run(r.ctx, r.Acme, machine.RunRequest{Config: config, WaitBoot: true})
	must(r.t, err)
	return vm
}

func TestTemplate(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	seen := &starts{}
	r.Driver.SetHook(seen.hook)
	first := r.run(nil)
	template := r.AwaitTemplate(t)
	seen.want(t, "the first run", 1, 0)
	second := r.run(nil)
	seen.want(t, "the second run", 0, 1)
	if second.ParentCommit != "" || second.GrandparentVM != "" || second.MemoryBase != template.ID || second.State != string(machine.StateRunning) {
		t.Errorf("from a template: %+v", second)
	}
	r.goesOn(second.ID, r.instant(template))
	r.cold()
	seen.want(t, "a cold run", 1, 0)

	// A template is nobody's.
	visible, total, err := r.Catalog.Commits(r.ctx, r.Acme.OrgID, 10, 0)
	must(t, err)
	if len(visible) != 0 || total != 0 {
		t.Errorf("commits are listed: %+v", visible)
	}
	_, err = r.Manager.Restore(r.ctx, r.Acme, template.ID, machine.NetworkRequest{})
	wantError(t, "restore a template", err, fault.NotFound, "commit '"+template.ID+"' not found")
	wantError(t, "delete a template", r.Manager.DeleteCommit(r.ctx, r.Acme, template.ID), fault.NotFound, "commit '"+template.ID+"' not found")

	// It outlives the VM it was taken of, and versd.
	must(t, r.Manager.Delete(r.ctx, r.Acme, first.ID, false))
	r.Collect(t)
	r.Restart(t)
	r.run(nil)
	seen.want(t, "a run after a restart", 0, 1)
	_, err = r.Manager.Run(r.ctx, r.Other, machine.RunRequest{Config: machinetest.Small, WaitBoot: true})
	must(t, err)
	seen.want(t, "a run of another organisation", 1, 0)
	r.empty()
}

// Whatever shapes the state after the boot is in the key: nothing stale is restored.
func TestStaleTemplate(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	seen := &starts{}
	r.Driver.SetHook(seen.hook)
	r.run(nil)
	r.AwaitTemplate(t)
	seen.want(t, "the first run", 1, 0)
	must(t, r.Images.AddKernel("other.bin", "2"))
	for name, change := range map[string]func(*catalog.VMConfig){
		"more memory":    func(c *catalog.VMConfig) { c.MemSizeMiB++ },
		"more vCPUs":     func(c *catalog.VMConfig) { c.VCPUCount++ },
		"a larger disk":  func(c *catalog.VMConfig) { c.FSSizeMiB++ },
		"another kernel": func(c *catalog.VMConfig) { c.KernelName = "other.bin" },
	} {
		r.run(change)
		seen.want(t, name, 1, 0)
		r.run(change) // waits for the template of the one before
		seen.want(t, name+" again", 0, 1)
	}
	must(t, r.Images.Add(r.ctx, fake.Image{Name: machine.Defaults.ImageName}))
	r.run(nil)
	seen.want(t, "an image that was made anew", 1, 0)
	must(t, r.Images.AddKernel(machine.Defaults.KernelName, "3"))
	r.run(nil)
	seen.want(t, "a kernel that was made anew", 1, 0)
	r.empty()
}

// A template that cannot be loaded is dropped, and the VM boots.
func TestUnusableTemplate(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*rig, machine.Commit){
		"its device state is damaged": func(r *rig, c machine.Commit) {
			must(r.t, os.WriteFile(r.Commits.DeviceState(c.ID), []byte("rubbish"), 0o600))
		},
		"its disk is gone": func(r *rig, c machine.Commit) { must(r.t, os.Remove(r.Commits.LayerPath(c.LayerID))) },
		"it cannot be started": func(r *rig, _ machine.Commit) {
			r.Driver.SetHook(failing(fake.OpLoad, nth(1)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, machinetest.Options{})
			first := r.run(nil)
			before := r.AwaitTemplate(t)
			must(t, r.Manager.Delete(r.ctx, r.Acme, first.ID, false))
			r.Settle(t)
			spoil(r, before)
			vm := r.run(nil)
			if vm.MemoryBase != "" || vm.State != string(machine.StateRunning) {
				t.Errorf("%+v", vm)
			}
			if after := r.AwaitTemplate(t); after.ID == before.ID {
				t.Error("the template is still there")
			}
			seen := &starts{}
			r.Driver.SetHook(seen.hook)
			r.run(nil)
			seen.want(t, "the next run", 0, 1)
			r.empty()
		})
	}
}

// Without room for a VM its template is not to blame.
func TestTemplateStaysWhenMemoryIsShort(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{MemoryMiB: 200})
	r.run(nil)
	template := r.AwaitTemplate(t)
	_, err := r.Manager.Run(r.ctx, r.Acme, machine.RunRequest{Config: machinetest.Small, WaitBoot: true})
	wantError(t, "run without room", err, fault.Exhausted, "Insufficient system resources")
	if again := r.AwaitTemplate(t); again.ID != template.ID {
		t.Error("the template was dropped")
	}
	r.empty()
}

// A template that cannot be written costs the next run a boot, no more.
func TestTemplateIsNotWritten(t *testing.T) {
	t.Parallel()
	for _, op := range []fake.Op{fake.OpCapture, fake.OpSwitch} {
		r := newRig(t, machinetest.Options{})
		r.Driver.SetHook(failing(op, nth(1)))
		r.run(nil)
		seen := &starts{}
		r.Driver.SetHook(seen.hook)
		r.run(nil)
		seen.want(t, "after a failure at "+string(op), 1, 0)
		r.consistent()
		r.empty()
	}
	r := newRig(t, machinetest.Options{})
	hook, unblock := r.blockAtSwitch("commits")
	r.Driver.SetHook(hook)
	r.run(nil)
	r.run(nil) // waits for what becomes of the first one's template
	unblock()
	seen := &starts{}
	r.Driver.SetHook(seen.hook)
	r.run(nil)
	seen.want(t, "after failures to write", 1, 0)
	r.empty()
}

// Runs of one kind at the same time boot once.
func TestRunsShareOneBoot(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	seen := &starts{}
	r.Driver.SetHook(seen.hook)
	const runs = 8
	var group sync.WaitGroup
	for range runs {
		group.Go(func() {
			if _, err := r.Manager.Run(r.ctx, r.Acme, machine.RunRequest{Config: machinetest.Small, WaitBoot: true}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	seen.want(t, "runs at the same time", 1, runs-1)
	r.consistent()
	r.empty()
}

// Where the first boot comes to nothing, those who waited for it boot themselves; who gives up waiting is told why.
func TestFirstBootFails(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	seen := &starts{}
	booting := make(chan string, 1)
	var mu sync.Mutex
	first := ""
	r.Driver.SetHook(func(op fake.Op, s machine.Spec) error {
		_ = seen.hook(op, s)
		mu.Lock()
		defer mu.Unlock()
		if op == fake.OpReady && first == "" {
			first = s.ID
			booting <- first
		}
		if op == fake.OpReady && s.ID == first {
			return errTest
		}
		return nil
	})
	run := func(ctx context.Context, result chan<- error) {
		_, err := r.Manager.Run(ctx, r.Acme, machine.RunRequest{Config: machinetest.Small, WaitBoot: true})
		result <- err
	}
	boots, gives, waits := make(chan error, 1), make(chan error, 1), make(chan error, 1)
	go run(r.ctx, boots)
	id := <-booting
	impatient, cancel := context.WithTimeout(r.ctx, time.Second)
	defer cancel()
	go run(r.ctx, waits)
	run(impatient, gives)
	wantError(t, "who does not wait", <-gives, fault.Timeout, "another VM of this kind is booting")
	r.Machine(t, id).Crash()
	wantError(t, "the first boot", <-boots, fault.Conflict, "is dead: did not boot: the guest or its process ended while it booted")
	if err := <-waits; err != nil {
		t.Errorf("who waited: %v", err)
	}
	seen.want(t, "in all", 2, 0)
	r.empty()
}
