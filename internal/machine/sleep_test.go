package machine_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/machine"
	"vers/internal/machine/fake"
	"vers/internal/machine/machinetest"
	"vers/internal/machine/testguest"
)

func (r *rig) sleep(vmID string) {
	r.t.Helper()
	must(r.t, r.Manager.Sleep(r.ctx, r.Acme, vmID, false))
}

// asleep checks that a VM sleeps, with nothing of it running or booked, and gives how far it had counted.
func (r *rig) asleep(vmID string) testguest.Counters {
	r.t.Helper()
	vm := row(r.t, r.Catalog, vmID)
	if shown, err := r.Manager.Get(r.ctx, r.Acme, vmID); err != nil || shown.State != vm.State || vm.State != string(machine.StateSleeping) {
		r.t.Fatalf("VM %s is %s in the catalogue and %s to its owner (%v), not sleeping", vmID, vm.State, shown.State, err)
	}
	if _, ok := r.Driver.Machine(vmID); ok {
		r.t.Errorf("VM %s sleeps and its machine runs", vmID)
	}
	image, err := r.Catalog.Commit(r.ctx, vm.MemoryBase)
	must(r.t, err)
	if !image.Deleted || vm.LayerID != image.LayerID {
		r.t.Errorf("VM %s sleeps on layer %s, its image is %+v", vmID, vm.LayerID, image)
	}
	must(r.t, r.Commits.Verify(r.ctx, image.ID))
	return r.instant(image)
}

// wakesWith checks that a VM goes on from where it fell asleep.
func (r *rig) wakesWith(vmID string, from testguest.Counters, wake func()) {
	r.t.Helper()
	wake()
	r.goesOn(vmID, from)
	r.consistent()
}

func (r *rig) resume(vmID string) func() {
	return func() {
		r.t.Helper()
		must(r.t, r.Manager.Resume(r.ctx, r.Acme, vmID, false))
	}
}

func TestSleepAndWake(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(r *rig) machine.VM{"a root VM": (*rig).cold, "a clone": (*rig).clone} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, machinetest.Options{})
			vm := make(r)
			other := r.cold()
			r.Exec(t, r.Acme, vm.ID, "echo kept > note")
			must(t, r.Machine(t, vm.ID).Write(100, 50, 7))
			hostname := r.Exec(t, r.Acme, vm.ID, "echo $HOME")
			booked, vms := r.Manager.Booked()
			awake, err := r.Manager.Usage(r.ctx, r.Acme)
			must(t, err)
			for round := range 12 { // more than one chain of images and layers
				r.sleep(vm.ID)
				r.sleep(vm.ID) // sleeps on
				if now, _ := r.Manager.Booked(); now != booked/int64(vms)*int64(vms-1) {
					t.Errorf("%d bytes are booked for %d VMs, %d when one sleeps", booked, vms, now)
				}
				usage, err := r.Manager.Usage(r.ctx, r.Acme)
				must(t, err)
				if usage.VMs != awake.VMs || usage.VCPUs != awake.VCPUs-1 || usage.MemoryMiB != awake.MemoryMiB-machinetest.Small.MemSizeMiB {
					t.Errorf("the organisation uses %+v, with one of its VMs asleep %+v", awake, usage)
				}
				from := r.asleep(vm.ID)
				r.consistent()
				switch round % 4 {
				case 0:
					r.wakesWith(vm.ID, from, r.resume(vm.ID))
				case 1:
					r.wakesWith(vm.ID, from, func() { r.Exec(t, r.Acme, vm.ID, "true") })
				case 2:
					r.wakesWith(vm.ID, from, func() { r.commit(vm.ID) })
				case 3:
					r.wakesWith(vm.ID, from, func() {
						children, _ := r.branch(vm.ID, 2)
						r.forget(children...)
					})
				}
			}
			page, err := r.Machine(t, vm.ID).ReadPage(149)
			must(t, err)
			if page[0] != 7 || page[4095] != 7 {
				t.Error("a page that was written before is lost")
			}
			if got := r.Exec(t, r.Acme, vm.ID, "cat note"); got != "kept\n" {
				t.Errorf("the note is %q", got)
			}
			if got := r.Exec(t, r.Acme, vm.ID, "echo $HOME"); got != hostname {
				t.Errorf("the guest is another one: %q", got)
			}
			got := row(t, r.Catalog, vm.ID)
			if got.SleptAt == nil || got.WokenAt == nil || got.WokenAt.Before(*got.SleptAt) || got.ParentCommit != vm.ParentCommit || got.SSHHostKey != vm.SSHHostKey || got.UID != vm.UID {
				t.Errorf("it was %+v and is %+v", vm, got)
			}
			r.goesOnWith(other.ID)
			commits, _, err := r.Catalog.Commits(r.ctx, r.Acme.OrgID, 100, 0)
			must(t, err)
			for _, c := range commits {
				r.tolerate("delete a commit", r.Manager.DeleteCommit(r.ctx, r.Acme, c.ID)) // that of a clone is in use
			}
			if after := r.Settle(t); after.Commits > machine.MaxGenerations+2 || after.Layers > 16 {
				t.Errorf("after 12 sleeps there are %d commits and %d layers", after.Commits, after.Layers)
			}
			r.empty()
		})
	}
}

