package machine_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"vers/internal/fault"
	"vers/internal/machine"
	"vers/internal/machine/machinetest"
)

// together runs n workers at the same time and waits for them, for a bounded time: one that hangs fails the test.
func (r *rig) together(n int, work func(worker int)) {
	r.t.Helper()
	var group sync.WaitGroup
	begin := make(chan struct{})
	for worker := range n {
		group.Go(func() {
			<-begin
			work(worker)
		})
	}
	close(begin)
	done := make(chan struct{})
	go func() {
		group.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-r.ctx.Done():
		r.t.Fatal("some of the workers do not come to an end")
	}
}

// tolerate fails the test for an error other than what a VM or commit that is just changed by others gives.
func (r *rig) tolerate(what string, err error) {
	r.t.Helper()
	if err != nil && !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.NotFound) {
		r.t.Errorf("%s: %v (%v)", what, err, fault.KindOf(err))
	}
}

// forget deletes VMs that a worker has made.
func (r *rig) forget(vms ...machine.VM) {
	r.t.Helper()
	for _, vm := range vms {
		if err := r.Manager.Delete(r.ctx, r.Acme, vm.ID, false); err != nil {
			r.t.Errorf("delete a VM of one's own: %v", err)
		}
	}
}

// act does something to a VM, chosen at random.
func (r *rig) act(vmID string, worker, round int) {
	r.t.Helper()
	m := r.Manager
	switch rand.IntN(8) {
	case 0:
		r.tolerate("pause", m.Pause(r.ctx, r.Acme, vmID, false))
	case 1, 2:
		r.tolerate("resume", m.Resume(r.ctx, r.Acme, vmID, false))
	case 3:
		_, _, err := m.Commit(r.ctx, r.Acme, vmID, machine.CommitRequest{KeepPaused: round%5 == 0})
		r.tolerate("commit", err)
	case 4:
		vms, c, _, err := m.Branch(r.ctx, r.Acme, vmID, machine.BranchRequest{Count: 1 + round%3})
		r.tolerate("branch", err)
		r.forget(vms...)
		if err == nil {
			r.tolerate("delete a commit", m.DeleteCommit(r.ctx, r.Acme, c.ID))
		}
	case 5:
		r.tolerate("labels", m.SetLabels(r.ctx, r.Acme, vmID, map[string]string{"by": fmt.Sprint(worker), "round": fmt.Sprint(round)}))
	case 6:
		_, err := m.List(r.ctx, r.Acme)
		r.tolerate("list", err)
	case 7: // a guest may be paused by another worker for as long as it takes
		ctx, cancel := context.WithTimeout(r.ctx, 20*time.Millisecond)
		defer cancel()
		if client, err := m.Guest(ctx, r.Acme, vmID); err == nil {
			_, _ = client.Hello(ctx)
		}
	}
}

// Many do everything to one VM, until one of them, or a crash, ends it.
func TestRaceOnOneVM(t *testing.T) {
	t.Parallel()
	const workers, rounds = 12, 8
	for _, end := range []string{"stays", "is deleted", "crashes"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, machinetest.Options{})
			vm := r.clone()
			r.together(workers, func(worker int) {
				for round := range rounds {
					if worker == 0 && round == rounds/2 {
						switch end {
						case "is deleted":
							must(t, r.Manager.Delete(r.ctx, r.Acme, vm.ID, false))
						case "crashes":
							r.Machine(t, vm.ID).Crash()
						}
					}
					r.act(vm.ID, worker, round)
				}
			})
			switch end {
			case "stays":
				must(t, r.Manager.Resume(r.ctx, r.Acme, vm.ID, false))
				r.Exec(t, r.Acme, vm.ID, "true")
			case "crashes":
				r.AwaitState(t, r.Acme, vm.ID, machine.StateDead)
			}
			r.consistent()
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

// Commits, branches and deletes of the same VM at the same instant: each succeeds as a whole or says why not.
func TestRaceToDelete(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	for range 15 {
		vm := r.cold()
		var deleted sync.Map
		r.together(6, func(worker int) {
			switch worker {
			case 0, 1:
				if err := r.Manager.Delete(r.ctx, r.Acme, vm.ID, false); err == nil {
					deleted.Store(worker, true)
				} else {
					wantError(t, "delete", err, fault.NotFound, "VM '"+vm.ID+"' not found")
				}
			case 2, 3:
				c, _, err := r.Manager.Commit(r.ctx, r.Acme, vm.ID, machine.CommitRequest{})
				r.tolerate("commit", err)
				if err == nil {
					restored, err := r.Manager.Restore(r.ctx, r.Acme, c.ID, machine.NetworkRequest{})
					must(t, err)
					r.forget(restored)
				}
			case 4:
				vms, _, _, err := r.Manager.Branch(r.ctx, r.Acme, vm.ID, machine.BranchRequest{Count: 2})
				r.tolerate("branch", err)
				r.forget(vms...)
			case 5:
				r.tolerate("pause", r.Manager.Pause(r.ctx, r.Acme, vm.ID, false))
			}
		})
		_, first := deleted.Load(0)
		_, second := deleted.Load(1)
		if first == second {
			t.Errorf("of two deletes of one VM %v and %v succeeded", first, second)
		}
	}
	r.consistent()
	r.empty()
}

// A commit's only VM is deleted, and the commit too, while it is restored and garbage is collected: who gets a VM has a
// whole one.
func TestRaceWithCollection(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{FlatBudget: 1}) // every flat file that no VM maps goes at once
	for range 15 {
		vm := r.cold()
		c := r.commit(vm.ID)
		r.together(7, func(worker int) {
			switch worker {
			case 0:
				r.forget(vm)
			case 1:
				r.tolerate("delete the commit", r.Manager.DeleteCommit(r.ctx, r.Acme, c.ID))
			case 2, 3:
				for range 10 {
					if _, err := r.Commits.Collect(r.ctx); err != nil {
						t.Errorf("collect: %v", err)
					}
				}
			default:
				clones, err := r.Manager.BranchCommit(r.ctx, r.Acme, c.ID, 2, machine.NetworkRequest{})
				r.tolerate("restore", err)
				for _, clone := range clones {
					child, own := r.Clone(t, clone.ID)
					r.goesOn(child.ID, r.instant(own))
					r.forget(child, clone)
				}
			}
		})
	}
	r.consistent()
	r.empty()
}

