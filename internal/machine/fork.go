package machine

import (
	"context"

	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/ident"
)

// Publish writes what names a new commit, in the transaction that makes it visible.
type Publish = commit.Publish

// Fork makes a running VM from a commit, whoever's it is (the caller's right to it is decided before), and a new commit of
// that VM. Commit, VM and whatever publish writes become visible in one step; when anything fails, publish included,
// nothing is left. Neither names the commit that they come from: a fork has no upstream.
func (m *Manager) Fork(ctx context.Context, c Caller, commitID string, publish Publish) (_ VM, _ Commit, err error) {
	ctx = context.WithoutCancel(ctx)
	defer m.Commits.Hold()()
	source, err := m.visibleCommit(ctx, commitID)
	if err != nil {
		return VM{}, Commit{}, err
	}
	own, err := m.imported(ctx, c, source)
	if err != nil {
		return VM{}, Commit{}, err
	}
	vms, err := m.cloneAll(ctx, c, clone{commit: own, reason: "restore", foreign: source.OrgID != c.OrgID}, []string{ident.New()})
	if err != nil {
		return VM{}, Commit{}, err
	}
	v := vms[0]
	var undo undo
	defer func() { undo.run(&err) }()
	undo.add(func() { m.removeAll(ctx, vms) })
	made, err := m.commitFork(ctx, c, v, publish)
	if err != nil {
		return VM{}, Commit{}, err
	}
	v.mu.Lock()
	v.record.State = string(StateRunning) // the row says so already
	v.mu.Unlock()
	v.markBooted()
	m.watch(v)
	m.settle(made.ID)
	return v.snapshot(), made, nil
}

// commitFork takes a commit of a VM that nobody sees yet; the transaction that makes the commit visible shows the VM too.
func (m *Manager) commitFork(ctx context.Context, c Caller, v *vm, publish Publish) (Commit, error) {
	id := ident.New()
	unlock, err := v.lock(ctx)
	if err != nil {
		return Commit{}, err
	}
	t, err := m.captureWithin(ctx, v, id, false)
	unlock()
	if err != nil {
		return Commit{}, err
	}
	defer t.release()
	t.record.Commit.OwnerID, t.record.Commit.Name = c.KeyID, "fork-"+id[:8]
	var refused error
	t.record.Publish = func(ctx context.Context, tx *catalog.Tx, made Commit) error {
		if refused = publish(ctx, tx, made); refused != nil {
			return refused
		}
		return tx.SetVMState(ctx, v.snapshot().ID, string(StateRunning), "")
	}
	made, err := t.write(ctx)
	if refused != nil {
		err = refused // in the words of who refused: the caller did not ask for a commit
	}
	return made, err
}
