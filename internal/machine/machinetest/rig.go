// Package machinetest puts a whole machine.Manager on the machines of fake, for tests that need VMs and not QEMU: a run,
// branch or commit takes a few milliseconds.
//
//	rig := machinetest.New(t, machinetest.Options{})
//	vm := rig.Run(t)
//	rig.Driver.FailCapture(errors.New("no"))   // and other faults: Driver.SetHook, SetFull, Machine(id).Crash
//	rig.Restart(t)                             // versd stops and starts again, machines run on
//
// When the test ends, everything ends, and the rig looks whether something is left.
package machinetest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/ident"
	"vers/internal/machine"
	"vers/internal/machine/fake"
)

// Patience is how long a test waits for anything. It is reached only when the test fails.
const Patience = 2 * time.Minute

// Options of a Rig. They may be changed between Stop and Start.
type Options struct {
	Logger     *slog.Logger  // nil: nothing is logged
	BootLimit  time.Duration // 0: Patience
	ReadyLimit time.Duration // 0: Patience
	ImportWait time.Duration // 0: Patience
	SleepAfter time.Duration // 0: never
	MemoryMiB  int64         // what VMs may have in all; 0: no limit that a test reaches
	FlatBudget int64         // bytes, see commit.Options
	Quotas     func(ctx context.Context, orgID string) (catalog.Quotas, error)
}

// Rig is a versd without HTTP, its data directory, and the host that its machines run on. The fields from Manager to
// Images are new after every Start.
type Rig struct {
	Options Options
	Dir     string       // data directory
	Driver  *fake.Driver // lives on over restarts, with its machines

	Manager *machine.Manager
	Catalog *catalog.Catalog
	Commits *commit.Store
	Images  *fake.Images

	Acme, Other machine.Caller // of two organisations
}

// New starts a versd in a directory of its own. It ends with the test, and so do all machines.
func New(t testing.TB, o Options) *Rig {
	t.Helper()
	r := &Rig{Options: o, Dir: dataDir(t), Driver: fake.New()}
	t.Cleanup(func() { r.end(t) })
	r.open(t)
	for i, caller := range []*machine.Caller{&r.Acme, &r.Other} {
		*caller = r.AddOrganisation(t, []string{"acme", "other"}[i])
	}
	r.Start(t)
	return r
}

// dataDir makes a directory, in memory where there is room: every commit is synced, which takes a disk longer than all
// the rest.
func dataDir(t testing.TB) string {
	const memory, enough = "/dev/shm", 4 << 30
	var fs unix.Statfs_t
	if unix.Statfs(memory, &fs) != nil || int64(fs.Bavail)*fs.Bsize < enough {
		return t.TempDir()
	}
	sweep(memory)
	dir, err := os.MkdirTemp(memory, fmt.Sprintf(dirName, os.Getpid())+"-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the data directory: %v", err)
		}
	})
	return dir
}

// dirName begins the name of a data directory: with the process that it is of.
const dirName = "vers-machinetest-%d"

// sweep removes data directories of test programs that were killed: they would hold memory for ever.
func sweep(parent string) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, e := range entries {
		var pid int
		if _, err := fmt.Sscanf(e.Name(), dirName+"-", &pid); err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			os.RemoveAll(filepath.Join(parent, e.Name()))
		}
	}
}

// open opens the catalogue, unless it is open.
func (r *Rig) open(t testing.TB) {
	t.Helper()
	if r.Catalog != nil {
		return
	}
	var err error
	r.Catalog, err = catalog.Open(context.Background(), filepath.Join(r.Dir, "catalog.db"))
	check(t, err)
}

// Start starts versd after Stop.
func (r *Rig) Start(t testing.TB) {
	t.Helper()
	check(t, r.TryStart(t))
}

// TryStart is Start for a versd that may refuse.
func (r *Rig) TryStart(t testing.TB) error {
	t.Helper()
	r.open(t)
	log := r.Options.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	limit := func(d time.Duration) time.Duration {
		if d == 0 {
			return Patience
		}
		return d
	}
	var err error
	r.Commits, err = commit.Open(commit.Options{Dir: r.Dir, Catalog: r.Catalog, Logger: log, FlatBudget: r.Options.FlatBudget})
	check(t, err)
	r.Images, err = fake.NewImages(context.Background(), r.Dir, r.Catalog)
	check(t, err)
	config := machine.Config{
		DataDir: r.Dir, Catalog: r.Catalog, Commits: r.Commits, Driver: r.Driver, Networks: fake.Networks(r.Driver),
		Images: r.Images, Logger: log, MemoryOvercommit: 1 << 20, Quotas: r.Options.Quotas, SleepAfter: r.Options.SleepAfter,
		BootLimit: limit(r.Options.BootLimit), ReadyLimit: limit(r.Options.ReadyLimit), ImportWait: limit(r.Options.ImportWait),
	}
	if r.Options.MemoryMiB > 0 {
		total, err := machine.HostMemory()
		check(t, err)
		config.MemoryOvercommit, config.MemoryReserve = 1, total-r.Options.MemoryMiB<<20
	}
	r.Manager, err = machine.New(context.Background(), config)
	return err
}

// Stop ends versd. Machines run on; the catalogue stays open, to be looked at and changed.
func (r *Rig) Stop(t testing.TB) {
	t.Helper()
	if r.Manager != nil {
		check(t, r.Manager.Close())
		r.Manager = nil
	}
	if n := r.Driver.Networks(); n != 0 {
		t.Errorf("%d networks are open without versd", n)
	}
}

// Restart is Stop and Start, with the catalogue closed in between.
func (r *Rig) Restart(t testing.TB) {
	t.Helper()
	r.Stop(t)
	check(t, r.Catalog.Close())
	r.Catalog = nil
	r.Start(t)
}

// end ends everything, and looks whether something is left.
func (r *Rig) end(t testing.TB) {
	var errs []error
	if r.Manager != nil {
		errs = append(errs, r.Manager.Close())
	}
	r.Driver.SetHook(nil)
	r.Driver.EndAll()
	if r.Catalog != nil {
		errs = append(errs, r.Catalog.Close())
	}
	if err := errors.Join(errs...); err != nil {
		t.Errorf("end: %v", err)
	}
	if machines, networks := r.Driver.Running(), r.Driver.Networks(); machines != 0 || networks != 0 {
		t.Errorf("%d machines and %d networks are left", machines, networks)
	}
}

// AddOrganisation makes an organisation with one key, and gives the caller who has it.
func (r *Rig) AddOrganisation(t testing.TB, name string) machine.Caller {
	t.Helper()
	all, err := r.Catalog.Organisations(t.Context())
	check(t, err)
	org := catalog.Organisation{ID: ident.New(), Name: name, GID: 200000 + len(all), CreatedAt: time.Now()}
	check(t, r.Catalog.InsertOrganisation(t.Context(), org))
	key := catalog.Key{ID: ident.New(), OrgID: org.ID, Name: "key of " + name, CreatedAt: time.Now()}
	check(t, r.Catalog.InsertKey(t.Context(), key))
	return machine.Caller{OrgID: org.ID, KeyID: key.ID}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