// Images of sleep are not seen, and count as what is stored.
func TestSleepImagesAreInternal(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm := r.cold()
	must(t, r.Machine(t, vm.ID).Write(100, 1000, 1))
	r.sleep(vm.ID)
	list, n, err := r.Catalog.Commits(r.ctx, r.Acme.OrgID, 10, 0)
	must(t, err)
	if n != 0 || len(list) != 0 {
		t.Errorf("%d commits are listed: %+v", n, list)
	}
	image := row(t, r.Catalog, vm.ID).MemoryBase
	_, err = r.Manager.Restore(r.ctx, r.Acme, image, machine.NetworkRequest{})
	wantError(t, "restore an image", err, fault.NotFound, image)
	wantError(t, "delete an image", r.Manager.DeleteCommit(r.ctx, r.Acme, image), fault.NotFound, image)
	usage, err := r.Manager.Usage(r.ctx, r.Acme)
	must(t, err)
	if usage.StoredBytes < 1000*4096 {
		t.Errorf("a VM that sleeps with 4 MB stores %d bytes", usage.StoredBytes)
	}
	r.Collect(t)
	r.asleep(vm.ID)
	r.empty()
}

func TestSleepRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm := r.cold()
	wantError(t, "another organisation", r.Manager.Sleep(r.ctx, r.Other, vm.ID, false), fault.NotFound, vm.ID)
	must(t, r.Manager.Pause(r.ctx, r.Acme, vm.ID, false))
	wantError(t, "a paused VM", r.Manager.Sleep(r.ctx, r.Acme, vm.ID, false), fault.Conflict, "is paused")
	must(t, r.Manager.Resume(r.ctx, r.Acme, vm.ID, false))
	r.sleep(vm.ID)
	wantError(t, "pause while it sleeps", r.Manager.Pause(r.ctx, r.Acme, vm.ID, false), fault.Conflict, "is sleeping")
	wantError(t, "look at it", r.Manager.Reachable(r.ctx, r.Acme, vm.ID), fault.Conflict, "put to sleep")
	must(t, r.Manager.SetLabels(r.ctx, r.Acme, vm.ID, map[string]string{"a": "b"}))
	r.asleep(vm.ID) // none of this has woken it
	must(t, r.Manager.Resize(r.ctx, r.Acme, vm.ID, machinetest.Small.FSSizeMiB*2, false))
	r.Machine(t, vm.ID).Crash()
	r.AwaitState(t, r.Acme, vm.ID, machine.StateDead)
	wantError(t, "a dead VM", r.Manager.Sleep(r.ctx, r.Acme, vm.ID, false), fault.Conflict, "is dead")
	r.empty()
}

