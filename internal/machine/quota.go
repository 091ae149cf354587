package machine

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"vers/internal/catalog"
	"vers/internal/disk"
	"vers/internal/fault"
)

// Quotas bound what one organisation uses at a time. VMs, vCPUs and memory are booked before a VM starts and released
// when it is deleted or dead; stored bytes are reserved before a commit is captured, and what the files take counts once
// they are there. A VM that is adopted or a commit that exists is never touched by a quota that was lowered.

// Usage is what an organisation uses, and what it may use: nil is no limit.
type Usage struct {
	VMs         int64
	VCPUs       int64
	MemoryMiB   int64
	StoredBytes int64
	Quotas      catalog.Quotas
}

// booking of a VM with these sizes.
func (m *Manager) booking(orgID string, vcpus, memoryBytes int64) booking {
	return booking{bytes: memoryBytes + m.Driver.Host().OverheadBytes, orgID: orgID, vcpus: vcpus, memoryMiB: memoryBytes >> 20}
}

// book reserves host memory and a part of the organisation's quotas for each of the ids, or nothing.
func (m *Manager) book(ctx context.Context, each booking, ids ...string) error {
	q, err := m.quotas(ctx, each.orgID)
	if err != nil {
		return err
	}
	return m.ledger.book(each, q, ids...)
}

// rebook reserves host memory and a part of the quotas for a VM that was booked without.
func (m *Manager) rebook(ctx context.Context, id string, each booking) error {
	q, err := m.quotas(ctx, each.orgID)
	if err != nil {
		return err
	}
	return m.ledger.rebook(id, each, q)
}

// roomFor refuses count children of a VM for which there is no room now, before it is paused for them. It holds nothing:
// book decides.
func (m *Manager) roomFor(ctx context.Context, r VM, count int) error {
	each := m.booking(r.OrgID, r.Config.VCPUCount, r.Config.MemSizeMiB<<20)
	q, err := m.quotas(ctx, r.OrgID)
	if err != nil {
		return err
	}
	m.ledger.mu.Lock()
	defer m.ledger.mu.Unlock()
	return m.ledger.room(each, q, int64(count))
}

func (m *Manager) quotas(ctx context.Context, orgID string) (catalog.Quotas, error) {
	if m.Quotas == nil {
		return catalog.Quotas{}, nil
	}
	return m.Quotas(ctx, orgID)
}

// inUse sums the bookings of an organisation. The caller holds mu.
func (l *ledger) inUse(orgID string) (vms, vcpus, memoryMiB int64) {
	for _, b := range l.booked {
		if b.orgID == orgID {
			vms, vcpus, memoryMiB = vms+1, vcpus+b.vcpus, memoryMiB+b.memoryMiB
		}
	}
	return vms, vcpus, memoryMiB
}

// withinQuotas refuses n more VMs that would go beyond a quota. The caller holds mu.
func (l *ledger) withinQuotas(each booking, q catalog.Quotas, n int64) error {
	vms, vcpus, memory := l.inUse(each.orgID)
	for _, check := range []struct {
		what        string
		limit       *int64
		used, asked int64
		show        func(int64) string
		free        string
	}{
		{"VMs", q.VMs, vms, n, plain, "delete VMs"},
		{"vCPUs", q.VCPUs, vcpus, n * each.vcpus, plain, "delete VMs, or ask for fewer vCPUs"},
		{"memory", q.MemoryMiB, memory, n * each.memoryMiB, mebibytes, "delete VMs, or ask for less memory"},
	} {
		if check.limit != nil && check.used+check.asked > *check.limit {
			return overQuota(check.what, check.show(*check.limit), check.show(check.used), check.show(check.asked), check.free)
		}
	}
	return nil
}

func overQuota(what, limit, used, asked, free string) error {
	return fault.Exhaustedf("Quota of %s exceeded: this organisation may use %s, uses %s, and %s more were asked for; %s, or ask the operator of the server for more (versd org quota)",
		what, limit, used, asked, free)
}

// plain writes a number. Older clients derive their exit code from digit groups such as 404 in a message (spec/api.md
// 1.5); they all begin with "40", which is kept apart.
func plain(n int64) string { return strings.ReplaceAll(strconv.FormatInt(n, 10), "40", "4_0") }

// mebibytes writes a size, in the largest unit that needs no fraction.
func mebibytes(n int64) string {
	if n%1024 == 0 && n != 0 {
		return plain(n>>10) + " GiB"
	}
	return plain(n) + " MiB"
}

