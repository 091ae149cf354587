package server

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"net"
	"path"
	"sync"
	"time"

	"vers/internal/catalog"
	"vers/internal/egress"
	"vers/internal/fault"
	"vers/internal/guest"
	"vers/internal/ident"
	"vers/internal/machine"
)

// fakeMachines is a machine manager without machines: VMs are records in memory, commits are rows of the catalogue.
type fakeMachines struct {
	catalog *catalog.Catalog
	hostKey string

	mu     sync.Mutex
	vms    map[string]machine.VM
	order  []string
	guests map[string]*fakeGuest
	fail   error              // the next call that changes something fails with it
	gate   chan struct{}      // Run waits until it is closed, if it is set
	began  chan struct{}      // Run says that it waits
	ended  chan error         // Run says with which context error it ended waiting
	lastly machine.RunRequest // what Run was asked last
	runs   int
	diff   machine.Diff          // what Diff answers
	diffed []machine.DiffRequest // what it was asked
	quotas catalog.Quotas        // that Usage shows
}

func (f *fakeMachines) failure() error {
	err := f.fail
	f.fail = nil
	return err
}

func (f *fakeMachines) find(c machine.Caller, id string) (machine.VM, error) {
	vm, ok := f.vms[id]
	if !ok || vm.OrgID != c.OrgID {
		return machine.VM{}, fault.NotFoundf("VM '%s' not found", id)
	}
	return vm, nil
}

func (f *fakeMachines) add(c machine.Caller, config catalog.VMConfig, labels map[string]string, parent catalog.Commit, options ...machine.Option) machine.VM {
	vm := machine.VM{ID: ident.New(), OrgID: c.OrgID, OwnerID: c.KeyID, State: "running", CreatedAt: time.Now(), Config: config,
		Labels: labels, ParentCommit: parent.ID, GrandparentVM: parent.ParentVM, SSHKey: "private key", SSHHostKey: f.hostKey}
	for _, option := range options {
		option(&vm)
	}
	row := vm
	row.UID = len(f.order) + 1
	if err := f.catalog.InsertVM(context.Background(), row); err != nil {
		panic(err)
	}
	f.vms[vm.ID] = vm
	f.order = append(f.order, vm.ID)
	f.guests[vm.ID] = &fakeGuest{files: map[string][]byte{"/etc/motd": []byte("hello\n")}, execs: map[string][]guest.Event{}}
	return vm
}

