// Package daemon puts versd together: data directory, catalogue, driver, manager, server, listeners. It decides nothing;
// what happens is in the packages it joins.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/gofrs/flock"

	"vers/internal/audit"
	"vers/internal/build/images"
	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/config"
	"vers/internal/gateway"
	"vers/internal/machine"
	"vers/internal/netstack"
	"vers/internal/qemu"
	"vers/internal/registry"
	"vers/internal/server"
)

// firstOrganisation is made by the first start; local users without a key belong to it.
const firstOrganisation = "default"

// Daemon is a running versd.
type Daemon struct {
	config  config.Server
	log     *slog.Logger
	lock    *flock.Flock
	catalog *catalog.Catalog
	manager *machine.Manager
	audit   *audit.Log
	images  *images.Service
	gateway *gateway.Gateway
	server  *server.Server
	http    *http.Server
}

// Options of Open.
type Options struct {
	Config   config.Server
	Logger   *slog.Logger
	Progress io.Writer // what the first start makes
	Version  server.Version
	FirstKey func(organisation, key string) // called once, with the first organisation's key
}

// Open prepares the data directory, takes it for this process alone, and adopts the VMs that run.
func Open(ctx context.Context, o Options) (_ *Daemon, err error) {
	d := &Daemon{config: o.Config, log: o.Logger}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	assets, err := prepare(ctx, o.Config, o.Progress)
	if err != nil {
		return nil, err
	}
	if d.lock, err = lockData(o.Config.DataDir); err != nil {
		return nil, err
	}
	if d.catalog, err = catalog.Open(ctx, filepath.Join(o.Config.DataDir, "catalog.db")); err != nil {
		return nil, err
	}
	if err := registerImage(ctx, d.catalog, assets.image); err != nil {
		return nil, err
	}
	reg := newRegistry(d.catalog, o.Config)
	if d.audit, err = audit.Open(filepath.Join(o.Config.DataDir, audit.Name), audit.Options{}); err != nil {
		return nil, err
	}
	first, err := reg.Setup(ctx, firstOrganisation)
	if err != nil {
		return nil, err
	}
	if first != nil && o.FirstKey != nil {
		o.FirstKey(first.Organisation.Name, first.Secret)
	}
	driver, err := openDriver(ctx, o.Config, assets, o.Logger)
	if err != nil {
		return nil, err
	}
	if d.manager, err = d.openManager(ctx, driver, reg); err != nil {
		return nil, err
	}
	if d.images, err = d.openImages(ctx, d.manager.Commits, d.manager); err != nil {
		return nil, err
	}
	if d.gateway, err = d.openGateway(reg); err != nil {
		return nil, err
	}
	d.server = server.New(server.Options{Machines: d.manager, Images: d.images, Gateway: d.gateway, Registry: reg, Catalog: d.catalog, Audit: d.audit, Logger: o.Logger,
		Version: o.Version, BuildDir: filepath.Join(o.Config.DataDir, "commit-builds")})
	d.gateway.API = d.server
	if err := d.server.Resume(ctx); err != nil {
		return nil, err
	}
	d.http = &http.Server{
		Handler:           d.server,
		ReadHeaderTimeout: 20 * time.Second,
		ErrorLog:          slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
		ConnContext:       server.ConnContext,
	}
	return d, nil
}

func openDriver(ctx context.Context, c config.Server, a assets, log *slog.Logger) (*qemu.Driver, error) {
	return qemu.New(ctx, qemu.Config{
		Binary: c.QEMU, Accelerator: c.Accelerator, CacheDir: c.DataDir,
		Kernel: a.kernel.Vmlinuz, Initrd: a.initrd.Name, Logger: log,
	})
}

func (d *Daemon) openManager(ctx context.Context, driver machine.Driver, reg *registry.Registry) (*machine.Manager, error) {
	host := driver.Host()
	d.log.Info("accelerator", "use", host.Accelerator, "because", host.AcceleratorBy, "qemu", host.QEMUVersion)
	commits, err := commit.Open(commit.Options{
		Dir: d.config.DataDir, Catalog: d.catalog, Logger: d.log,
		FlatBudget: d.config.FlatBudgetMiB << 20, WritableFlat: host.WritableMemoryFile,
	})
	if err != nil {
		return nil, err
	}
	policy, err := d.config.Egress.Policy()
	if err != nil {
		return nil, err
	}
	agent, err := agentPath()
	if err != nil {
		return nil, err
	}
	uidBase := d.config.UIDBase
	if os.Geteuid() != 0 {
		uidBase = 0
	}
	return machine.New(ctx, machine.Config{
		DataDir: d.config.DataDir, Catalog: d.catalog, Commits: commits, Driver: driver, Logger: d.log,
		Images:       newLibrary(d.config.DataDir, agent, d.catalog),
		Networks:     d.openNetwork,
		ServerEgress: policy,
		Quotas:       reg.Quotas,
		SleepAfter:   d.config.Sleep.After(),
		UIDBase:      uidBase, MemoryReserve: d.config.MemoryReserveMiB << 20, MemoryOvercommit: d.config.MemoryOvercommit,
	})
}

