package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/memory"
)

// clone says what a VM is restored from.
type clone struct {
	commit      Commit
	config      catalog.VMConfig
	labels      map[string]string
	env         map[string]string
	buildID     string
	deviceState string           // path, if the commit is not written yet
	memoryBase  string           // commit whose flat file is mapped, if it is not commit's own
	patch       *memory.Snapshot // pages to put on top of memoryBase
	parent      Commit           // what the VM says it was started from; no id: nothing that users see
	reason      string           // run, restore, branch
	network     NetworkRequest
	options     []Option
	foreign     bool // the commit is another organisation's
}

// Restore makes a VM from a commit of the caller's organisation, or from any public one.
func (m *Manager) Restore(ctx context.Context, c Caller, commitID string, network NetworkRequest, options ...Option) (VM, error) {
	if err := network.Check(); err != nil {
		return VM{}, err
	}
	defer m.Commits.Hold()()
	p, err := m.startable(ctx, c, commitID, "restore")
	if err != nil {
		return VM{}, err
	}
	p.network = network
	p.options = options
	return m.restore(ctx, c, p)
}

// startable says how VMs are started from a commit of the caller's organisation, or from any public one. The caller holds
// off garbage collection until they are.
func (m *Manager) startable(ctx context.Context, c Caller, id, reason string) (clone, error) {
	record, err := m.visibleCommit(ctx, id)
	if err == nil && record.OrgID != c.OrgID && !record.IsPublic {
		err = fault.NotFoundf("commit '%s' not found", id)
	}
	if err != nil {
		return clone{}, err
	}
	own, err := m.imported(ctx, c, record)
	return clone{commit: own, parent: record, reason: reason, foreign: record.OrgID != c.OrgID}, err
}

// visibleCommit gives a commit that users see, whoever's it is.
func (m *Manager) visibleCommit(ctx context.Context, id string) (Commit, error) {
	record, err := m.Catalog.VisibleCommit(ctx, id)
	if fault.Is(err, fault.NotFound) {
		err = fault.NotFoundf("commit '%s' not found", id)
	}
	return record, err
}

// canLoad refuses states that this host cannot load.
func (m *Manager) canLoad(id string, manifest commit.Manifest) error {
	if err := m.Driver.Host().CanLoad(manifest.Hardware); err != nil {
		return fault.Unavailablef("commit '%s' cannot be restored on this host: %w", id, err)
	}
	return nil
}

func (m *Manager) restore(ctx context.Context, c Caller, p clone) (VM, error) {
	ids := []string{ident.New()}
	vms, err := m.cloneAll(ctx, c, p, ids)
	if err != nil {
		return VM{}, err
	}
	list, err := m.show(context.WithoutCancel(ctx), vms)
	if err != nil {
		return VM{}, err
	}
	return list[0], nil
}

