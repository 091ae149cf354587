package daemon

import (
	"context"
	"os"
	"path/filepath"
	"sync"

	"vers/internal/build/engine"
	"vers/internal/build/engine/choice"
	"vers/internal/build/engine/embedded"
	"vers/internal/build/images"
	"vers/internal/commit"
	"vers/internal/config"
	"vers/internal/machine"
	"vers/internal/rootfs"
)

func (d *Daemon) openImages(ctx context.Context, commits *commit.Store, manager *machine.Manager) (*images.Service, error) {
	return images.Open(ctx, images.Options{
		DataDir: d.config.DataDir, Catalog: d.catalog, Commits: commits, Engines: &engines{config: d.config}, Logger: d.log,
		Write: rootfs.Write, Reserve: manager.ReserveStorage, Collect: manager.CollectSoon,
	})
}

// engines are those of image builds, one for each organisation.
type engines struct {
	config config.Server

	mu   sync.Mutex
	open map[string]engine.Engine
}

// Engine implements images.Engines.
func (e *engines) Engine(ctx context.Context, orgID string) (engine.Engine, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if known := e.open[orgID]; known != nil {
		return known, nil
	}
	opened, err := choice.Open(ctx, engineOptions(e.config, orgID))
	if err != nil {
		return nil, err
	}
	if e.open == nil {
		e.open = map[string]engine.Engine{}
	}
	e.open[orgID] = opened
	return opened, nil
}

// Sweep implements images.Engines.
func (e *engines) Sweep(ctx context.Context) error {
	dir := engineOptions(e.config, "").Embedded.Dir
	if _, err := os.Stat(dir); err != nil {
		return nil // nothing was ever built here
	}
	eng, err := embedded.New(engineOptions(e.config, "").Embedded)
	if err != nil {
		return err
	}
	return eng.Sweep(ctx)
}

// engineOptions are those of an organisation's engine: its store is its own, so that nobody finds what others pulled with
// their passwords.
func engineOptions(c config.Server, orgID string) choice.Options {
	return choice.Options{Engine: c.Builder.Engine, Socket: c.Builder.Socket, Shared: true, Embedded: embedded.Options{
		Dir: filepath.Join(c.DataDir, "builder"), Store: orgID, Registries: c.Builder.Registries, Runtime: c.Builder.Runtime,
		Egress: embedded.Egress{Mode: c.Egress.Mode, Allow: c.Egress.Allow, Deny: c.Egress.Deny},
		Limits: engine.Limits{MemoryMiB: c.Builder.MemoryMiB, Processes: c.Builder.Processes, DiskMiB: c.Builder.DiskMiB},
	}}
}
