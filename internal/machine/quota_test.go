package machine_test

import (
	"context"
	"errors"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/machine"
	"vers/internal/machine/fake"
	"vers/internal/machine/machinetest"
)

// quotas are those of acme; other organisations have none.
type quotas struct {
	mu   sync.Mutex
	acme string
	of   catalog.Quotas
}

func (q *quotas) set(of catalog.Quotas) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.of = of
}

func (q *quotas) get(_ context.Context, orgID string) (catalog.Quotas, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if orgID != q.acme {
		return catalog.Quotas{}, nil
	}
	return q.of, nil
}

func newQuotaRig(t *testing.T) (*rig, *quotas) {
	q := &quotas{}
	r := newRig(t, machinetest.Options{Quotas: q.get})
	q.mu.Lock()
	defer q.mu.Unlock()
	q.acme = r.Acme.OrgID
	return r, q
}

func limit(n int64) *int64 { return &n }

func (r *rig) used() machine.Usage {
	r.t.Helper()
	u, err := r.Manager.Usage(r.ctx, r.Acme)
	must(r.t, err)
	return u
}

// oldClients derive exit codes from these words and digits in a message (spec/api.md 1.5).
var oldClients = regexp.MustCompile(`(?i)40[01349]|unauthorized|forbidden|not found|bad request|time[d]? ?out|deadline exceeded|cancel`)

func (r *rig) refuses(what string, err error, part string) {
	r.t.Helper()
	wantError(r.t, what, err, fault.Exhausted, part)
	if err != nil && oldClients.MatchString(err.Error()) {
		r.t.Errorf("%s: older clients mistake %q for another failure", what, err)
	}
}

func (r *rig) tryRun(c machine.Caller) error {
	_, err := r.Manager.Run(r.ctx, c, machine.RunRequest{Config: machinetest.Small, Cold: true, WaitBoot: true})
	return err
}

func TestQuotaOfVMs(t *testing.T) {
	t.Parallel()
	r, q := newQuotaRig(t)
	size := machinetest.Small
	for name, c := range map[string]struct {
		of   catalog.Quotas
		part string
	}{
		"VMs":    {catalog.Quotas{VMs: limit(2)}, "may use 2, uses 2, and 1 more"},
		"vCPUs":  {catalog.Quotas{VCPUs: limit(2*size.VCPUCount + size.VCPUCount - 1)}, "vCPUs"},
		"memory": {catalog.Quotas{MemoryMiB: limit(3*size.MemSizeMiB - 1)}, "memory"},
		"none":   {catalog.Quotas{VMs: limit(2), VCPUs: limit(1000), MemoryMiB: limit(1 << 20)}, "versd org quota"},
	} {
		q.set(c.of)
		first, second := r.cold(), r.cold()
		before := r.books()
		r.refuses(name, r.tryRun(r.Acme), c.part)
		r.refuses(name, r.tryRun(r.Acme), "Quota")
		_, _, _, err := r.Manager.Branch(r.ctx, r.Acme, first.ID, machine.BranchRequest{Count: 1})
		r.refuses(name+" by branch", err, "Quota")
		r.unchanged(before)
		must(t, r.tryRun(r.Other)) // quotas are by organisation

		// A paused VM counts, a dead or deleted one does not.
		must(t, r.Manager.Pause(r.ctx, r.Acme, first.ID, false))
		r.refuses(name+" beside a paused one", r.tryRun(r.Acme), "Quota")
		r.Machine(t, first.ID).Crash()
		r.AwaitState(t, r.Acme, first.ID, machine.StateDead)
		must(t, r.tryRun(r.Acme))
		r.refuses(name+" again", r.tryRun(r.Acme), "Quota")
		must(t, r.Manager.Delete(r.ctx, r.Acme, second.ID, false))
		must(t, r.tryRun(r.Acme))
		r.empty()
	}
}

// All or nothing: a branch into more children than there is room for makes none.
func TestQuotaOfBranch(t *testing.T) {
	t.Parallel()
	r, q := newQuotaRig(t)
	vm := r.cold()
	q.set(catalog.Quotas{VMs: limit(4)})
	before := r.books()
	_, _, _, err := r.Manager.Branch(r.ctx, r.Acme, vm.ID, machine.BranchRequest{Count: 4})
	r.refuses("branch", err, "uses 1, and 4 more")
	r.unchanged(before)
	if vms, _ := r.branch(vm.ID, 3); len(vms) != 3 {
		t.Errorf("%d children", len(vms))
	}
}

// Whatever fails after the booking gives it back.
func TestQuotaReleasedOnFailure(t *testing.T) {
	t.Parallel()
	r, q := newQuotaRig(t)
	q.set(catalog.Quotas{VMs: limit(1)})
	for range 3 {
		r.Driver.SetHook(failing(fake.OpStart, always))
		if err := r.tryRun(r.Acme); fault.Is(err, fault.Exhausted) || err == nil {
			t.Fatalf("%v", err)
		}
		r.Driver.SetHook(nil)
		for _, vm := range r.list() {
			must(t, r.Manager.Delete(r.ctx, r.Acme, vm.ID, false))
		}
	}
	must(t, r.tryRun(r.Acme))
}

func (r *rig) list() []machine.VM {
	r.t.Helper()
	vms, err := r.Manager.List(r.ctx, r.Acme)
	must(r.t, err)
	return vms
}

