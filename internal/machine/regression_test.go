package machine_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/machine"
	"vers/internal/machine/fake"
	"vers/internal/machine/machinetest"
)

// adopt.go: a guest that powered off while versd was away is one dead VM, not a versd that does not start.
func TestAdoptAGuestThatEnded(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm, other := r.cold(), r.cold()
	r.Stop(t)
	r.Machine(t, vm.ID).PowerOff()
	must(t, r.TryStart(t))
	r.AwaitState(t, r.Acme, vm.ID, machine.StateDead)
	r.goesOnWith(other.ID)
	r.empty()
}

// adopt.go: a half-made VM whose network cannot be opened loses its row, and must lose its process too.
func TestAdoptCreatingWithoutNetwork(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm := r.cold()
	r.Stop(t)
	r.change(vm.ID, func(vm *machine.VM) { vm.State = string(machine.StateCreating) })
	r.Driver.SetHook(failing(fake.OpNetwork, always))
	_ = r.TryStart(t)
	if _, err := r.Catalog.VM(r.ctx, vm.ID); fault.Is(err, fault.NotFound) && r.Driver.Running() != 0 {
		t.Error("the process of a VM that was removed runs")
	}
}

// run.go: a machine that ends while its agent is awaited fails the boot then, not at the limit.
func TestEndInTheBoot(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{BootLimit: 20 * time.Second})
	must(t, r.Images.Add(r.ctx, fake.Image{Name: "ends", Ends: true}))
	config := machinetest.Small
	config.ImageName = "ends"
	began := time.Now()
	_, err := r.Manager.Run(r.ctx, r.Acme, machine.RunRequest{Config: config, WaitBoot: true, Cold: true})
	wantError(t, "a guest that powers off", err, fault.Conflict, "did not boot")
	r.Driver.SetHook(func(op fake.Op, s machine.Spec) error {
		if op != fake.OpDial {
			return nil
		}
		i, _ := r.Driver.Machine(s.ID)
		i.Crash()
		return errTest
	})
	_, err = r.Manager.Run(r.ctx, r.Acme, machine.RunRequest{Config: machinetest.Small, WaitBoot: true, Cold: true})
	wantError(t, "a process that crashes", err, fault.Conflict, "did not boot")
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("noticed after %v", took)
	}
	r.empty()
}

// capture.go: captureLive records the pause with the client's context.
func TestKeepPausedWithoutItsClient(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	for name, do := range map[string]func(ctx context.Context, id string) error{
		"commit": func(ctx context.Context, id string) error {
			_, _, err := r.Manager.Commit(ctx, r.Acme, id, machine.CommitRequest{KeepPaused: true})
			return err
		},
		"branch": func(ctx context.Context, id string) error {
			_, _, _, err := r.Manager.Branch(ctx, r.Acme, id, machine.BranchRequest{Count: 1, KeepPaused: true})
			return err
		},
	} {
		vm := r.cold()
		ctx, leave := context.WithCancel(r.ctx)
		r.Driver.SetHook(func(op fake.Op, _ machine.Spec) error {
			if op == fake.OpSwitch {
				leave()
			}
			return nil
		})
		if err := do(ctx, vm.ID); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		r.Driver.SetHook(nil)
		r.consistent()
	}
	r.empty()
}

// capture.go / lifecycle.go: of two overlapping commits with one id, the one that comes too late is a conflict.
func TestOverlappingCommitsWithOneID(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	slow, quick := r.cold(), r.cold()
	id := ident.New()
	inside, goOn := make(chan struct{}), make(chan struct{})
	r.Driver.SetHook(func(op fake.Op, s machine.Spec) error {
		if op == fake.OpCapture && s.ID == slow.ID {
			close(inside)
			<-goOn
		}
		return nil
	})
	done := make(chan error, 1)
	go func() {
		_, _, err := r.Manager.Commit(r.ctx, r.Acme, slow.ID, machine.CommitRequest{CommitID: id})
		done <- err
	}()
	<-inside
	_, _, first := r.Manager.Commit(r.ctx, r.Acme, quick.ID, machine.CommitRequest{CommitID: id})
	close(goOn)
	second := <-done
	if first == nil {
		first, second = second, first
	}
	wantError(t, "the one that is too late", first, fault.Conflict, id)
	must(t, second)
	must(t, r.Commits.Verify(r.ctx, id))
	r.empty()
}

// A commit has a running guest write its page cache out first, and no other capture waits for that. A guest that ends
// meanwhile ends the wait.
func TestCommitFlushes(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{})
	vm := r.cold()
	var mu sync.Mutex
	var steps []fake.Op
	r.Driver.SetHook(func(op fake.Op, s machine.Spec) error {
		mu.Lock()
		defer mu.Unlock()
		if s.ID == vm.ID && (op == fake.OpSync || op == fake.OpCapture) {
			steps = append(steps, op)
		}
		return nil
	})
	took := func() []fake.Op {
		mu.Lock()
		defer mu.Unlock()
		defer func() { steps = nil }()
		return steps
	}
	commit := func() error {
		_, _, err := r.Manager.Commit(r.ctx, r.Acme, vm.ID, machine.CommitRequest{})
		return err
	}
	must(t, commit())
	if got := took(); !slices.Equal(got, []fake.Op{fake.OpSync, fake.OpCapture}) {
		t.Errorf("a commit takes the steps %v", got)
	}
	_, _, _, err := r.Manager.Branch(r.ctx, r.Acme, vm.ID, machine.BranchRequest{Count: 2})
	must(t, err)
	if got := took(); slices.Contains(got, fake.OpSync) {
		t.Errorf("a branch takes the steps %v", got)
	}
	must(t, r.Manager.Pause(r.ctx, r.Acme, vm.ID, false))
	must(t, commit())
	if got := took(); !slices.Equal(got, []fake.Op{fake.OpCapture}) {
		t.Errorf("a commit of a paused VM takes the steps %v", got)
	}
	must(t, r.Manager.Resume(r.ctx, r.Acme, vm.ID, false))
	guest := r.Machine(t, vm.ID)
	r.Driver.SetHook(func(op fake.Op, s machine.Spec) error {
		if op == fake.OpSync {
			go guest.Crash() // it waits for this call
			<-guest.Ended()
		}
		return nil
	})
	wantError(t, "a guest that ends", commit(), fault.Conflict, "")
}
