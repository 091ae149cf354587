package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/guest"
)

// vm is the one owner of a VM: everything that changes its state holds op.
//
//	creating ──► booting ──► running ◄──► paused
//	    │           │         ▲ │           │
//	    │           │         │ └───────────┼──► sleeping
//	    │           │         └─────────────┼─────────┘
//	    └───────────┴───────────┴───────────┴──► dead ──► (deleted)
type vm struct {
	op     chan struct{} // holds one token; taken by whoever changes the state
	booted chan struct{} // closed when the VM can run commands, or never will
	guest  *guest.Client // through the gate; from the first attach on it stays the same

	policy  sync.Mutex // held while an egress policy is read and applied
	counted bool       // the traffic of its network is in the manager's sums; guarded by the manager

	mu sync.Mutex
	parts
	record  VM
	deleted bool
	gate    gate
	seen    seen
	tended  bool // the caretaker sees to the VM
}

func newVM(record VM) *vm {
	v := &vm{op: make(chan struct{}, 1), booted: make(chan struct{}), record: record}
	v.op <- struct{}{}
	return v
}

// snapshot is the record as it is now.
func (v *vm) snapshot() VM {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.record
}

// lock takes the right to change the VM. fault.NotFound once it is deleted.
func (v *vm) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case <-v.op:
	case <-ctx.Done():
		return nil, fault.New(fault.Timeout, "VM '%s' is busy with another operation: %w", v.snapshot().ID, ctx.Err())
	}
	unlock = func() { v.op <- struct{}{} }
	v.mu.Lock()
	gone := v.deleted
	v.mu.Unlock()
	if gone {
		unlock()
		return nil, fault.NotFoundf("VM '%s' not found", v.record.ID)
	}
	return unlock, nil
}

