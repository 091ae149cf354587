// Package steps builds a commit from a Dockerfile (spec/cli.md 6.6): its steps run in a VM, and after each that changes files
// a commit is taken. The commits of steps are internal; a build that comes to the same step again goes on from there. Only
// the last commit is its owner's.
//
// A stage is a VM of its own, started when the first step of it has to run. What a build has started ends with it, whatever
// happens: VMs name their build in the catalogue, and if versd is killed the next one ends them.
package steps

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"vers/internal/build/source"
	"vers/internal/catalog"
	"vers/internal/guest"
	"vers/internal/machine"
	"vers/internal/registry"
)

// Machines are the VMs of builds. *machine.Manager implements it.
type Machines interface {
	Run(ctx context.Context, caller machine.Caller, req machine.RunRequest) (machine.VM, error)
	StartBuilder(ctx context.Context, caller machine.Caller, req machine.BuilderRequest) (machine.VM, error)
	KeepBuilder(ctx context.Context, caller machine.Caller, vmID string) error
	Delete(ctx context.Context, caller machine.Caller, vmID string, skipWaitBoot bool) error
	Commit(ctx context.Context, caller machine.Caller, vmID string, req machine.CommitRequest) (machine.Commit, machine.Timing, error)
	// HoldCommit keeps a commit from being collected until release is called.
	HoldCommit(ctx context.Context, caller machine.Caller, id string) (release func(), err error)
	BootKey(ctx context.Context, caller machine.Caller, config catalog.VMConfig) (string, catalog.VMConfig, error)
	MeasureCommits(ctx context.Context) error
	CollectSoon()
}

// Guest is the agent in a VM.
type Guest interface {
	Exec(ctx context.Context, req guest.ExecRequest) (Stream, error)
	Unpack(ctx context.Context, req guest.UnpackRequest, archive io.Reader) error
	Pack(ctx context.Context, req guest.PackRequest) (io.ReadCloser, error)
}

// Stream follows a command. Recv gives io.EOF after an exit or error event; every other end is an error.
type Stream interface {
	Recv() (guest.Event, error)
	Close() error
}

// Options of a Runner.
type Options struct {
	Catalog  *catalog.Catalog
	Registry *registry.Registry
	Machines Machines
	// Guest waits for a booting VM; a paused or dead one is fault.Conflict.
	Guest  func(ctx context.Context, caller machine.Caller, vmID string) (Guest, error)
	Dir    string // for the files of builds under way; "" the system's
	Limits source.Limits
	Logger *slog.Logger

	CacheBytes int64         // of the steps of one organisation, on disk; 0: 20 GiB
	CacheAge   time.Duration // of steps that no build used; 0: 30 days
	Now        func() time.Time
}

const (
	defaultCacheBytes = 20 << 30
	defaultCacheAge   = 30 * 24 * time.Hour
	trimEvery         = time.Hour
)

// Runner runs builds. Close it to end those under way.
type Runner struct {
	Options
	life context.Context
	stop context.CancelFunc
	work sync.WaitGroup

	mu     sync.Mutex
	making map[string]chan struct{} // steps that run now, by organisation and key; closed when they have come to an end
	trim   chan struct{}
}

// New makes a runner.
func New(o Options) *Runner {
	if o.CacheBytes == 0 {
		o.CacheBytes = defaultCacheBytes
	}
	if o.CacheAge == 0 {
		o.CacheAge = defaultCacheAge
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	r := &Runner{Options: o, making: map[string]chan struct{}{}, trim: make(chan struct{}, 1)}
	r.life, r.stop = context.WithCancel(context.Background())
	return r
}

// Begin makes the folder for files, and trims the cache from then on.
func (r *Runner) Begin() error {
	if r.Dir != "" {
		if err := os.MkdirAll(r.Dir, 0o700); err != nil {
			return err
		}
		// Files of builds have no names but for the moment in which they are made.
		left, err := filepath.Glob(filepath.Join(r.Dir, "build-*"))
		if err != nil {
			return err
		}
		for _, path := range left {
			os.Remove(path)
		}
	}
	r.work.Go(func() {
		for {
			select {
			case <-r.life.Done():
				return
			case <-r.trim:
			case <-time.After(trimEvery):
			}
			if err := r.Trim(r.life); err != nil && r.life.Err() == nil {
				r.Logger.Error("steps of builds not trimmed", "error", err)
			}
		}
	})
	return nil
}

// Close ends builds and waits until nothing of them is left.
func (r *Runner) Close() {
	r.mu.Lock()
	r.stop()
	r.mu.Unlock()
	r.work.Wait()
}

// Read takes the files of a build in. Close the tree afterwards.
func (r *Runner) Read(ctx context.Context, archive io.Reader) (*source.Tree, error) {
	return source.Read(ctx, archive, r.Dir, r.Limits)
}