// Ten clients at once, each by another way, wake a VM once.
func TestManyWakeItOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	r.Driver.Serve(80, func(_ string, c net.Conn) { fmt.Fprint(c, "hello") })
	vm := r.clone()
	client, err := r.Manager.Guest(r.ctx, r.Acme, vm.ID) // from before it sleeps
	must(t, err)
	for range 5 {
		r.sleep(vm.ID)
		from := r.asleep(vm.ID)
		var s starts
		r.Driver.SetHook(s.hook)
		var woken atomic.Int64
		r.Manager.OnWake(func(_ time.Duration, err error) { must(t, err); woken.Add(1) })
		r.together(10, func(worker int) {
			switch worker % 5 {
			case 0:
				r.Exec(t, r.Acme, vm.ID, "true")
			case 1:
				c, err := r.Manager.DialGuest(r.ctx, r.Acme, vm.ID, 80)
				if err != nil {
					t.Errorf("dial: %v", err)
					return
				}
				defer c.Close()
				var hello [5]byte
				if _, err := c.Read(hello[:]); err != nil || string(hello[:]) != "hello" {
					t.Errorf("the guest says %q, %v", hello, err)
				}
			case 2:
				if _, err := client.Hello(r.ctx); err != nil {
					t.Errorf("an older client: %v", err)
				}
			case 3:
				if err := r.Manager.Resume(r.ctx, r.Acme, vm.ID, false); err != nil {
					t.Errorf("resume: %v", err)
				}
			case 4:
				if _, err := r.Manager.Guest(r.ctx, r.Acme, vm.ID); err != nil {
					t.Errorf("guest: %v", err)
				}
			}
		})
		r.Driver.SetHook(nil)
		s.want(t, "ten clients", 0, 1)
		if woken.Load() != 1 {
			t.Errorf("it woke %d times", woken.Load())
		}
		r.goesOn(vm.ID, from)
	}
	machinetest.Await(t, "all connections are closed", func() bool { return r.Manager.Inside(vm.ID) == 0 })
	r.consistent()
	r.empty()
}

// A VM for which there is no memory any more sleeps on, and wakes when there is.
func TestWakeWithoutRoom(t *testing.T) {
	t.Parallel()
	limit := int64(2)
	r := newRig(t, machinetest.Options{Quotas: func(context.Context, string) (catalog.Quotas, error) {
		return catalog.Quotas{VMs: &limit, VCPUs: ptr(int64(1))}, nil
	}})
	vm := r.cold()
	r.sleep(vm.ID)
	from := r.asleep(vm.ID)
	other := r.cold()
	_, err := r.Manager.Guest(r.ctx, r.Acme, vm.ID)
	wantError(t, "wake", err, fault.Exhausted, "Quota of vCPUs exceeded")
	r.asleep(vm.ID)
	r.unchangedBy(func() {
		_, err := r.Manager.Guest(r.ctx, r.Acme, vm.ID)
		wantError(t, "wake again", err, fault.Exhausted, "wake VM '"+vm.ID+"'")
	})
	must(t, r.Manager.Delete(r.ctx, r.Acme, other.ID, false))
	limit = 0 // it is a VM already
	r.wakesWith(vm.ID, from, r.resume(vm.ID))
	r.empty()
}

func ptr[T any](v T) *T { return &v }

func (r *rig) unchangedBy(do func()) {
	r.t.Helper()
	before := r.books()
	do()
	r.unchanged(before)
}

// Whatever fails in falling asleep, the VM runs on; whatever fails in waking, it sleeps on; and nothing is left.
func TestSleepFails(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm := r.clone()
	client, err := r.Manager.Guest(r.ctx, r.Acme, vm.ID)
	must(t, err)
	for _, op := range []fake.Op{fake.OpCapture, fake.OpSwitch} {
		r.Driver.SetHook(failing(op, always))
		if err := r.Manager.Sleep(r.ctx, r.Acme, vm.ID, false); err == nil {
			t.Errorf("%s: it sleeps", op)
		}
		r.Driver.SetHook(nil)
		r.consistent()
		if _, err := client.Hello(r.ctx); err != nil {
			t.Errorf("%s: %v", op, err)
		}
	}
	r.Driver.SetHook(func(op fake.Op, _ machine.Spec) error {
		if op == fake.OpSwitch {
			r.Machine(t, vm.ID).PowerOff() // after the capture
		}
		return nil
	})
	// The capture was good, so what sleeps is what ran before the end.
	err = r.Manager.Sleep(r.ctx, r.Acme, vm.ID, false)
	r.Driver.SetHook(nil)
	must(t, err)
	r.wakesWith(vm.ID, r.asleep(vm.ID), r.resume(vm.ID))

	r.sleep(vm.ID)
	from := r.asleep(vm.ID)
	for _, op := range []fake.Op{fake.OpNetwork, fake.OpStart, fake.OpLoad, fake.OpResume} {
		r.unchangedBy(func() {
			r.Driver.SetHook(failing(op, always))
			_, err := client.Hello(r.ctx)
			if !errors.Is(err, errTest) {
				t.Errorf("%s: %v", op, err)
			}
			r.Driver.SetHook(nil)
		})
		if again := r.asleep(vm.ID); again != from {
			t.Errorf("%s: it slept with %+v and sleeps with %+v", op, from, again)
		}
		r.consistent()
	}
	r.wakesWith(vm.ID, from, r.resume(vm.ID))
	r.empty()
}

