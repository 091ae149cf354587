package machine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/egress"
	"vers/internal/fault"
	"vers/internal/guest"
)

// Network is the virtual network of one VM.
type Network interface {
	DialAgent(ctx context.Context) (net.Conn, error)
	DialGuest(ctx context.Context, port uint16) (net.Conn, error)
	// SetEgress replaces what the guest may reach, and cuts connections that are not permitted any more.
	SetEgress(levels egress.Levels)
	// Recheck cuts connections to peers that are none any more.
	Recheck()
	Traffic() egress.Counters // also after Close
	Refusals() []egress.Refusal
	Close() error
}

// NetworkSpec says which network to open.
type NetworkSpec struct {
	VMID     string
	Dir      string // of the VM; the sockets are in it
	UID, GID int    // of the process that sends to the sockets
	Egress   egress.Levels
	Peers    Peers
}

// Networks opens the network of a VM. The policy MUST hold before the first packet passes.
type Networks func(ctx context.Context, spec NetworkSpec) (Network, error)

// Boot is what a new VM boots from: an image and a kernel, resolved from their names.
type Boot struct {
	ImageFile   string // file below <data>/images
	ImageDigest string
	ImageBytes  int64
	ImageConfig *catalog.ImageConfig // how it is run; nil: it does not say
	Kernel      commit.FileDigest    // Name is the path
	Initrd      commit.FileDigest
}

// Images is the catalogue of images and kernels. Unknown names are fault.NotFound with the message of spec/cli.md 5.3.
type Images interface {
	Resolve(ctx context.Context, orgID, image, kernel string) (Boot, error)
}

// Config of a Manager.
type Config struct {
	DataDir  string
	Catalog  *catalog.Catalog
	Commits  *commit.Store
	Driver   Driver
	Networks Networks
	Images   Images
	Logger   *slog.Logger

	ServerEgress egress.Policy // of all VMs; organisations and VMs narrow it

	// Quotas says what an organisation may use: nil is no limit. A nil function limits nobody.
	Quotas func(ctx context.Context, orgID string) (catalog.Quotas, error)

	UIDBase          int           // first user id of VM processes; 0: run them as ourselves
	MemoryReserve    int64         // bytes of host memory never given to VMs
	MemoryOvercommit float64       // 1: guests' memory never exceeds what the host has
	SleepAfter       time.Duration // VMs that do not say it sleep after that long without use; 0 never
	BootLimit        time.Duration
	ReadyLimit       time.Duration // for the agent's confirmation after a restore
	ImportWait       time.Duration // for the copy of another organisation's commit; 0: 45 s, since a fork has to end within 60 s (spec/api.md 1.7)
}

// Manager owns all VMs of one data directory. Every VM has one owner, its *vm, which does one state change at a time;
// the manager only finds it.
type Manager struct {
	Config
	ledger *ledger

	mu        sync.Mutex
	vms       map[string]*vm
	uids      map[int]bool
	templates map[string]chan struct{} // by key: being made; closed when that has come to an end
	imports   singleflight.Group       // by commit.ImportKey
	wakes     singleflight.Group       // by VM
	onWake    atomic.Pointer[func(took time.Duration, err error)]
	diffs     chan struct{} // as many as may run at once

	trafficMu sync.Mutex                 // also guards vm.counted
	traffic   map[string]egress.Counters // by organisation, of networks that are closed

	background sync.WaitGroup
	stop       context.CancelFunc
	life       context.Context
	kick       chan struct{}
}

