package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"

	"vers/internal/build/engine"
	"vers/internal/build/engine/choice"
	"vers/internal/build/engine/embedded"
	"vers/internal/build/images"
	"vers/internal/commit"
	"vers/internal/config"
	"vers/internal/egress"
	"vers/internal/machine"
	"vers/internal/rootfs"
)

func (d *Daemon) openImages(ctx context.Context, commits *commit.Store, manager *machine.Manager) (*images.Service, error) {
	return images.Open(ctx, images.Options{
		DataDir: d.config.DataDir, Catalog: d.catalog, Commits: commits, Engines: &engines{config: d.config, organisation: d.organisationEgress}, Logger: d.log,
		Write: rootfs.Write, Reserve: manager.ReserveStorage, Collect: manager.CollectSoon,
	})
}

// organisationEgress is what builds of an organisation may reach; nothing, if that cannot be read.
func (d *Daemon) organisationEgress(orgID string) *egress.Policy {
	policy, err := d.catalog.OrganisationEgress(context.Background(), orgID)
	if err != nil {
		d.log.Error("egress policy of an organisation: its builds reach nothing", "organisation", orgID, "error", err)
		return &egress.Policy{Mode: egress.ModeNone}
	}
	return policy
}

// engines are those of image builds, one for each organisation.
type engines struct {
	config       config.Server
	organisation func(orgID string) *egress.Policy

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
	options := engineOptions(e.config, orgID)
	options.Embedded.Organisation = func() *egress.Policy { return e.organisation(orgID) }
	opened, err := choice.Open(ctx, options)
	if err != nil {
		return nil, err
	}
	if e.open == nil {
		e.open = map[string]engine.Engine{}
	}
	e.open[orgID] = opened
	return opened, nil
}

// Sweep implements images.Engines: of the embedded engine, where it ever built something, and of the configured one.
func (e *engines) Sweep(ctx context.Context) error {
	o := engineOptions(e.config, "")
	var errs []error
	if _, err := os.Stat(o.Embedded.Dir); err == nil {
		eng, err := embedded.New(o.Embedded)
		if err == nil {
			err = eng.Sweep(ctx)
		}
		errs = append(errs, err)
	}
	if o.Socket != "" || o.Engine == engine.Docker || o.Engine == engine.Podman {
		eng, err := choice.Open(ctx, o)
		if err == nil {
			err = eng.Sweep(ctx)
			_ = eng.Close()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
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