func (f *fakeMachines) Run(ctx context.Context, c machine.Caller, req machine.RunRequest) (machine.VM, error) {
	f.mu.Lock()
	gate := f.gate
	f.mu.Unlock()
	if gate != nil {
		f.began <- struct{}{}
		select {
		case <-gate:
		case <-ctx.Done():
		}
		f.ended <- ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.runs++
	f.lastly = req
	if err := f.failure(); err != nil {
		return machine.VM{}, err
	}
	return f.add(c, req.Config, req.Labels, catalog.Commit{}, req.Options...), nil
}

func (f *fakeMachines) Restore(ctx context.Context, c machine.Caller, commitID string, network machine.NetworkRequest, options ...machine.Option) (machine.VM, error) {
	vms, err := f.BranchCommit(ctx, c, commitID, 1, network, options...)
	if err != nil {
		return machine.VM{}, err
	}
	return vms[0], nil
}

func (f *fakeMachines) Branch(ctx context.Context, c machine.Caller, vmID string, req machine.BranchRequest) ([]machine.VM, machine.Commit, machine.Timing, error) {
	commit, timing, err := f.Commit(ctx, c, vmID, machine.CommitRequest{KeepPaused: req.KeepPaused})
	if err != nil {
		return nil, commit, timing, err
	}
	vms, err := f.BranchCommit(ctx, c, commit.ID, req.Count, req.Network, req.Options...)
	return vms, commit, timing, err
}

func (f *fakeMachines) BranchCommit(ctx context.Context, c machine.Caller, commitID string, count int, network machine.NetworkRequest, options ...machine.Option) ([]machine.VM, error) {
	commit, err := f.catalog.VisibleCommit(ctx, commitID)
	if err != nil || commit.OrgID != c.OrgID && !commit.IsPublic {
		return nil, fault.NotFoundf("commit '%s' not found", commitID)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failure(); err != nil {
		return nil, err
	}
	var vms []machine.VM
	config := machine.Defaults
	config.Egress = network.Egress
	for range count {
		vms = append(vms, f.add(c, config, nil, commit, options...))
	}
	return vms, nil
}

func (f *fakeMachines) Fork(ctx context.Context, c machine.Caller, commitID string, publish machine.Publish) (machine.VM, machine.Commit, error) {
	if _, err := f.catalog.VisibleCommit(ctx, commitID); err != nil {
		return machine.VM{}, machine.Commit{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failure(); err != nil {
		return machine.VM{}, machine.Commit{}, err
	}
	id := ident.New()
	commit := machine.Commit{ID: id, OrgID: c.OrgID, OwnerID: c.KeyID, Name: "fork-" + id[:8], CreatedAt: time.Now()}
	err := f.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		if err := tx.InsertCommit(ctx, commit); err != nil {
			return err
		}
		return publish(ctx, tx, commit)
	})
	if err != nil {
		return machine.VM{}, machine.Commit{}, err
	}
	return f.add(c, machine.Defaults, nil, catalog.Commit{}), commit, nil
}

func (f *fakeMachines) Commit(ctx context.Context, c machine.Caller, vmID string, req machine.CommitRequest) (machine.Commit, machine.Timing, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	vm, err := f.find(c, vmID)
	if err != nil {
		return machine.Commit{}, machine.Timing{}, err
	}
	if err := f.failure(); err != nil {
		return machine.Commit{}, machine.Timing{}, err
	}
	commit := machine.Commit{ID: req.CommitID, OrgID: c.OrgID, OwnerID: c.KeyID, Name: req.Name, Description: req.Description,
		CreatedAt: time.Now(), ParentVM: vmID, ParentCommit: vm.ParentCommit}
	if commit.ID == "" {
		commit.ID = ident.New()
	}
	if commit.Name == "" {
		commit.Name = "commit-" + commit.ID[:8]
	}
	if req.KeepPaused {
		vm.State = "paused"
		f.vms[vmID] = vm
	}
	return commit, machine.Timing{Paused: 2500 * time.Microsecond}, f.catalog.InsertCommit(ctx, commit)
}

func (f *fakeMachines) StartBuilder(ctx context.Context, c machine.Caller, req machine.BuilderRequest) (machine.VM, error) {
	return f.Restore(ctx, c, req.CommitID, machine.NetworkRequest{})
}

func (f *fakeMachines) KeepBuilder(context.Context, machine.Caller, string) error { return nil }

func (f *fakeMachines) HoldCommit(context.Context, machine.Caller, string) (func(), error) {
	return func() {}, nil
}

func (f *fakeMachines) BootKey(_ context.Context, _ machine.Caller, config catalog.VMConfig) (string, catalog.VMConfig, error) {
	return "key", config, nil
}

func (f *fakeMachines) MeasureCommits(context.Context) error { return nil }

func (f *fakeMachines) CollectSoon() {}

func (f *fakeMachines) DeleteCommit(ctx context.Context, c machine.Caller, commitID string) error {
	if tags, err := f.catalog.TagsOfCommit(ctx, commitID); err != nil || len(tags) > 0 {
		return fault.Conflictf("commit '%s' is tagged as %v; delete or move the tags first", commitID, tags)
	}
	return f.catalog.MarkCommitDeleted(ctx, commitID)
}

func (f *fakeMachines) Diff(_ context.Context, req machine.DiffRequest) (machine.Diff, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.diffed = append(f.diffed, req)
	return f.diff, f.failure()
}

// change applies do to a VM.
func (f *fakeMachines) change(c machine.Caller, id string, skipWaitBoot bool, do func(*machine.VM) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	vm, err := f.find(c, id)
	if err != nil {
		return err
	}
	if err := f.failure(); err != nil {
		return err
	}
	if skipWaitBoot && vm.State == "booting" {
		return fault.Conflictf("VM '%s' is still booting", id)
	}
	if err := do(&vm); err != nil {
		return err
	}
	f.vms[id] = vm
	return nil
}

func (f *fakeMachines) Pause(_ context.Context, c machine.Caller, id string, skip bool) error {
	return f.change(c, id, skip, func(vm *machine.VM) error { vm.State = "paused"; return nil })
}

func (f *fakeMachines) Resume(_ context.Context, c machine.Caller, id string, skip bool) error {
	return f.change(c, id, skip, func(vm *machine.VM) error { vm.State = "running"; return nil })
}

func (f *fakeMachines) Sleep(_ context.Context, c machine.Caller, id string, skip bool) error {
	return f.change(c, id, skip, func(vm *machine.VM) error {
		if vm.State != "running" {
			return fault.Conflictf("VM '%s' is %s: only a running VM can be put to sleep", id, vm.State)
		}
		now := time.Now()
		vm.State, vm.SleptAt = "sleeping", &now
		return nil
	})
}

func (f *fakeMachines) SetTerms(_ context.Context, c machine.Caller, id string, t machine.Terms) error {
	return f.change(c, id, false, func(vm *machine.VM) error { machine.WithTerms(t)(vm); return nil })
}

func (f *fakeMachines) SleepsAfter(vm machine.VM) time.Duration {
	if vm.SleepAfter == nil {
		return 0
	}
	return time.Duration(*vm.SleepAfter) * time.Second
}

func (f *fakeMachines) OnWake(func(time.Duration, error)) {}

func (f *fakeMachines) Reachable(context.Context, machine.Caller, string) error {
	panic("the tests reach the guest through fakeMachines.open")
}

func (f *fakeMachines) Resize(_ context.Context, c machine.Caller, id string, size int64, skip bool) error {
	return f.change(c, id, skip, func(vm *machine.VM) error {
		if size <= vm.Config.FSSizeMiB {
			return fault.Invalidf("the disk has %d MiB already; it can only grow", vm.Config.FSSizeMiB)
		}
		vm.Config.FSSizeMiB = size
		return nil
	})
}

func (f *fakeMachines) SetLabels(_ context.Context, c machine.Caller, id string, labels map[string]string) error {
	return f.change(c, id, false, func(vm *machine.VM) error { vm.Labels = labels; return nil })
}

func (f *fakeMachines) Delete(_ context.Context, c machine.Caller, id string, skip bool) error {
	err := f.change(c, id, skip, func(*machine.VM) error { return nil })
	if err == nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.vms, id)
		return f.catalog.DeleteVM(context.Background(), id)
	}
	return err
}