// Two hundred callers of two organisations at once, each with a VM of its own.
func TestManyCallers(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm := r.run(nil)
	r.AwaitTemplate(t)
	c := r.commit(vm.ID)
	r.together(200, func(worker int) {
		caller := r.Acme
		var made []machine.VM
		var err error
		switch worker % 4 {
		case 0:
			made, err = r.Manager.BranchCommit(r.ctx, r.Acme, c.ID, 1, machine.NetworkRequest{})
		case 1:
			made, _, _, err = r.Manager.Branch(r.ctx, r.Acme, vm.ID, machine.BranchRequest{Count: 1})
		default:
			if worker%4 == 3 {
				caller = r.Other
			}
			var one machine.VM
			one, err = r.Manager.Run(r.ctx, caller, machine.RunRequest{Config: machinetest.Small, WaitBoot: true})
			made = []machine.VM{one}
		}
		if err != nil {
			t.Errorf("caller %d: %v", worker, err)
			return
		}
		if err := r.Manager.SetLabels(r.ctx, caller, made[0].ID, map[string]string{"caller": fmt.Sprint(worker)}); err != nil {
			t.Errorf("caller %d: %v", worker, err)
		}
		if worker%8 < 4 {
			if err := r.Manager.Delete(r.ctx, caller, made[0].ID, false); err != nil {
				t.Errorf("caller %d: %v", worker, err)
			}
		}
	})
	rows, err := r.Catalog.AllVMs(r.ctx)
	must(t, err)
	if len(rows) != 101 || r.Driver.Running() != 101 || r.Driver.Networks() != 101 {
		t.Errorf("%d VMs, %d machines and %d networks, want 101", len(rows), r.Driver.Running(), r.Driver.Networks())
	}
	if bytes, vms := r.Manager.Booked(); vms != 101 || bytes != 101*129<<20 || r.Manager.UIDs() != 101 {
		t.Errorf("%d bytes are booked for %d VMs, and %d user ids", bytes, vms, r.Manager.UIDs())
	}
	r.consistent()
	r.Restart(t)
	r.consistent()
	r.empty()
}

// Whoever asks for the last of the memory at the same time, only as many get it as there is.
func TestRaceForMemory(t *testing.T) {
	t.Parallel()
	const room = 3
	r := newRig(t, machinetest.Options{MemoryMiB: (room + 1) * 129})
	_, c := r.Clone(t, r.cold().ID)
	for range 5 {
		var mu sync.Mutex
		var got []machine.VM
		r.together(12, func(int) {
			vm, err := r.Manager.Restore(r.ctx, r.Acme, c.ID, machine.NetworkRequest{})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				got = append(got, vm)
			} else {
				wantError(t, "restore", err, fault.Exhausted, "Insufficient system resources")
			}
		})
		if len(got) != room-1 { // Clone has one
			t.Errorf("%d VMs in room for %d", len(got), room-1)
		}
		r.forget(got...)
	}
	r.empty()
}

// versd stops in the middle of everything, again and again. The next one finds nothing half made.
func TestRaceWithRestarts(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm := r.clone()
	for range 5 {
		manager := r.Manager
		ctx, stop := context.WithCancel(r.ctx)
		var group sync.WaitGroup
		for worker := range 4 {
			group.Go(func() {
				for ctx.Err() == nil {
					// What is cut short may say anything; what is made stays.
					switch worker {
					case 0:
						_, _, _ = manager.Commit(ctx, r.Acme, vm.ID, machine.CommitRequest{})
					case 1:
						_, _, _, _ = manager.Branch(ctx, r.Acme, vm.ID, machine.BranchRequest{Count: 1})
					case 2:
						_, _ = manager.Run(ctx, r.Acme, machine.RunRequest{Config: machinetest.Small, WaitBoot: false, Cold: true})
					case 3:
						_ = manager.Pause(ctx, r.Acme, vm.ID, false)
						_ = manager.Resume(ctx, r.Acme, vm.ID, false)
					}
				}
			})
		}
		machinetest.Await(t, "some VMs are made", func() bool {
			list, err := manager.List(r.ctx, r.Acme)
			must(t, err)
			return len(list) > 4
		})
		stop() // clients go, as when their server stops
		group.Wait()
		r.Restart(t)
		r.awaitBoots()
		r.consistent()
		list, err := r.Manager.List(r.ctx, r.Acme)
		must(t, err)
		for _, other := range list {
			if other.ID != vm.ID {
				r.forget(other)
			}
		}
	}
	must(t, r.Manager.Resume(r.ctx, r.Acme, vm.ID, false))
	r.Exec(t, r.Acme, vm.ID, "true")
	r.empty()
}