// openNetwork implements machine.Networks.
func (d *Daemon) openNetwork(ctx context.Context, spec machine.NetworkSpec) (machine.Network, error) {
	return netstack.New(ctx, netstack.Config{
		Dir: spec.Dir, UID: spec.UID, GID: spec.GID, Egress: spec.Egress, Peers: spec.Peers, Resolvers: d.config.Resolvers,
		Logger: d.log.With("vm", spec.VMID),
	})
}

// lockData makes sure that one process owns a data directory, and notes its pid for `versd stop`.
func lockData(dir string) (*flock.Flock, error) {
	path := filepath.Join(dir, "versd.lock")
	lock := flock.New(path)
	got, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if !got {
		pid, _ := os.ReadFile(path)
		return nil, fmt.Errorf("the data directory %s is in use by versd with pid %s: stop that one first (versd stop), or choose another data_dir", dir, pid)
	}
	return lock, os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())), 0o644)
}

// Serve answers requests until ctx ends, then lets running ones finish for a moment. VMs run on.
func (d *Daemon) Serve(ctx context.Context) error {
	listeners, err := d.listen()
	if err != nil {
		return err
	}
	doors, err := d.listenGateway()
	if err != nil {
		return err
	}
	failed := make(chan error, len(listeners)+len(doors))
	for _, serve := range doors {
		go func() { failed <- serve() }()
	}
	for _, l := range listeners {
		go func() { failed <- d.http.Serve(l) }()
	}
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if d.http.Shutdown(stop) != nil {
		d.http.Close() // streams that have no end
	}
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

func (d *Daemon) listen() ([]net.Listener, error) {
	var listeners []net.Listener
	if path := d.config.Socket; path != "" {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, fmt.Errorf("make the socket's directory: %w", err)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("replace the socket of an earlier versd: %w", err)
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			return nil, fmt.Errorf("listen on the UNIX socket: %w", err)
		}
		// Who can open the socket needs no key: root, and the group that an operator gives the socket to.
		if err := os.Chmod(path, 0o660); err != nil {
			return nil, err
		}
		d.log.Info("listening", "socket", path)
		listeners = append(listeners, l)
	}
	if d.config.Listen != "" {
		l, err := net.Listen("tcp", d.config.Listen)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w; choose another address with `listen` in the configuration", d.config.Listen, err)
		}
		d.log.Info("listening", "address", l.Addr())
		if err := os.WriteFile(filepath.Join(d.config.DataDir, "address"), []byte(l.Addr().String()+"\n"), 0o644); err != nil {
			return nil, err
		}
		listeners = append(listeners, l)
	}
	if len(listeners) == 0 {
		return nil, errors.New("configuration: neither socket nor listen is set, nobody could reach this server")
	}
	return listeners, nil
}

// Close lets go of everything; VMs run on.
func (d *Daemon) Close() error {
	var errs []error
	if d.gateway != nil {
		d.gateway.Close()
	}
	if d.server != nil {
		d.server.Close()
	}
	if d.images != nil {
		d.images.Close()
	}
	if d.manager != nil {
		errs = append(errs, d.manager.Close())
	}
	if d.audit != nil {
		errs = append(errs, d.audit.Close())
	}
	if d.catalog != nil {
		errs = append(errs, d.catalog.Close())
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(errs...)
}

// Images is for programs that measure, like Manager.
func (d *Daemon) Images() *images.Service { return d.images }

// Manager is for programs that measure: it does what the API does, without HTTP between.
func (d *Daemon) Manager() *machine.Manager { return d.manager }

// LocalCaller is on whose behalf local users act.
func (d *Daemon) LocalCaller(ctx context.Context) (machine.Caller, error) {
	organisations, err := d.catalog.Organisations(ctx)
	if err != nil {
		return machine.Caller{}, err
	}
	return machine.Caller{OrgID: organisations[0].ID, KeyID: organisations[0].ID}, nil
}