func TestQuotaRace(t *testing.T) {
	t.Parallel()
	r, q := newQuotaRig(t)
	const room, callers = 5, 24
	q.set(catalog.Quotas{VMs: limit(room)})
	var made atomic.Int64
	var wait sync.WaitGroup
	for range callers {
		wait.Go(func() {
			switch err := r.tryRun(r.Acme); {
			case err == nil:
				made.Add(1)
			case !fault.Is(err, fault.Exhausted):
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if u := r.used(); made.Load() != room || u.VMs != room || u.VCPUs != room*machinetest.Small.VCPUCount || u.MemoryMiB != room*machinetest.Small.MemSizeMiB {
		t.Errorf("%d made, %+v in use", made.Load(), u)
	}
	if booked, _ := r.Manager.Booked(); booked != room*(machinetest.Small.MemSizeMiB<<20+r.Driver.Host().OverheadBytes) {
		t.Errorf("%d bytes are booked", booked)
	}
	r.Restart(t)
	if u := r.used(); u.VMs != room || u.MemoryMiB != room*machinetest.Small.MemSizeMiB {
		t.Errorf("after a restart: %+v", u)
	}
	r.refuses("run after a restart", r.tryRun(r.Acme), "Quota")
	r.empty()
	if u := r.used(); u.VMs != 0 || u.MemoryMiB != 0 {
		t.Errorf("without VMs: %+v", u)
	}
}

func TestQuotaOfStorage(t *testing.T) {
	t.Parallel()
	r, q := newQuotaRig(t)
	vm := r.cold()
	r.commit(vm.ID)
	one := r.used().StoredBytes
	if one <= 0 {
		t.Fatalf("a commit takes %d bytes", one)
	}
	if u, err := r.Manager.Usage(r.ctx, r.Other); err != nil || u.StoredBytes != 0 {
		t.Errorf("the other organisation: %+v, %v", u, err)
	}
	q.set(catalog.Quotas{StorageMiB: limit(0)})
	before := r.books()
	for _, keepPaused := range []bool{false, true} {
		_, _, err := r.Manager.Commit(r.ctx, r.Acme, vm.ID, machine.CommitRequest{KeepPaused: keepPaused})
		r.refuses("commit", err, "stored commits")
		if got, err := r.Manager.Get(r.ctx, r.Acme, vm.ID); err != nil || got.State != string(machine.StateRunning) {
			t.Errorf("after a refused commit the VM is %s, %v", got.State, err)
		}
		r.consistent()
	}
	_, _, _, err := r.Manager.Branch(r.ctx, r.Acme, vm.ID, machine.BranchRequest{Count: 1})
	r.refuses("branch", err, "stored commits")
	r.unchanged(before)

	q.set(catalog.Quotas{StorageMiB: limit(1 << 20)})
	r.commit(vm.ID)
	if two := r.used().StoredBytes; two <= one {
		t.Errorf("two commits take %d bytes, one took %d", two, one)
	}
	r.empty()
	if u := r.used(); u.StoredBytes != 0 {
		t.Errorf("without commits %d bytes are stored", u.StoredBytes)
	}
}

// The size of the pages is known only after the capture; then the VM goes on, and nothing of the commit stays.
func TestQuotaOfStorageAfterCapture(t *testing.T) {
	t.Parallel()
	r, q := newQuotaRig(t)
	vm := r.cold()
	r.Driver.SetHook(func(op fake.Op, _ machine.Spec) error {
		if op == fake.OpCapture { // it passed the first check
			q.set(catalog.Quotas{StorageMiB: limit(0)})
		}
		return nil
	})
	for _, keepPaused := range []bool{false, true} {
		q.set(catalog.Quotas{StorageMiB: limit(1 << 20)})
		_, _, err := r.Manager.Commit(r.ctx, r.Acme, vm.ID, machine.CommitRequest{KeepPaused: keepPaused})
		r.refuses("commit", err, "stored commits")
		r.consistent()
		if got, err := r.Manager.Get(r.ctx, r.Acme, vm.ID); err != nil || got.State != string(machine.StateRunning) {
			t.Errorf("the VM is %s, %v", got.State, err)
		}
	}
	r.Driver.SetHook(nil)
	q.set(catalog.Quotas{})
	r.commit(vm.ID)
	r.empty()
}

// What commits in flight will take is held, so that commits side by side do not get past the quota together.
func TestQuotaOfStorageRace(t *testing.T) {
	t.Parallel()
	r, q := newQuotaRig(t)
	vms := make([]machine.VM, 8)
	for i := range vms {
		vms[i] = r.cold()
	}
	r.commit(vms[0].ID)
	r.used()
	const room = 1 // MiB
	q.set(catalog.Quotas{StorageMiB: limit(room)})
	var wait sync.WaitGroup
	for _, vm := range vms {
		wait.Go(func() {
			for range 6 {
				_, _, err := r.Manager.Commit(r.ctx, r.Acme, vm.ID, machine.CommitRequest{})
				if err != nil && !fault.Is(err, fault.Exhausted) {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	// The manifests, a few KiB each, are the only part that is not known beforehand.
	if u := r.used(); u.StoredBytes > room<<20+64<<10 {
		t.Errorf("%d bytes are stored with a quota of %d", u.StoredBytes, room<<20)
	}
	if _, err := r.Manager.Usage(r.ctx, r.Acme); err != nil {
		t.Error(err)
	}
	r.empty()
}

// Quotas that cannot be read refuse: without them nobody knows whether there is room.
func TestQuotaUnreadable(t *testing.T) {
	t.Parallel()
	r := newRig(t, machinetest.Options{Quotas: func(context.Context, string) (catalog.Quotas, error) {
		return catalog.Quotas{}, errors.New("no catalogue")
	}})
	if err := r.tryRun(r.Acme); err == nil || len(r.list()) != 0 {
		t.Errorf("%v, %d VMs", err, len(r.list()))
	}
}
