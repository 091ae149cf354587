package rig

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/guest"
	"vers/internal/ident"
	"vers/internal/machine"
	"vers/internal/server"
)

// folders implements server.Machines with folders.
type folders struct {
	dir     string
	catalog *catalog.Catalog

	mu        sync.Mutex
	vms       map[string]*folder
	configs   map[string]catalog.VMConfig // by commit
	bootPolls int
	impostor  bool
	ended     bool
}

// folder is one VM.
type folder struct {
	record machine.VM
	polls  int // how many times it shows itself as booting yet
	agent  *agentOf
}

var _ server.Machines = (*folders)(nil)

func newFolders(dir string, c *catalog.Catalog) *folders {
	return &folders{dir: dir, catalog: c, vms: map[string]*folder{}, configs: map[string]catalog.VMConfig{}}
}

func (f *folders) vmDir(id string) string     { return filepath.Join(f.dir, "vms", id) }
func (f *folders) commitDir(id string) string { return filepath.Join(f.dir, "commits", id) }

// end lets nothing behind.
func (f *folders) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	for _, v := range f.vms {
		v.agent.end()
	}
	killProcesses(f.dir)
}

func (f *folders) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, v := range f.vms {
		v.agent.drop()
	}
}

// add makes a VM. from is the commit to copy, or "". The caller holds mu.
func (f *folders) add(c machine.Caller, vm machine.VM, from string, env map[string]string) (*folder, error) {
	ctx := context.Background()
	if f.ended {
		return nil, fault.Unavailablef("the test has ended")
	}
	if vm.ID == "" {
		vm.ID = ident.New()
	}
	vm.OrgID, vm.OwnerID, vm.State, vm.CreatedAt = c.OrgID, c.KeyID, string(machine.StateRunning), time.Now()
	var err error
	if vm.SSHKey, err = newKey(); err != nil {
		return nil, err
	}
	hostKey, err := newKey()
	if err != nil {
		return nil, err
	}
	vm.SSHHostKey = hostKey
	if f.impostor {
		if vm.SSHHostKey, err = newKey(); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(f.vmDir(vm.ID), 0o755); err != nil {
		return nil, err
	}
	if from != "" {
		if err := copyTree(f.vmDir(vm.ID), f.commitDir(from)); err != nil {
			return nil, err
		}
	}
	all, err := f.catalog.Env(ctx, c.OrgID)
	if err != nil {
		return nil, err
	}
	all = maps.Clone(all)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, env)
	v := &folder{record: vm}
	if v.agent, err = startAgent(f.vmDir(vm.ID), vm, hostKey, all); err != nil {
		return nil, err
	}
	f.vms[vm.ID] = v
	return v, nil
}

func copyTree(to, from string) error {
	if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
		return nil // a commit that AddCommits made
	}
	return os.CopyFS(to, os.DirFS(from))
}

func (f *folders) find(c machine.Caller, id string) (*folder, error) {
	v := f.vms[id]
	if v == nil || v.record.OrgID != c.OrgID {
		return nil, fault.NotFoundf("VM '%s' not found", id)
	}
	return v, nil
}