// captureWithin is capture for what counts against the quota of stored bytes. What a commit will take is known for certain
// only when the pages are captured; if the quota has no room for them, the VM goes on as if nothing had been.
func (m *Manager) captureWithin(ctx context.Context, v *vm, id string, keepPaused bool) (*taken, error) {
	before := v.snapshot()
	held, err := m.reserveStorage(ctx, before)
	if err != nil {
		return nil, err
	}
	t, err := m.capture(ctx, v, id, keepPaused)
	if err != nil {
		held.release()
		return nil, err
	}
	t.storage = held
	if err = held.growFor(ctx, t); err == nil {
		return t, nil
	}
	t.abort()
	if keepPaused && before.State == string(StateRunning) {
		if resumed := v.instance.Resume(context.WithoutCancel(ctx)); resumed != nil {
			m.Logger.Error("VM stays paused after a refused commit", "vm", before.ID, "error", resumed)
		}
	}
	return nil, err
}

// storage is a part of an organisation's quota of stored bytes, held while a commit is written.
type storage struct {
	m     *Manager
	orgID string
	bytes int64
	once  sync.Once
}

// reserveStorage holds what a commit of VM r takes at least: the disk layer that it freezes.
func (m *Manager) reserveStorage(ctx context.Context, r VM) (*storage, error) {
	s := &storage{m: m, orgID: r.OrgID}
	layer, err := disk.Allocated(m.Commits.LayerPath(r.LayerID))
	if err != nil {
		return nil, fmt.Errorf("look at the disk of VM %s: %w", r.ID, err)
	}
	return s, s.grow(ctx, layer)
}

// smallFiles is what the device state (33 to 115 KB) and the manifest of a commit take, at most.
const smallFiles = 256 << 10

// growFor holds what the captured memory takes too.
func (s *storage) growFor(ctx context.Context, t *taken) error {
	return s.grow(ctx, t.capture.Memory.Bytes()+smallFiles)
}

// grow holds more, or fails if the quota has no room. What is held already stays held.
func (s *storage) grow(ctx context.Context, bytes int64) error {
	q, err := s.m.quotas(ctx, s.orgID)
	if err != nil {
		return err
	}
	var stored int64
	if q.StorageMiB != nil {
		if stored, err = s.m.Commits.Stored(ctx, s.orgID); err != nil {
			return err
		}
	}
	l := s.m.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	used := stored + l.pending[s.orgID]
	if q.StorageMiB != nil && used+bytes > *q.StorageMiB<<20 {
		return overQuota("stored commits and images", mebibytes(*q.StorageMiB), mebibytes(up(used)), mebibytes(max(up(bytes), 1)), "delete commits or images")
	}
	l.pending[s.orgID] += bytes
	s.bytes += bytes
	return nil
}

// up rounds bytes up to MiB.
func up(bytes int64) int64 { return (bytes + 1<<20 - 1) >> 20 }

// ReserveStorage holds a part of an organisation's quota of stored bytes for what is not a commit, until release is called.
func (m *Manager) ReserveStorage(ctx context.Context, orgID string, bytes int64) (release func(), err error) {
	s := &storage{m: m, orgID: orgID}
	return s.release, s.grow(ctx, bytes)
}

// release gives back what is held: the commit's files count by themselves now, or there are none.
func (s *storage) release() {
	s.once.Do(func() {
		l := s.m.ledger
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.pending[s.orgID] -= s.bytes; l.pending[s.orgID] == 0 {
			delete(l.pending, s.orgID)
		}
	})
}

// Usage says what the caller's organisation uses.
func (m *Manager) Usage(ctx context.Context, c Caller) (u Usage, err error) {
	if u.Quotas, err = m.quotas(ctx, c.OrgID); err != nil {
		return u, err
	}
	if u.StoredBytes, err = m.Commits.Stored(ctx, c.OrgID); err != nil {
		return u, err
	}
	m.ledger.mu.Lock()
	defer m.ledger.mu.Unlock()
	u.VMs, u.VCPUs, u.MemoryMiB = m.ledger.inUse(c.OrgID)
	return u, nil
}

// Totals counts what all organisations have.
func (m *Manager) Totals(ctx context.Context) (catalog.Totals, error) {
	if _, err := m.Commits.Stored(ctx, ""); err != nil {
		return catalog.Totals{}, err
	}
	return m.Catalog.Totals(ctx)
}
