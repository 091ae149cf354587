package machine

import (
	"context"
	"fmt"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

// A VM that sleeps has no process and holds no memory. What it was is an internal commit, its image, which nobody sees
// and which is kept because the VM's row names it as its memory base. Falling asleep is a capture that keeps the VM
// paused; the transaction that makes the image visible makes the VM sleep:
//
//	before it   the row says running: versd, if killed, finds the process and lets it run on
//	after it    the row says sleeping: the process, if it is still there, is ended and never runs again
//
// The image's delta stands on what the VM's memory stood on. So that a VM that sleeps every night does not pile up
// images, every few of them one stands alone, and the ones before it go.

// maxGenerations is how many images may stand on each other.
const maxGenerations = 4

// Sleep puts a running VM to sleep: when it returns, its process is gone and its memory is free. Connections into its
// guest are cut. What sleeps already sleeps on.
func (m *Manager) Sleep(ctx context.Context, c Caller, vmID string, skipWaitBoot bool) error {
	v, unlock, err := m.lockBooted(ctx, c, vmID, skipWaitBoot)
	if err != nil {
		return err
	}
	defer unlock()
	if v.snapshot().State == string(StateSleeping) {
		return nil
	}
	return m.sleep(ctx, v)
}

// mayTakeSleep refuses VMs that cannot sleep.
func mayTakeSleep(r VM) error {
	switch {
	case r.BuildID != "":
		return fault.Conflictf("VM '%s' is at work for a build and cannot sleep", r.ID)
	case r.State != string(StateRunning) && r.Reason != "":
		return fault.Conflictf("VM '%s' is %s (%s): only a running VM can be put to sleep", r.ID, r.State, r.Reason)
	case r.State != string(StateRunning):
		return fault.Conflictf("VM '%s' is %s: only a running VM can be put to sleep; resume it first", r.ID, r.State)
	}
	return nil
}

// sleep puts a VM to sleep. The caller holds op. On error the VM runs on as before.
func (m *Manager) sleep(ctx context.Context, v *vm) (err error) {
	// Begun, it is brought to an end without its client too.
	ctx = context.WithoutCancel(ctx)
	r := v.snapshot()
	if err := mayTakeSleep(r); err != nil {
		return err
	}
	began := time.Now()
	v.setGate(true)
	var undo undo
	defer func() { undo.run(&err) }()
	undo.add(func() { v.setGate(false) })
	undo.add(func() { m.goOn(ctx, v) })
	defer m.Commits.Hold()()
	t, err := m.captureWithin(ctx, v, ident.New(), true)
	if err != nil {
		return fmt.Errorf("put VM '%s' to sleep: %w", r.ID, err)
	}
	defer t.release()
	overlay := v.snapshot().LayerID
	if err := m.writeImage(ctx, v, t); err != nil {
		return fmt.Errorf("put VM '%s' to sleep: %w", r.ID, err)
	}
	m.fellAsleep(ctx, v, overlay)
	m.settle(t.draft.ID)
	m.collectSoon() // what its memory stood on before
	m.Logger.Info("VM sleeps", "vm", r.ID, "took", time.Since(began))
	return nil
}

// goOn lets a VM run that could not be put to sleep.
func (m *Manager) goOn(ctx context.Context, v *vm) {
	err := v.instance.Resume(ctx)
	if err != nil && !fault.Is(err, fault.Conflict) { // its end is seen to by watch
		m.Logger.Error("VM stays paused after it could not be put to sleep", "vm", v.record.ID, "error", err)
	}
}

// writeImage makes a capture the image that the VM sleeps in. With it, the VM sleeps.
func (m *Manager) writeImage(ctx context.Context, v *vm, t *taken) error {
	generations, err := m.Commits.Generations(ctx, v.snapshot().MemoryBase)
	if err == nil {
		err = t.draft.BuildFlat(ctx, t.capture.Memory) // now, not when somebody waits for the VM to wake
	}
	if err == nil && generations >= maxGenerations {
		err = t.draft.StandAlone()
	}
	if err != nil {
		t.draft.Abort()
		return err
	}
	now := time.Now()
	asleep := v.snapshot()
	asleep.State, asleep.Reason, asleep.SleptAt = string(StateSleeping), "", &now
	asleep.MemoryBase, asleep.LayerID = t.draft.ID, t.record.Commit.LayerID
	t.record.Commit.Name, t.record.Commit.Deleted = "sleep", true
	t.record.Publish = func(ctx context.Context, tx *catalog.Tx, _ Commit) error { return tx.UpdateVM(ctx, asleep) }
	if _, err := t.write(ctx); err != nil {
		return err
	}
	v.mu.Lock()
	v.record = asleep
	v.mu.Unlock()
	return nil
}

// fellAsleep frees what a VM that sleeps does not need. overlay is the layer that its process would have written to.
func (m *Manager) fellAsleep(ctx context.Context, v *vm, overlay string) {
	m.closeNetwork(v)
	had := v.detach() // before its end: watch takes that for what it is
	r := v.snapshot()
	if err := had.instance.Kill(ctx); err != nil {
		// Paused for ever, and looked for again before it wakes (endProcess).
		m.Logger.Error("process of a sleeping VM stays", "vm", r.ID, "error", err)
	}
	m.ledger.note(r.ID, booking{orgID: r.OrgID})
	m.Commits.DropLayer(ctx, overlay)
}