// A guest whose agent refuses to be told the time runs all the same.
func TestWakeWithoutAgent(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{ReadyLimit: 200 * time.Millisecond})
	vm := r.cold()
	r.sleep(vm.ID)
	from := r.asleep(vm.ID)
	r.Driver.SetHook(failing(fake.OpRenew, always))
	r.wakesWith(vm.ID, from, r.resume(vm.ID))
	r.Driver.SetHook(nil)
	r.empty()
}

// versd is killed at every step of falling asleep and waking. Killed means here: the hook does not let it go on, the next
// one starts with the same rows, files and machines.
func TestAdoptSleeping(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm := r.clone()
	r.sleep(vm.ID)
	from := r.asleep(vm.ID)
	for range 2 {
		r.Restart(t)
		r.asleep(vm.ID)
		r.consistent()
	}
	r.wakesWith(vm.ID, from, r.resume(vm.ID))
	r.sleep(vm.ID)
	from = r.asleep(vm.ID)
	r.Stop(t)
	r.Driver.EndAll()
	r.Start(t)
	r.wakesWith(vm.ID, from, r.resume(vm.ID))

	// Killed after the VM sleeps and before its process was ended.
	r.Driver.SetHook(func(op fake.Op, s machine.Spec) error {
		if op == fake.OpKill && s.ID == vm.ID {
			return errTest
		}
		return nil
	})
	r.sleep(vm.ID)
	if _, ok := r.Driver.Machine(vm.ID); !ok {
		t.Fatal("its process has ended, which is not what is tested")
	}
	r.Stop(t)
	r.Driver.SetHook(nil)
	r.Start(t)
	from = r.asleep(vm.ID)
	r.wakesWith(vm.ID, from, r.resume(vm.ID))
	r.empty()
}

// A wake that was cut short: the row says sleeping and names a process that was started for it.
func TestAdoptHalfAwake(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	for _, op := range []fake.Op{fake.OpLoad, fake.OpResume} {
		vm := r.clone()
		r.sleep(vm.ID)
		from := r.asleep(vm.ID)
		var half machine.VM
		r.Driver.SetHook(func(at fake.Op, s machine.Spec) error {
			if at == op && s.ID == vm.ID {
				half = row(t, r.Catalog, vm.ID)
				return errTest
			}
			return nil
		})
		if _, err := r.Manager.Guest(r.ctx, r.Acme, vm.ID); !errors.Is(err, errTest) {
			t.Errorf("%s: %v", op, err)
		}
		want := map[fake.Op]machine.State{fake.OpLoad: machine.StateSleeping, fake.OpResume: machine.StateRunning}[op]
		if half.State != string(want) || len(half.Process) == 0 {
			t.Errorf("at %s the row says %s with process %s, want %s", op, half.State, half.Process, want)
		}
		r.Driver.SetHook(nil)
		r.wakesWith(vm.ID, from, r.resume(vm.ID))
		if op == fake.OpResume {
			// Killed after the record and before the first instruction, or before the guest was told.
			r.Stop(t)
			must(t, r.Machine(t, vm.ID).Pause(r.ctx))
			r.change(vm.ID, func(vm *machine.VM) { vm.WokenAt = nil })
			r.Start(t)
			machinetest.Await(t, "the guest is told", func() bool { return row(t, r.Catalog, vm.ID).WokenAt != nil })
		} else {
			// Killed with a process that is loaded or not: it never ran.
			r.sleep(vm.ID)
			from := r.asleep(vm.ID)
			slept := row(t, r.Catalog, vm.ID)
			r.resume(vm.ID)()
			woken := row(t, r.Catalog, vm.ID)
			r.Stop(t)
			must(t, r.Machine(t, vm.ID).Pause(r.ctx))
			r.change(vm.ID, func(vm *machine.VM) { *vm = slept; vm.Process, vm.Spec = woken.Process, woken.Spec })
			r.Start(t)
			if again := r.asleep(vm.ID); again != from {
				t.Errorf("it slept with %+v and sleeps with %+v", from, again)
			}
			r.wakesWith(vm.ID, from, r.resume(vm.ID))
		}
		r.Exec(t, r.Acme, vm.ID, "true")
		r.consistent()
	}
	r.empty()
}