func (f *fakeMachines) SetNetwork(_ context.Context, c machine.Caller, id string, req machine.NetworkRequest) error {
	return f.change(c, id, false, func(vm *machine.VM) error { vm.Config.Egress = req.Egress; return nil })
}

func (f *fakeMachines) Egress(_ context.Context, c machine.Caller, id string) (machine.EgressView, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	vm, err := f.find(c, id)
	return machine.EgressView{Levels: egress.Stack(egress.Policy{}, nil, vm.Config.Egress), Traffic: egress.Counters{BytesOut: 7}}, err
}

func (f *fakeMachines) Traffic(context.Context) (map[string]egress.Counters, error) {
	return map[string]egress.Counters{"acme": {BytesOut: 4711, Refused: 3}, "other": {}}, nil
}

func (f *fakeMachines) Usage(ctx context.Context, c machine.Caller) (machine.Usage, error) {
	vms, err := f.List(ctx, c)
	return machine.Usage{VMs: int64(len(vms)), StoredBytes: 4096, Quotas: f.quotas}, err
}

func (f *fakeMachines) Totals(ctx context.Context) (catalog.Totals, error) {
	return f.catalog.Totals(ctx)
}

func (f *fakeMachines) Get(_ context.Context, c machine.Caller, id string) (machine.VM, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.find(c, id)
}

func (f *fakeMachines) List(_ context.Context, c machine.Caller) ([]machine.VM, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var vms []machine.VM
	for _, id := range f.order {
		if vm, err := f.find(c, id); err == nil {
			vms = append(vms, vm)
		}
	}
	return vms, nil
}

func (f *fakeMachines) Guest(context.Context, machine.Caller, string) (*guest.Client, error) {
	panic("the tests reach the guest through fakeMachines.open")
}

// open replaces Server.guests.
func (f *fakeMachines) open(_ context.Context, c machine.Caller, id string) (guestAccess, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	vm, err := f.find(c, id)
	if err != nil {
		return nil, err
	}
	if vm.State != "running" {
		return nil, fault.Conflictf("VM '%s' is %s", id, vm.State)
	}
	return f.guests[id], nil
}

// fakeGuest plays back what is set as script to every command.
type fakeGuest struct {
	mu     sync.Mutex
	script []guest.Event
	broken error             // ends the stream after the script
	hold   chan struct{}     // the stream waits for it after the script
	closed chan struct{}     // receives when a stream is closed
	asked  guest.ExecRequest // last command
	files  map[string][]byte
	mode   fs.FileMode
	execs  map[string][]guest.Event
	logs   guest.Logs
}