// New makes a manager and adopts the VMs that run: see adopt.go. Close it to let them run on without it.
func New(ctx context.Context, c Config) (*Manager, error) {
	if c.BootLimit == 0 {
		c.BootLimit = 2 * time.Minute
	}
	if c.ReadyLimit == 0 {
		c.ReadyLimit = 30 * time.Second
	}
	if c.ImportWait == 0 {
		c.ImportWait = 45 * time.Second
	}
	if c.MemoryOvercommit == 0 {
		c.MemoryOvercommit = 1
	}
	total, err := HostMemory()
	if err != nil {
		return nil, err
	}
	m := &Manager{
		Config: c, vms: map[string]*vm{}, uids: map[int]bool{}, templates: map[string]chan struct{}{}, traffic: map[string]egress.Counters{}, kick: make(chan struct{}, 1), diffs: make(chan struct{}, diffsAtOnce),
		ledger: newLedger(int64(float64(total-c.MemoryReserve) * c.MemoryOvercommit)),
	}
	if err := os.MkdirAll(filepath.Join(c.DataDir, "vms"), 0o711); err != nil {
		return nil, err
	}
	policies, err := c.Catalog.OrganisationEgresses(ctx)
	if err != nil {
		return nil, err
	}
	m.life, m.stop = context.WithCancel(context.WithoutCancel(ctx))
	if err := m.adoptAll(ctx); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	m.background.Go(m.collector)
	m.background.Go(func() { m.followOrganisations(policies) })
	m.background.Go(m.caretaker)
	m.collectSoon()
	return m, nil
}

// Close ends the manager's own work and lets go of the VMs, which run on.
func (m *Manager) Close() error {
	m.stop()
	m.background.Wait()
	var errs []error
	for _, v := range m.all() {
		if network := v.openNetwork(); network != nil {
			errs = append(errs, network.Close())
		}
	}
	return errors.Join(errs...)
}

// CollectSoon asks for a garbage collection when there is time, for whoever makes files useless.
func (m *Manager) CollectSoon() { m.collectSoon() }

// collectSoon asks for a garbage collection when there is time.
func (m *Manager) collectSoon() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// collectEvery is how often garbage is collected when nobody asks: imports go stale by time alone.
const collectEvery = time.Hour

func (m *Manager) collector() {
	for {
		select {
		case <-m.life.Done():
			return
		case <-m.kick:
		case <-time.After(collectEvery):
		}
		done, err := m.Commits.Collect(m.life)
		if err != nil && m.life.Err() == nil {
			m.Logger.Error("garbage collection failed", "error", err)
			continue
		}
		if err := m.Catalog.Refill(); err != nil {
			m.Logger.Warn("no reserve for the catalogue", "error", err)
		}
		if !done {
			select {
			case <-m.life.Done():
				return
			case <-time.After(time.Second):
				m.collectSoon()
			}
		}
	}
}

// find gives the VM if the caller may see it.
func (m *Manager) find(c Caller, id string) (*vm, error) {
	m.mu.Lock()
	v := m.vms[id]
	m.mu.Unlock()
	if v == nil {
		return nil, fault.NotFoundf("VM '%s' not found", id)
	}
	if r := v.snapshot(); r.OrgID != c.OrgID || r.State == string(StateCreating) {
		return nil, fault.NotFoundf("VM '%s' not found", id)
	}
	return v, nil
}

// Get gives one VM. fault.NotFound also for a VM of another organisation.
func (m *Manager) Get(_ context.Context, c Caller, id string) (VM, error) {
	v, err := m.find(c, id)
	if err != nil {
		return VM{}, err
	}
	return v.snapshot(), nil
}

// List gives the organisation's VMs, newest first.
func (m *Manager) List(_ context.Context, c Caller) ([]VM, error) {
	m.mu.Lock()
	all := make([]*vm, 0, len(m.vms))
	for _, v := range m.vms {
		all = append(all, v)
	}
	m.mu.Unlock()
	list := []VM{}
	for _, v := range all {
		if r := v.snapshot(); r.OrgID == c.OrgID && r.State != string(StateCreating) {
			list = append(list, r)
		}
	}
	sortNewestFirst(list)
	return list, nil
}

// WaitReady waits until a booting VM can run commands. It returns the VM as it is then; fault.Conflict if it died.
func (m *Manager) WaitReady(ctx context.Context, c Caller, id string) (VM, error) {
	v, err := m.find(c, id)
	if err != nil {
		return VM{}, err
	}
	if err := v.waitBooted(ctx, false); err != nil {
		return v.snapshot(), err
	}
	return v.snapshot(), nil
}

