package daemon

import (
	"context"

	"vers/internal/build/engine"
	"vers/internal/build/images"
	"vers/internal/commit"
	"vers/internal/fault"
	"vers/internal/machine"
	"vers/internal/rootfs"
)

func (d *Daemon) openImages(ctx context.Context, commits *commit.Store, manager *machine.Manager) (*images.Service, error) {
	return images.Open(ctx, images.Options{
		DataDir: d.config.DataDir, Catalog: d.catalog, Commits: commits, Engines: engines{}, Logger: d.log,
		Write: rootfs.Write, Reserve: manager.ReserveStorage, Collect: manager.CollectSoon,
	})
}

// engines are those of image builds, one for each organisation.
type engines struct{}

// Engine implements images.Engines.
func (engines) Engine(context.Context, string) (engine.Engine, error) {
	return nil, fault.Unavailablef("this server has no container engine: it takes root file systems as archives, and builds no Dockerfiles")
}

// Sweep implements images.Engines.
func (engines) Sweep(context.Context) error { return nil }