func (g *fakeGuest) Exec(ctx context.Context, req guest.ExecRequest) (eventStream, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if req.ID == "" {
		req.ID = ident.New()
	}
	g.asked = req
	g.execs[req.ID] = g.script
	return &fakeStream{ctx: ctx, guest: g, id: req.ID, rest: g.script}, nil
}

func (g *fakeGuest) Signal(_ context.Context, execID, signal string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.execs[execID]; !ok {
		return fault.NotFoundf("command %s not found", execID)
	}
	if signal == "" {
		return fault.Invalidf("unknown signal")
	}
	return fault.Conflictf("command %s has ended", execID)
}

func (g *fakeGuest) Attach(ctx context.Context, req guest.AttachRequest) (eventStream, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	events, ok := g.execs[req.ExecID]
	if !ok {
		return nil, fault.NotFoundf("command %s not found", req.ExecID)
	}
	var rest []guest.Event
	for _, e := range events {
		old := req.FromLatest && e.Type == guest.EventChunk || req.Cursor != nil && e.Cursor <= *req.Cursor
		if !old {
			rest = append(rest, e)
		}
	}
	return &fakeStream{ctx: ctx, guest: g, id: req.ExecID, rest: rest}, nil
}

func (g *fakeGuest) Logs(_ context.Context, req guest.LogsRequest) (guest.Logs, error) {
	if req.Offset > 0 {
		return guest.Logs{NextOffset: req.Offset, EOF: true}, nil
	}
	return g.logs, nil
}

func (g *fakeGuest) ReadFile(_ context.Context, req guest.FileRequest) (io.ReadCloser, guest.FileInfo, error) {
	content, ok := g.files[req.Path]
	switch {
	case !ok:
		return nil, guest.FileInfo{}, fault.NotFoundf("file %s not found", req.Path)
	case req.Offset > int64(len(content)):
		return nil, guest.FileInfo{}, fault.Invalidf("offset %d is not in the file", req.Offset)
	}
	return io.NopCloser(bytes.NewReader(content[req.Offset:])), guest.FileInfo{Size: int64(len(content))}, nil
}

func (g *fakeGuest) WriteFile(_ context.Context, req guest.FileRequest, r io.Reader) error {
	there, ok := g.files[req.Path]
	switch {
	case path.Dir(req.Path) != "/etc" && !req.CreateDirs:
		return fault.NotFoundf("directory %s not found", path.Dir(req.Path))
	case req.InPlace && !ok:
		return fault.NotFoundf("file %s not found", req.Path)
	case req.Offset > int64(len(there)):
		return fault.Invalidf("offset %d is not in the file", req.Offset)
	}
	content, err := io.ReadAll(r)
	g.files[req.Path], g.mode = append(there[:req.Offset:req.Offset], content...), req.Mode
	return err
}

// SSH gives a connection whose other end greets and then sends back what it gets.
func (g *fakeGuest) Unpack(_ context.Context, _ guest.UnpackRequest, archive io.Reader) error {
	_, err := io.Copy(io.Discard, archive)
	return err
}

func (g *fakeGuest) Pack(context.Context, guest.PackRequest) (io.ReadCloser, error) {
	return nil, fault.NotFoundf("no files")
}

func (g *fakeGuest) SSH(context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		if _, err := io.WriteString(theirs, "SSH-2.0-fake\r\n"); err == nil {
			_, _ = io.Copy(theirs, theirs)
		}
	}()
	return ours, nil
}

type fakeStream struct {
	ctx   context.Context
	guest *fakeGuest
	id    string
	rest  []guest.Event
	done  bool
}

func (s *fakeStream) Recv() (guest.Event, error) {
	if s.done {
		return guest.Event{}, io.EOF
	}
	if len(s.rest) == 0 {
		if s.guest.hold != nil {
			select {
			case <-s.guest.hold:
			case <-s.ctx.Done():
				return guest.Event{}, s.ctx.Err()
			}
		}
		if s.guest.broken != nil {
			return guest.Event{}, s.guest.broken
		}
		return guest.Event{}, io.EOF
	}
	event := s.rest[0]
	s.rest = s.rest[1:]
	event.ExecID = s.id
	s.done = event.Type != guest.EventChunk
	return event, nil
}

func (s *fakeStream) Close() error {
	if s.guest.closed != nil {
		s.guest.closed <- struct{}{}
	}
	return nil
}
