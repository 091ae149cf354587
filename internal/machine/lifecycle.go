package machine

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

// Pause stops the vCPUs; memory is kept. Pausing a paused VM succeeds; one that sleeps is fault.Conflict.
func (m *Manager) Pause(ctx context.Context, c Caller, vmID string, skipWaitBoot bool) error {
	return m.setState(ctx, c, vmID, skipWaitBoot, StatePaused)
}

// Resume lets the vCPUs run again, and wakes a VM that sleeps. Resuming a running VM succeeds.
func (m *Manager) Resume(ctx context.Context, c Caller, vmID string, skipWaitBoot bool) error {
	return m.setState(ctx, c, vmID, skipWaitBoot, StateRunning)
}

func (m *Manager) setState(ctx context.Context, c Caller, vmID string, skipWaitBoot bool, want State) error {
	lock := m.lockAwake
	if want == StatePaused {
		lock = m.lockBooted
	}
	v, unlock, err := lock(ctx, c, vmID, skipWaitBoot)
	if err != nil {
		return err
	}
	defer unlock()
	v.touch()
	if v.snapshot().State == string(StateSleeping) {
		return fault.Conflictf("VM '%s' is sleeping: nothing of it runs; resume it first if it is to be paused", vmID)
	}
	// Begun, it is brought to an end without its client too: record and machine must not disagree.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.ReadyLimit)
	defer cancel()
	before := v.snapshot()
	// The record first: what versd finds after a crash is what the user asked for, and adoption brings it about.
	if err := m.update(ctx, v, func(r *VM) { r.State, r.Reason = string(want), "" }); err != nil {
		return err
	}
	change := v.instance.Resume
	if want == StatePaused {
		change = v.instance.Pause
	}
	if err := change(ctx); err != nil {
		return errors.Join(err, m.update(context.WithoutCancel(ctx), v, func(r *VM) { r.State, r.Reason = before.State, before.Reason }))
	}
	return nil
}

// lockBooted finds a VM that has booted and takes the right to change it. fault.Conflict if it is dead.
func (m *Manager) lockBooted(ctx context.Context, c Caller, vmID string, skipWaitBoot bool) (*vm, func(), error) {
	v, err := m.find(c, vmID)
	if err != nil {
		return nil, nil, err
	}
	if err := v.waitBooted(ctx, skipWaitBoot); err != nil {
		return nil, nil, err
	}
	unlock, err := v.lock(ctx)
	if err != nil {
		return nil, nil, err
	}
	if r := v.snapshot(); r.State == string(StateDead) {
		unlock()
		return nil, nil, fault.Conflictf("VM '%s' is dead: %s", vmID, r.Reason)
	}
	return v, unlock, nil
}

// Delete ends a VM and removes all that was its own; its commits and children stay. When it returns, memory, files,
// sockets and process are gone. A booting VM is waited for (or a conflict, with skipWaitBoot).
func (m *Manager) Delete(ctx context.Context, c Caller, vmID string, skipWaitBoot bool) error {
	v, err := m.find(c, vmID)
	if err != nil {
		return err
	}
	// Not waitBooted: that refuses dead VMs, which can be deleted like any other.
	select {
	case <-v.booted:
	default:
		if skipWaitBoot {
			return fault.Conflictf("VM '%s' is still booting", vmID)
		}
	}
	unlock, err := v.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return m.remove(ctx, v)
}

// Resize grows a VM's disk and the file system on it. The new size must be above the present one.
func (m *Manager) Resize(ctx context.Context, c Caller, vmID string, fsSizeMiB int64, skipWaitBoot bool) error {
	v, unlock, err := m.lockAwake(ctx, c, vmID, skipWaitBoot)
	if err != nil {
		return err
	}
	defer unlock()
	r := v.snapshot()
	if fsSizeMiB <= r.Config.FSSizeMiB {
		return fault.Invalidf("the disk of VM '%s' has %d MiB and can only grow: %d MiB is not larger", vmID, r.Config.FSSizeMiB, fsSizeMiB)
	}
	if r.State != string(StateRunning) {
		return fault.Conflictf("VM '%s' is %s: resume it before resizing, its own file system must grow too", vmID, r.State)
	}
	want := r.Config
	want.FSSizeMiB = fsSizeMiB
	if _, err := m.checkConfig(want); err != nil {
		return err
	}
	if err := v.instance.GrowDisk(ctx, fsSizeMiB<<20); err != nil {
		return err
	}
	if err := m.update(ctx, v, func(r *VM) { r.Config = want }); err != nil {
		return err
	}
	if err := v.agent.GrowRootTo(ctx, fsSizeMiB<<20); err != nil {
		return fmt.Errorf("the disk of VM %s has grown, its file system not: %w", vmID, err)
	}
	return nil
}

// SetLabels replaces a VM's labels.
func (m *Manager) SetLabels(ctx context.Context, c Caller, vmID string, labels map[string]string) error {
	v, err := m.find(c, vmID)
	if err != nil {
		return err
	}
	unlock, err := v.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return m.update(ctx, v, func(r *VM) { r.Labels = labels })
}

// newCommitID checks an id chosen by the client, or makes one.
func (m *Manager) newCommitID(ctx context.Context, wanted string) (string, error) {
	if wanted == "" {
		return ident.New(), nil
	}
	id, ok := ident.Parse(wanted)
	if !ok {
		return "", fault.Invalidf("commit_id '%s' is not a UUID", wanted)
	}
	_, err := m.Catalog.Commit(ctx, id)
	switch {
	case err == nil:
		return "", fault.Conflictf("commit '%s' exists already", id)
	case fault.Is(err, fault.NotFound):
		return id, nil
	}
	return "", err
}

// DeleteCommit removes a commit from its owner's view. fault.Conflict while VMs that were started from it live, or tags
// point at it. Its data goes when no other commit or VM stands on it.
func (m *Manager) DeleteCommit(ctx context.Context, c Caller, commitID string) error {
	record, err := m.visibleCommit(ctx, commitID)
	if err == nil && record.OrgID != c.OrgID {
		err = fault.NotFoundf("commit '%s' not found", commitID)
	}
	if err != nil {
		return err
	}
	active := 0
	m.mu.Lock()
	for _, v := range m.vms {
		// Another organisation's VM stands on a copy of its own.
		if r := v.snapshot(); r.ParentCommit == commitID && r.OrgID == c.OrgID && r.State != string(StateDead) {
			active++
		}
	}
	m.mu.Unlock()
	if active > 0 {
		return fault.Conflictf("commit '%s' is in use: %d active VMs were started from it; delete them first", commitID, active)
	}
	err = m.Catalog.InTx(ctx, func(tx *catalog.Tx) error {
		tags, err := tx.TagsOfCommit(ctx, commitID)
		if err != nil {
			return err
		}
		if len(tags) > 0 {
			return fault.Conflictf("commit '%s' is tagged as %s; delete or move the tags first", commitID, strings.Join(tags, ", "))
		}
		return tx.MarkCommitDeleted(ctx, commitID)
	})
	if err != nil {
		return err
	}
	m.collectSoon()
	return nil
}