// cloneAll makes one VM per id from a commit: all or none. It books their memory first.
func (m *Manager) cloneAll(ctx context.Context, c Caller, p clone, ids []string) (_ []*vm, err error) {
	// A creation is not given up because its client left (spec/api.md 1.6); it has a limit of its own.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.ReadyLimit+time.Duration(len(ids))*2*time.Second)
	defer cancel()
	defer m.Commits.Hold()()
	if p.commit.Durable { // read again now that nothing is collected: its layers may have been merged
		if p.commit, err = m.Catalog.Commit(ctx, p.commit.ID); err != nil {
			return nil, err
		}
	}
	manifest, err := m.Commits.Manifest(p.commit)
	if err != nil {
		return nil, err
	}
	if err := m.canLoad(p.commit.ID, manifest); err != nil {
		return nil, err
	}
	if p.config == (catalog.VMConfig{}) {
		if err := json.Unmarshal(manifest.Config, &p.config); err != nil {
			return nil, fmt.Errorf("read the sizes of commit %s: %w", p.commit.ID, err)
		}
	}
	if p.foreign {
		p.config.Internal = false // that was said to other peers
	}
	p.network.apply(&p.config, &p.labels)
	if p.deviceState == "" {
		p.deviceState = m.Commits.DeviceState(p.commit.ID)
	}
	if err := m.book(ctx, m.booking(c.OrgID, int64(manifest.Hardware.VCPUs), manifest.Hardware.MemoryBytes), ids...); err != nil {
		return nil, err
	}
	booked := ids
	defer func() {
		if err != nil {
			for _, id := range booked {
				m.ledger.release(id)
			}
		}
	}()
	if p.memoryBase == "" {
		p.memoryBase = p.commit.ID
	}
	flat := m.Commits.FlatPath(p.memoryBase)
	if p.commit.Durable || p.patch != nil { // else the branch that makes it has made it
		path, release, err := m.Commits.Flat(ctx, p.memoryBase)
		if err != nil {
			return nil, err
		}
		defer release()
		flat = path
	}
	spec := Spec{Hardware: manifest.Hardware, Kernel: manifest.Kernel.Name, Initrd: manifest.Initrd.Name, Cmdline: manifest.Cmdline, MemoryFile: flat}
	vms := make([]*vm, len(ids))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(cloneParallel)
	for i, id := range ids {
		group.Go(func() (err error) {
			vms[i], err = m.cloneOne(gctx, c, p, spec, id)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		m.removeAll(ctx, vms)
		return nil, err
	}
	return vms, nil
}

// cloneParallel bounds how many clones are made at once: more only makes each of them wait.
const cloneParallel = 8

// cloneOne makes one VM: row, overlay, process, state, identity. On error nothing is left of it.
func (m *Manager) cloneOne(ctx context.Context, c Caller, p clone, spec Spec, id string) (_ *vm, err error) {
	var undo undo
	defer func() { undo.run(&err) }()
	record, err := newRecord(c, id, p.config, p.labels)
	if err != nil {
		return nil, err
	}
	record.MemoryBase, record.BuildID = p.memoryBase, p.buildID
	record.ParentCommit, record.GrandparentVM = p.parent.ID, p.parent.ParentVM
	for _, option := range p.options {
		option(&record)
	}
	if record.UID, err = m.takeUID(); err != nil {
		return nil, err
	}
	undo.add(func() { m.freeUID(record.UID) })
	uid, gid, err := m.ids(ctx, c.OrgID, record.UID)
	if err != nil {
		return nil, err
	}
	below, err := m.Catalog.Layer(ctx, p.commit.LayerID)
	if err != nil {
		return nil, err
	}
	layer, err := m.Commits.NewLayer(ctx, c.OrgID, below.ID, below.ImageFile, p.config.FSSizeMiB<<20, uid, gid)
	if err != nil {
		return nil, err
	}
	undo.add(func() { m.Commits.DropLayer(context.WithoutCancel(ctx), layer.ID) })
	record.LayerID = layer.ID
	v := newVM(record)
	if err := m.add(ctx, v, uid, gid); err != nil {
		return nil, err
	}
	// From here on remove takes back everything. Not both: the user id may be another VM's by then.
	undo = nil
	undo.add(func() {
		if err := m.remove(ctx, v); err != nil {
			m.Logger.Error("half-made VM not removed", "vm", id, "error", err)
		}
	})
	own, err := m.spec(ctx, record)
	if err != nil {
		return nil, err
	}
	spec.ID, spec.Dir, spec.UID, spec.GID, spec.Disk = own.ID, own.Dir, own.UID, own.GID, own.Disk
	if err := m.start(ctx, v, spec); err != nil {
		return nil, err
	}
	trace(ctx, id, MomentStarted)
	if p.patch != nil {
		if err := v.instance.(MemoryPatcher).PatchMemory(ctx, p.patch); err != nil {
			return nil, err
		}
	}
	if err := v.instance.Load(ctx, p.deviceState); err != nil {
		return nil, err
	}
	if err := v.instance.Resume(ctx); err != nil {
		return nil, err
	}
	trace(ctx, id, MomentResumed)
	if err := m.renew(ctx, v, p.reason, p.env); err != nil {
		return nil, err
	}
	return v, m.startMain(ctx, v)
}

// show hands clones out, all or none: their identities are confirmed, their owner may see them.
func (m *Manager) show(ctx context.Context, vms []*vm) ([]VM, error) {
	list := make([]VM, len(vms))
	for i, v := range vms {
		if err := m.update(ctx, v, func(r *VM) { r.State = string(StateRunning) }); err != nil {
			m.removeAll(ctx, vms)
			return nil, err
		}
		v.markBooted()
		list[i] = v.snapshot()
	}
	for _, v := range vms {
		m.watch(v)
	}
	return list, nil
}

func (m *Manager) removeAll(ctx context.Context, vms []*vm) {
	for _, v := range vms {
		if v == nil {
			continue
		}
		if err := m.remove(ctx, v); err != nil {
			m.Logger.Error("half-made VM not removed", "vm", v.record.ID, "error", err)
		}
	}
}

// Branch makes children of a running VM: one pause gives a commit, each child starts from it, the parent goes on. It
// returns when every child has confirmed its identity and the commit is durable; on error no child and no commit stay.
func (m *Manager) Branch(ctx context.Context, c Caller, vmID string, req BranchRequest) ([]VM, Commit, Timing, error) {
	if err := errors.Join(checkCount(req.Count), req.Network.Check()); err != nil {
		return nil, Commit{}, Timing{}, err
	}
	v, unlock, err := m.lockAwake(ctx, c, vmID, req.SkipWaitBoot)
	if err != nil {
		return nil, Commit{}, Timing{}, err
	}
	if err := m.roomFor(ctx, v.snapshot(), req.Count); err != nil {
		unlock()
		return nil, Commit{}, Timing{}, err
	}
	began := time.Now()
	t, err := m.captureLive(ctx, v, ident.New(), req.KeepPaused)
	unlock()
	if err != nil {
		return nil, Commit{}, Timing{}, err
	}
	timing := Timing{Paused: t.capture.Paused}
	vms, commit, err := m.branchFrom(context.WithoutCancel(ctx), c, v, t, req)
	timing.Durable = time.Since(began)
	return vms, commit, timing, err
}

func checkCount(count int) error {
	if count < 1 {
		return fault.Invalidf("count must be at least 1, not %d", count)
	}
	if count > maxCount {
		return fault.Invalidf("count must be at most %d, not %d", maxCount, count)
	}
	return nil
}

// maxCount bounds one request; more children need more requests.
const maxCount = 1000

// branchFrom starts children from a captured state while the commit is made durable beside it.
func (m *Manager) branchFrom(ctx context.Context, c Caller, v *vm, t *taken, req BranchRequest) ([]VM, Commit, error) {
	defer t.release()
	t.record.Commit.OwnerID = c.KeyID
	t.record.Commit.Name = "branch-" + t.draft.ID[:8]
	source := t.record.Commit
	var err error
	if source.Manifest, err = json.Marshal(t.manifest()); err != nil {
		t.abort()
		return nil, Commit{}, err
	}
	asParent := v.snapshot().SleepAfter
	inherit := func(r *VM) { r.SleepAfter = asParent }
	plan := clone{commit: source, parent: source, reason: "branch", network: req.Network, options: append([]Option{inherit}, req.Options...)}
	if base := v.snapshot().MemoryBase; m.patchable(v, t.capture.Memory, base, req.Count) {
		plan.memoryBase, plan.patch = base, t.capture.Memory
	} else if err := t.draft.BuildFlat(ctx, t.capture.Memory); err != nil {
		t.abort()
		return nil, Commit{}, err
	}
	trace(ctx, v.snapshot().ID, MomentMapped)
	// Children read the device state while write moves it: they open it under a name of their own.
	state, release, err := t.draft.ShareState()
	if err != nil {
		t.abort()
		return nil, Commit{}, err
	}
	defer release()
	plan.deviceState = state
	ids := make([]string, req.Count)
	for i := range ids {
		ids[i] = ident.New()
	}
	var commit Commit
	var children []*vm
	var group errgroup.Group
	group.Go(func() (err error) {
		children, err = m.cloneAll(ctx, c, plan, ids)
		return err
	})
	group.Go(func() (err error) {
		commit, err = t.write(ctx)
		return err
	})
	if err = group.Wait(); err != nil {
		m.removeAll(ctx, children)
		m.dropCommit(ctx, commit)
		return nil, Commit{}, err
	}
	list, err := m.show(ctx, children)
	if err != nil {
		m.dropCommit(ctx, commit)
	}
	return list, commit, err
}

// patchLimit is how much memory the children of one branch may get written into them. Up to it, writing the dirty pages
// into each child is quicker than making a flat file, whose base has to be copied where the file system cannot share
// blocks; beyond it, children should share the pages.
const patchLimit = 64 << 20

// patchable reports whether children map the flat file of the source's own base and get the dirty pages written on top.
func (m *Manager) patchable(v *vm, s *memory.Snapshot, base string, count int) bool {
	_, able := v.instance.(MemoryPatcher)
	return able && base != "" && s.Bytes()*int64(count) <= patchLimit
}

// dropCommit removes the commit of a branch that could not be finished.
func (m *Manager) dropCommit(ctx context.Context, c Commit) {
	if !c.Durable {
		return // never written
	}
	if err := m.Catalog.MarkCommitDeleted(ctx, c.ID); err != nil {
		m.Logger.Error("commit of a failed branch not removed", "commit", c.ID, "error", err)
	}
	m.collectSoon()
}

// BranchCommit makes VMs from a commit of the caller's organisation, or from any public one: all or none.
func (m *Manager) BranchCommit(ctx context.Context, c Caller, commitID string, count int, network NetworkRequest, options ...Option) ([]VM, error) {
	if err := errors.Join(checkCount(count), network.Check()); err != nil {
		return nil, err
	}
	defer m.Commits.Hold()()
	p, err := m.startable(ctx, c, commitID, "branch")
	if err != nil {
		return nil, err
	}
	p.network = network
	p.options = options
	ids := make([]string, count)
	for i := range ids {
		ids[i] = ident.New()
	}
	vms, err := m.cloneAll(ctx, c, p, ids)
	if err != nil {
		return nil, err
	}
	return m.show(context.WithoutCancel(ctx), vms)
}