// Run implements server.Machines.
func (f *folders) Run(_ context.Context, c machine.Caller, req machine.RunRequest) (machine.VM, error) {
	config := req.Config
	for _, size := range []struct{ to, standard *int64 }{
		{&config.MemSizeMiB, &machine.Defaults.MemSizeMiB}, {&config.VCPUCount, &machine.Defaults.VCPUCount},
		{&config.FSSizeMiB, &machine.Defaults.FSSizeMiB},
	} {
		if *size.to == 0 {
			*size.to = *size.standard
		}
	}
	if config.ImageName == "" {
		config.ImageName = machine.Defaults.ImageName
	}
	if config.KernelName == "" {
		config.KernelName = machine.Defaults.KernelName
	}
	switch {
	case config.ImageName != machine.Defaults.ImageName:
		return machine.VM{}, fault.NotFoundf("rootfs image '%s' not found", config.ImageName)
	case config.KernelName != machine.Defaults.KernelName:
		return machine.VM{}, fault.NotFoundf("kernel image '%s' not found", config.KernelName)
	case config.MemSizeMiB > 65536:
		return machine.VM{}, fault.Exhaustedf("Insufficient system resources: asked for %d MiB of memory, 65536 MiB are free", config.MemSizeMiB)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	v, err := f.add(c, machine.VM{Config: config, Labels: req.Labels}, "", req.Env)
	if err != nil {
		return machine.VM{}, err
	}
	if f.bootPolls > 0 && !req.WaitBoot {
		v.record.State, v.polls = string(machine.StateBooting), f.bootPolls
	}
	return v.record, nil
}

// Restore implements server.Machines.
func (f *folders) Restore(ctx context.Context, c machine.Caller, commitID string) (machine.VM, error) {
	vms, err := f.BranchCommit(ctx, c, commitID, 1)
	if err != nil {
		return machine.VM{}, err
	}
	return vms[0], nil
}

// Branch implements server.Machines.
func (f *folders) Branch(ctx context.Context, c machine.Caller, vmID string, req machine.BranchRequest) ([]machine.VM, machine.Commit, machine.Timing, error) {
	commit, timing, err := f.Commit(ctx, c, vmID, machine.CommitRequest{KeepPaused: req.KeepPaused})
	if err != nil {
		return nil, commit, timing, err
	}
	vms, err := f.BranchCommit(ctx, c, commit.ID, req.Count)
	return vms, commit, timing, err
}

// BranchCommit implements server.Machines.
func (f *folders) BranchCommit(ctx context.Context, c machine.Caller, commitID string, count int) ([]machine.VM, error) {
	commit, err := f.catalog.VisibleCommit(ctx, commitID)
	if err != nil || commit.OrgID != c.OrgID && !commit.IsPublic {
		return nil, fault.NotFoundf("commit '%s' not found", commitID)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var vms []machine.VM
	for range count {
		v, err := f.add(c, machine.VM{Config: f.configs[commitID], ParentCommit: commitID, GrandparentVM: commit.ParentVM}, commitID, nil)
		if err != nil {
			return nil, err
		}
		vms = append(vms, v.record)
	}
	return vms, nil
}

// Fork implements server.Machines.
func (f *folders) Fork(ctx context.Context, c machine.Caller, commitID string, publish machine.Publish) (machine.VM, machine.Commit, error) {
	if _, err := f.catalog.VisibleCommit(ctx, commitID); err != nil {
		return machine.VM{}, machine.Commit{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	id := ident.New()
	made := machine.Commit{ID: id, OrgID: c.OrgID, OwnerID: c.KeyID, Name: "fork-" + id[:8], CreatedAt: time.Now()}
	if err := copyTree(f.commitDir(id), f.commitDir(commitID)); err != nil {
		return machine.VM{}, made, err
	}
	f.configs[id] = f.configs[commitID]
	err := f.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		if err := tx.InsertCommit(ctx, made); err != nil {
			return err
		}
		return publish(ctx, tx, made)
	})
	if err != nil {
		return machine.VM{}, made, err
	}
	v, err := f.add(c, machine.VM{Config: f.configs[id]}, id, nil)
	if err != nil {
		return machine.VM{}, made, err
	}
	return v.record, made, nil
}

// Commit implements server.Machines.
func (f *folders) Commit(ctx context.Context, c machine.Caller, vmID string, req machine.CommitRequest) (machine.Commit, machine.Timing, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, err := f.find(c, vmID)
	if err != nil {
		return machine.Commit{}, machine.Timing{}, err
	}
	if v.record.State == string(machine.StateDead) {
		return machine.Commit{}, machine.Timing{}, fault.Conflictf("VM '%s' is dead", vmID)
	}
	made := machine.Commit{ID: req.CommitID, OrgID: c.OrgID, OwnerID: c.KeyID, Name: req.Name, Description: req.Description,
		CreatedAt: time.Now(), ParentVM: vmID, ParentCommit: v.record.ParentCommit}
	if made.ID == "" {
		made.ID = ident.New()
	}
	if made.Name == "" {
		made.Name = "commit-" + made.ID[:8]
	}
	if err := copyTree(f.commitDir(made.ID), f.vmDir(vmID)); err != nil {
		return made, machine.Timing{}, err
	}
	f.configs[made.ID] = v.record.Config
	if req.KeepPaused {
		v.record.State = string(machine.StatePaused)
	}
	return made, machine.Timing{Paused: 2500 * time.Microsecond}, f.catalog.InsertCommit(ctx, made)
}

// DeleteCommit implements server.Machines.
func (f *folders) DeleteCommit(ctx context.Context, c machine.Caller, commitID string) error {
	commit, err := f.catalog.VisibleCommit(ctx, commitID)
	if err != nil || commit.OrgID != c.OrgID {
		return fault.NotFoundf("commit '%s' not found", commitID)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, v := range f.vms {
		if v.record.ParentCommit == commitID {
			return fault.Conflictf("commit '%s' is in use: active VMs were started from it; delete them first", commitID)
		}
	}
	if tags, err := f.catalog.TagsOfCommit(ctx, commitID); err != nil || len(tags) > 0 {
		return errors.Join(err, fault.Conflictf("commit '%s' is tagged as %v; delete or move the tags first", commitID, tags))
	}
	return f.catalog.MarkCommitDeleted(ctx, commitID)
}

// change applies do to a VM.
func (f *folders) change(c machine.Caller, id string, do func(*folder) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, err := f.find(c, id)
	if err != nil {
		return err
	}
	return do(v)
}

// Pause implements server.Machines.
func (f *folders) Pause(_ context.Context, c machine.Caller, id string, _ bool) error {
	return f.change(c, id, func(v *folder) error { v.record.State = string(machine.StatePaused); return nil })
}

// Resume implements server.Machines.
func (f *folders) Resume(_ context.Context, c machine.Caller, id string, _ bool) error {
	return f.change(c, id, func(v *folder) error { v.record.State = string(machine.StateRunning); return nil })
}

// Resize implements server.Machines.
func (f *folders) Resize(_ context.Context, c machine.Caller, id string, size int64, _ bool) error {
	return f.change(c, id, func(v *folder) error {
		if size <= v.record.Config.FSSizeMiB {
			return fault.Invalidf("the disk has %d MiB already; it can only grow", v.record.Config.FSSizeMiB)
		}
		v.record.Config.FSSizeMiB = size
		return nil
	})
}

// SetLabels implements server.Machines.
func (f *folders) SetLabels(_ context.Context, c machine.Caller, id string, labels map[string]string) error {
	return f.change(c, id, func(v *folder) error { v.record.Labels = labels; return nil })
}

// Delete implements server.Machines.
func (f *folders) Delete(_ context.Context, c machine.Caller, id string, _ bool) error {
	return f.change(c, id, func(v *folder) error {
		delete(f.vms, id)
		v.agent.end()
		return os.RemoveAll(f.vmDir(id))
	})
}

// Get implements server.Machines.
func (f *folders) Get(_ context.Context, c machine.Caller, id string) (machine.VM, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, err := f.find(c, id)
	if err != nil {
		return machine.VM{}, err
	}
	shown := v.record
	if v.polls > 0 {
		if v.polls--; v.polls == 0 {
			v.record.State = string(machine.StateRunning)
		}
	}
	return shown, nil
}

// List implements server.Machines.
func (f *folders) List(_ context.Context, c machine.Caller) ([]machine.VM, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var vms []machine.VM
	for _, v := range f.vms {
		if v.record.OrgID == c.OrgID {
			vms = append(vms, v.record)
		}
	}
	slices.SortFunc(vms, func(a, b machine.VM) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return vms, nil
}

// Guest implements server.Machines.
func (f *folders) Guest(_ context.Context, c machine.Caller, id string) (*guest.Client, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, err := f.find(c, id)
	if err != nil {
		return nil, err
	}
	switch v.record.State {
	case string(machine.StateBooting):
		v.record.State, v.polls = string(machine.StateRunning), 0
	case string(machine.StateRunning):
	default:
		return nil, fault.Conflictf("VM '%s' is %s", id, v.record.State)
	}
	return v.agent.client(), nil
}