// A guest that is used, or works, stays awake; one that does neither falls asleep.
func TestIdle(t *testing.T) {
	t.Parallel()
	const after = 10 * time.Minute
	r := newRig(t, machinetest.Options{SleepAfter: after})
	r.Driver.Serve(22, func(_ string, c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	vm, never := r.clone(), r.cold()
	must(t, r.Manager.SetTerms(r.ctx, r.Acme, never.ID, machine.Terms{SleepAfter: ptr(time.Duration(0))}))
	now := time.Now()
	look := func(later time.Duration, want machine.State, when string) {
		t.Helper()
		now = now.Add(later)
		r.Manager.Tend(now)
		if got := row(t, r.Catalog, vm.ID).State; got != string(want) {
			t.Fatalf("%s it is %s", when, got)
		}
	}
	m := r.Machine(t, vm.ID)
	look(0, machine.StateRunning, "at the first look")
	for range 10 {
		m.Work(time.Minute / 10)
		look(time.Minute, machine.StateRunning, "computing")
	}
	for range 10 {
		r.Driver.Talk(vm.ID, 1, 0)
		look(time.Minute, machine.StateRunning, "opening connections")
	}
	for range 10 {
		r.Driver.Talk(vm.ID, 0, 60*10)
		look(time.Minute, machine.StateRunning, "talking")
	}
	c, err := r.Manager.DialGuest(r.ctx, r.Acme, vm.ID, 22)
	must(t, err)
	look(after, machine.StateRunning, "with somebody connected")
	look(after, machine.StateRunning, "with somebody connected for long")
	must(t, c.Close())
	now = now.Add(2 * after) // the close was at the true time
	r.Exec(t, r.Acme, vm.ID, "true")
	must(t, r.Manager.Pause(r.ctx, r.Acme, vm.ID, false))
	look(after, machine.StatePaused, "paused")
	must(t, r.Manager.Resume(r.ctx, r.Acme, vm.ID, false))
	m.Work(time.Hour)
	look(0, machine.StateRunning, "resumed")
	for range 9 {
		m.Work(time.Second)
		r.Driver.Talk(vm.ID, 0, 20)
		look(time.Minute, machine.StateRunning, "idle, but not for long enough")
	}
	look(time.Minute, machine.StateSleeping, "without use")
	r.wakesWith(vm.ID, r.asleep(vm.ID), func() { r.Exec(t, r.Acme, vm.ID, "true") })
	look(time.Minute, machine.StateRunning, "woken")
	if got := row(t, r.Catalog, never.ID).State; got != string(machine.StateRunning) {
		t.Errorf("the VM that never sleeps is %s", got)
	}
	r.empty()
}

// A VM that cannot fall asleep is not tried at every look.
func TestIdleFails(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{SleepAfter: time.Minute})
	vm := r.cold()
	var tries atomic.Int64
	r.Driver.SetHook(func(op fake.Op, _ machine.Spec) error {
		if op == fake.OpCapture {
			tries.Add(1)
			return errTest
		}
		return nil
	})
	now := time.Now()
	r.Manager.Tend(now)
	r.Manager.Tend(now.Add(time.Minute + time.Second))
	for range 10 {
		r.Manager.Tend(now.Add(time.Minute))
	}
	if tries.Load() != 1 {
		t.Errorf("it was tried %d times", tries.Load())
	}
	r.Driver.SetHook(nil)
	r.Exec(t, r.Acme, vm.ID, "true")
	r.empty()
}

// A VM is deleted when its time is over, awake or asleep, also by the next versd; what is made of it lives on.
func TestTTL(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	ttl := machine.WithTerms(machine.Terms{TTL: ptr(time.Hour), SleepAfter: ptr(time.Minute)})
	vm, err := r.Manager.Run(r.ctx, r.Acme, machine.RunRequest{Config: machinetest.Small, WaitBoot: true, Options: []machine.Option{ttl}})
	must(t, err)
	r.AwaitTemplate(t)
	restored, err := r.Manager.Run(r.ctx, r.Acme, machine.RunRequest{Config: machinetest.Small, Options: []machine.Option{ttl}})
	must(t, err)
	for _, vm := range []machine.VM{vm, restored} {
		if vm.ExpiresAt == nil || !vm.ExpiresAt.Equal(vm.CreatedAt.Add(time.Hour)) || vm.SleepAfter == nil || *vm.SleepAfter != 60 {
			t.Errorf("%+v", vm)
		}
	}
	children, c := r.branch(vm.ID, 1)
	if child := children[0]; child.ExpiresAt != nil || child.SleepAfter == nil || *child.SleepAfter != 60 {
		t.Errorf("a child has %v and %v", child.ExpiresAt, child.SleepAfter)
	}
	kept, err := r.Manager.Restore(r.ctx, r.Acme, c.ID, machine.NetworkRequest{})
	must(t, err)
	if kept.ExpiresAt != nil || kept.SleepAfter != nil {
		t.Errorf("a restored VM has %v and %v", kept.ExpiresAt, kept.SleepAfter)
	}
	more, err := r.Manager.Restore(r.ctx, r.Acme, c.ID, machine.NetworkRequest{}, ttl)
	must(t, err)
	must(t, r.Manager.SetTerms(r.ctx, r.Acme, more.ID, machine.Terms{TTL: ptr(3 * time.Hour)}))
	r.sleep(restored.ID)
	r.Manager.Tend(vm.CreatedAt.Add(time.Hour - time.Second))
	r.Restart(t)
	r.Manager.Tend(restored.CreatedAt.Add(time.Hour))
	for id, there := range map[string]bool{vm.ID: false, restored.ID: false, children[0].ID: true, kept.ID: true, more.ID: true} {
		if _, err := r.Manager.Get(r.ctx, r.Acme, id); fault.Is(err, fault.NotFound) == there {
			t.Errorf("VM %s: %v, should be there: %v", id, err, there)
		}
	}
	must(t, r.Manager.SetTerms(r.ctx, r.Acme, more.ID, machine.Terms{TTL: ptr(time.Duration(0))}))
	r.Manager.Tend(time.Now().Add(1000 * time.Hour))
	if _, err := r.Manager.Get(r.ctx, r.Acme, more.ID); err != nil {
		t.Errorf("its end was taken back: %v", err)
	}
	for _, bad := range []machine.Terms{{SleepAfter: ptr(time.Second)}, {SleepAfter: ptr(-time.Hour)}, {TTL: ptr(-time.Hour)}, {TTL: ptr(time.Millisecond)}} {
		wantError(t, "terms that make no sense", r.Manager.SetTerms(r.ctx, r.Acme, more.ID, bad), fault.Invalid, "")
	}
	r.empty()
}

// Sleep, exec, commit, branch, pause, idle looks and a delete of one VM at once.
func TestRaceWithSleep(t *testing.T) {
	t.Parallel()
	const workers, rounds = 8, 6
	for _, end := range []string{"stays", "is deleted", "crashes"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, machinetest.Options{})
			vm := r.clone()
			must(t, r.Manager.SetTerms(r.ctx, r.Acme, vm.ID, machine.Terms{SleepAfter: ptr(time.Minute)}))
			r.together(workers, func(worker int) {
				for round := range rounds {
					if worker == 0 && round == rounds/2 {
						switch end {
						case "is deleted":
							must(t, r.Manager.Delete(r.ctx, r.Acme, vm.ID, false))
						case "crashes":
							if i, ok := r.Driver.Machine(vm.ID); ok {
								i.Crash()
							}
						}
					}
					switch worker {
					case 0, 1:
						r.tolerate("sleep", r.Manager.Sleep(r.ctx, r.Acme, vm.ID, false))
					case 2:
						r.Manager.Tend(time.Now().Add(time.Hour))
					default:
						r.act(vm.ID, worker, round)
					}
				}
			})
			if end == "stays" {
				r.resume(vm.ID)()
				r.Exec(t, r.Acme, vm.ID, "true")
			}
			if end != "crashes" { // a crash may be noticed yet
				r.consistent()
			}
			commits, _, err := r.Catalog.Commits(r.ctx, r.Acme.OrgID, 1000, 0)
			must(t, err)
			for _, c := range commits {
				must(t, r.Commits.Verify(r.ctx, c.ID))
				r.instant(c)
			}
			r.empty()
		})
	}
}