// waitBooted waits while the VM boots; with skip it is a conflict instead.
func (v *vm) waitBooted(ctx context.Context, skip bool) error {
	select {
	case <-v.booted:
	default:
		if skip {
			return fault.Conflictf("VM '%s' is still booting", v.snapshot().ID)
		}
		select {
		case <-v.booted:
		case <-ctx.Done():
			return fault.New(fault.Timeout, "VM '%s' is still booting: %w", v.snapshot().ID, ctx.Err())
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.deleted:
		return fault.NotFoundf("VM '%s' not found", v.record.ID)
	case v.record.State == string(StateDead):
		return fault.Conflictf("VM '%s' is dead: %s", v.record.ID, v.record.Reason)
	}
	return nil
}

// update changes the record in the catalogue and then here.
func (m *Manager) update(ctx context.Context, v *vm, change func(*VM)) error {
	v.mu.Lock()
	next := v.record
	v.mu.Unlock()
	change(&next)
	if err := m.Catalog.UpdateVM(ctx, next); err != nil {
		return fmt.Errorf("record VM %s: %w", next.ID, err)
	}
	v.mu.Lock()
	v.record = next
	v.mu.Unlock()
	return nil
}

// add makes the VM's directory and row and takes it into the manager's care. State creating or booting.
func (m *Manager) add(ctx context.Context, v *vm, uid, gid int) error {
	dir := m.vmDir(v.record.ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if m.UIDBase != 0 {
		if err := os.Chown(dir, uid, gid); err != nil {
			os.RemoveAll(dir)
			return err
		}
	}
	if err := m.Catalog.InsertVM(ctx, v.record); err != nil {
		os.RemoveAll(dir)
		return err
	}
	m.mu.Lock()
	m.vms[v.record.ID] = v
	m.mu.Unlock()
	return nil
}

// start starts the VM's process and opens its network. spec.Dir exists.
func (m *Manager) start(ctx context.Context, v *vm, spec Spec) error {
	network, err := m.openNetworkOf(ctx, v, spec)
	if err != nil {
		return fmt.Errorf("open the network of VM %s: %w", spec.ID, err)
	}
	instance, err := m.Driver.Start(ctx, spec)
	if err != nil {
		network.Close()
		return err
	}
	m.attach(v, instance, network)
	process, specJSON, err := encode(instance.Process(), spec)
	if err != nil {
		return err
	}
	// Recorded even where versd is just stopping: the next one goes on with this process and does not start another.
	ctx = context.WithoutCancel(ctx)
	if err := m.update(ctx, v, func(r *VM) { r.Process, r.Spec = process, specJSON }); err != nil {
		return err
	}
	return m.applyEgress(ctx, v) // again: who changed it meanwhile could not find this network
}

func encode(p Process, s Spec) (process, spec json.RawMessage, err error) {
	if process, err = json.Marshal(p); err != nil {
		return nil, nil, err
	}
	spec, err = json.Marshal(s)
	return process, spec, err
}

// remove ends a VM and everything that was its own: process, network, directory, row, active layer. Used by delete, by
// failing creations, and for half-made VMs after a crash. The caller holds op or is the only one who knows v.
func (m *Manager) remove(ctx context.Context, v *vm) error {
	ctx = context.WithoutCancel(ctx)
	if v.instance != nil {
		if err := v.instance.Kill(ctx); err != nil {
			return fmt.Errorf("end the process of VM %s: %w", v.record.ID, err)
		}
	}
	m.closeNetwork(v)
	r := v.snapshot()
	if err := m.Catalog.DeleteVM(ctx, r.ID); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	v.mu.Lock()
	v.deleted = true
	v.mu.Unlock()
	v.markBooted() // who waits for its boot is told that it is gone
	m.mu.Lock()
	delete(m.vms, r.ID)
	m.mu.Unlock()
	m.ledger.release(r.ID)
	if err := os.RemoveAll(m.vmDir(r.ID)); err != nil {
		m.Logger.Warn("directory of a deleted VM stays", "vm", r.ID, "error", err)
	}
	m.freeUID(r.UID)
	m.collectSoon()
	return nil
}

// watch marks the VM dead when its present process ends by itself or its guest powers off, and paused when the host's disk is
// full.
func (m *Manager) watch(v *vm) {
	instance := v.live().instance
	if instance == nil {
		return // it was put to sleep at once; who wakes it watches it
	}
	m.background.Go(func() {
		var full <-chan struct{}
		if watcher, ok := instance.(DiskWatcher); ok {
			full = watcher.DiskFull()
		}
		for ended := false; !ended; {
			select {
			case <-m.life.Done():
				return
			case <-full:
				m.diskFull(v, instance)
			case <-instance.Ended():
				ended = true
			case <-instance.Done():
				ended = true
			}
		}
		unlock, err := v.lock(m.life)
		if err != nil {
			return // deleted
		}
		defer unlock()
		if v.instance != instance {
			return // it sleeps, or has woken with another process
		}
		reason := "its guest powered off or crashed"
		if _, err := instance.Status(m.life); err != nil {
			reason = "its process ended" // nobody is there to be asked
		}
		m.die(v, reason)
	})
}

// diskFull records that a guest was stopped because the host had no room for what it wrote.
func (m *Manager) diskFull(v *vm, instance Instance) {
	unlock, err := v.lock(m.life)
	if err != nil {
		return // deleted
	}
	defer unlock()
	r := v.snapshot()
	if v.instance != instance {
		return // it fell asleep
	}
	if status, err := instance.Status(m.life); err != nil || status != StatusPaused || r.State != string(StateRunning) {
		return // resumed or paused by its owner meanwhile, or ended: others see to that
	}
	reason := fmt.Sprintf("the host's disk is full: its guest waits in the middle of a write; free space on the file system of %s, then resume it", m.DataDir)
	if err := m.update(m.life, v, func(r *VM) { r.State, r.Reason = string(StatePaused), reason }); err != nil {
		m.Logger.Error("VM stopped by a full disk, not recorded", "vm", r.ID, "error", err)
		v.mu.Lock()
		v.record.State, v.record.Reason = string(StatePaused), reason // not even the catalogue's reserve was left
		v.mu.Unlock()
	}
	m.Logger.Warn("VM stopped: no room for what its guest writes", "vm", r.ID, "data", m.DataDir)
}

// die marks a VM dead. Its row stays, so that its owner sees what happened. The caller holds op.
func (m *Manager) die(v *vm, reason string) {
	r := v.snapshot()
	if r.State == string(StateDead) {
		return
	}
	if v.instance != nil {
		if tail, err := v.instance.Console(m.life); err == nil && len(tail) > 0 {
			reason += "; console: " + lastLine(tail)
		}
		if err := v.instance.Kill(m.life); err != nil {
			m.Logger.Error("process of a dead VM stays", "vm", r.ID, "error", err)
		}
	}
	m.closeNetwork(v)
	if err := m.update(context.WithoutCancel(m.life), v, func(r *VM) { r.State, r.Reason = string(StateDead), reason }); err != nil {
		m.Logger.Error("dead VM not recorded", "vm", r.ID, "error", err)
	}
	m.ledger.release(r.ID)
	m.Logger.Warn("VM died", "vm", r.ID, "reason", reason)
	v.markBooted()
}

func (v *vm) markBooted() {
	v.mu.Lock()
	defer v.mu.Unlock()
	select {
	case <-v.booted:
	default:
		close(v.booted)
	}
}

func lastLine(console []byte) string {
	end := len(console)
	for end > 0 && (console[end-1] == '\n' || console[end-1] == '\r') {
		end--
	}
	begin := end
	for begin > 0 && console[begin-1] != '\n' {
		begin--
	}
	return string(console[begin:end])
}

func sortNewestFirst(list []VM) {
	slices.SortFunc(list, func(a, b VM) int {
		if c := b.CreatedAt.Compare(a.CreatedAt); c != 0 {
			return c
		}
		return slices.Compare([]byte(a.ID), []byte(b.ID))
	})
}

// undo is a stack of what to take back when a path fails.
type undo []func()

func (u *undo) add(f func()) { *u = append(*u, f) }

// run takes everything back, newest first, unless err is nil.
func (u *undo) run(err *error) {
	if *err == nil {
		return
	}
	for i := len(*u) - 1; i >= 0; i-- {
		(*u)[i]()
	}
}

// newRecord fills what every VM has from its start.
func newRecord(c Caller, id string, config catalog.VMConfig, labels map[string]string) (VM, error) {
	login, host, err := newSSHKeys()
	if err != nil {
		return VM{}, err
	}
	return VM{
		ID: id, OrgID: c.OrgID, OwnerID: c.KeyID, State: string(StateCreating), CreatedAt: time.Now(),
		Labels: labels, Config: config, SSHKey: login, SSHHostKey: host,
	}, nil
}