// Guest gives the agent's client of a running VM; it waits while the VM boots, and wakes one that sleeps. So does the client
// itself with every call, should the VM have fallen asleep meanwhile.
func (m *Manager) Guest(ctx context.Context, c Caller, id string) (*guest.Client, error) {
	v, err := m.running(ctx, c, id)
	if err != nil {
		return nil, err
	}
	return v.guest, nil
}

// DialGuest connects to a TCP port of a running VM. Like Guest, it waits for the VM and wakes it. As long as the connection
// is open, the VM does not fall asleep by itself.
func (m *Manager) DialGuest(ctx context.Context, c Caller, id string, port uint16) (net.Conn, error) {
	v, err := m.running(ctx, c, id)
	if err != nil {
		return nil, err
	}
	return m.dial(ctx, v, func(n Network) (net.Conn, error) { return n.DialGuest(ctx, port) })
}

func (m *Manager) running(ctx context.Context, c Caller, id string) (*vm, error) {
	v, err := m.find(c, id)
	if err != nil {
		return nil, err
	}
	if err := v.waitBooted(ctx, false); err != nil {
		return nil, err
	}
	if v.snapshot().State == string(StateSleeping) {
		if err := m.awake(ctx, v); err != nil {
			return nil, err
		}
	}
	return v, v.reachable()
}

// Reachable says why the guest of a VM cannot be reached now: fault.Conflict if it is paused, sleeping, dead or about to
// end. It waits for nothing and wakes nobody.
func (m *Manager) Reachable(_ context.Context, c Caller, id string) error {
	v, err := m.find(c, id)
	if err != nil {
		return err
	}
	if v.snapshot().State == string(StateSleeping) {
		return fault.Conflictf("VM '%s' was put to sleep, which ends connections; the next one wakes it", id)
	}
	return v.reachable()
}

// reachable refuses VMs whose guest does not answer. One that sleeps is not refused: who connects wakes it.
func (v *vm) reachable() error {
	r, live := v.snapshot(), v.live()
	switch State(r.State) {
	case StateSleeping:
		return nil
	case StateRunning:
		if live.instance == nil {
			return nil // falls asleep, or wakes
		}
		select {
		case <-live.instance.Done():
			return fault.Conflictf("VM '%s' has just ended: it is being deleted, or its process is gone", r.ID)
		default:
			return nil
		}
	case StatePaused:
		if r.Reason != "" {
			return fault.Conflictf("VM '%s' is paused: %s", r.ID, r.Reason)
		}
		return fault.Conflictf("VM '%s' is paused: resume it first", r.ID)
	default:
		return fault.Conflictf("VM '%s' is %s: %s", r.ID, r.State, r.Reason)
	}
}

// takeUID reserves a user id for a VM's process.
func (m *Manager) takeUID() (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	base := m.UIDBase
	if base == 0 {
		base = 1 // not a real user id, only unique in the catalogue
	}
	for uid := base; uid < base+65536; uid++ {
		if !m.uids[uid] {
			m.uids[uid] = true
			return uid, nil
		}
	}
	return 0, fault.Exhaustedf("Insufficient system resources: all 65536 user ids for VM processes are in use")
}

func (m *Manager) freeUID(uid int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.uids, uid)
}

// ids gives the user and group a VM's process runs as; 0, 0 means "as ourselves".
func (m *Manager) ids(ctx context.Context, orgID string, uid int) (int, int, error) {
	if m.UIDBase == 0 {
		return 0, 0, nil
	}
	org, err := m.Catalog.Organisation(ctx, orgID)
	if err != nil {
		return 0, 0, err
	}
	return uid, org.GID, nil
}

func (m *Manager) vmDir(id string) string { return filepath.Join(m.DataDir, "vms", id) }

// randomBytes for identities. crypto/rand never fails on Linux.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func machineID() string { return fmt.Sprintf("%x", randomBytes(16)) }
