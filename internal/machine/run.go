package machine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

// cmdline boots the agent as first process (docs/guest-protocol.md). no_timer_check: a busy host is late with the interrupts of
// a guest that boots, and Linux takes that for a broken timer and panics.
const cmdline = "console=ttyS0 quiet loglevel=3 panic=-1 no_timer_check root=/dev/vda vers.mode=guest"

// Run makes a new root VM. The first one of a kind boots; the state right after boot becomes an internal template
// commit, and later ones are restored from it. With WaitBoot unset a VM that has to boot is returned in state booting.
func (m *Manager) Run(ctx context.Context, c Caller, req RunRequest) (VM, error) {
	config, err := m.checkConfig(req.Config)
	if err != nil {
		return VM{}, err
	}
	if err := req.Network.Check(); err != nil {
		return VM{}, err
	}
	req.Network.apply(&config, &req.Labels)
	// An image that is replaced or deleted from now on keeps its file until the VM's disk names it.
	hold := sync.OnceFunc(m.Commits.Hold())
	defer hold()
	config, boot, err := m.resolve(ctx, c, config, req.Config.FSSizeMiB != 0)
	if err != nil {
		return VM{}, err
	}
	if config.StartMain = req.Start; req.Start && len(mainCommand(config.Image)) == 0 {
		return VM{}, fault.Invalidf("rootfs image '%s' names no command to start: its Dockerfile has neither ENTRYPOINT nor CMD", config.ImageName)
	}
	key := m.templateKey(c.OrgID, config, boot)
	first := firstBoot{boot: boot, settled: func() {}}
	if !req.Cold {
		vm, ok, settled, err := m.fromTemplate(ctx, c, key, config, req)
		if ok || err != nil {
			return vm, err
		}
		first.templateKey, first.settled = key, settled
	}
	v, err := m.addBooting(ctx, c, config, boot, req)
	hold()
	if err != nil {
		first.settled()
		return VM{}, err
	}
	// The boot belongs to the manager, not to the request: a client that goes away leaves a VM that its list shows.
	m.background.Go(func() {
		ctx, cancel := context.WithTimeout(m.life, m.BootLimit)
		defer cancel()
		m.boot(ctx, v, first)
	})
	if !req.WaitBoot {
		return v.snapshot(), nil
	}
	err = v.waitBooted(ctx, false)
	return v.snapshot(), err
}

// resolve finds image and kernel of a configuration, and what the image says about itself. sized: somebody asked for the
// size of the disk.
func (m *Manager) resolve(ctx context.Context, c Caller, config catalog.VMConfig, sized bool) (catalog.VMConfig, Boot, error) {
	boot, err := m.Images.Resolve(ctx, c.OrgID, config.ImageName, config.KernelName)
	if err != nil {
		return config, boot, err
	}
	if !sized { // nobody asked for a size that the image has outgrown
		config.FSSizeMiB = max(config.FSSizeMiB, (boot.ImageBytes+1<<20-1)>>20)
	}
	if config.FSSizeMiB<<20 < boot.ImageBytes {
		return config, boot, fault.Invalidf("Invalid filesystem size: %d MiB is smaller than rootfs image '%s' (%d MiB)", config.FSSizeMiB, config.ImageName, boot.ImageBytes>>20)
	}
	config.Image = boot.ImageConfig
	return config, boot, nil
}

// checkConfig fills in defaults and refuses sizes that make no sense or that this host can never give.
func (m *Manager) checkConfig(c catalog.VMConfig) (catalog.VMConfig, error) {
	set := func(v *int64, def int64, what string) error {
		if *v == 0 {
			*v = def
		}
		if *v < 0 {
			return fault.Invalidf("Invalid %s (must be positive)", what)
		}
		return nil
	}
	for _, err := range []error{
		set(&c.MemSizeMiB, Defaults.MemSizeMiB, "memory size"),
		set(&c.VCPUCount, Defaults.VCPUCount, "vCPU count"),
		set(&c.FSSizeMiB, Defaults.FSSizeMiB, "filesystem size"),
	} {
		if err != nil {
			return c, err
		}
	}
	if c.ImageName == "" {
		c.ImageName = Defaults.ImageName
	}
	if c.KernelName == "" {
		c.KernelName = Defaults.KernelName
	}
	if c.MemSizeMiB < minMemoryMiB {
		return c, fault.Invalidf("Invalid memory size: %d MiB is too little for a guest to boot; the least is %d MiB", c.MemSizeMiB, minMemoryMiB)
	}
	if c.MemSizeMiB > m.ledger.capacity>>20 {
		return c, fault.Exhaustedf("Insufficient system resources: asked for %d MiB of memory, this host has %d MiB for VMs in all", c.MemSizeMiB, m.ledger.capacity>>20)
	}
	if limit := maxVCPUs(); c.VCPUCount > limit {
		return c, fault.Exhaustedf("Insufficient system resources: asked for %d vCPUs, the limit on this host is %d", c.VCPUCount, limit)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(m.DataDir, &fs); err != nil {
		return c, fmt.Errorf("look at the file system of %s: %w", m.DataDir, err)
	}
	if total := int64(fs.Blocks) * fs.Bsize >> 20; c.FSSizeMiB > total {
		return c, fault.Exhaustedf("Insufficient system resources: asked for a disk of %d MiB, the file system of %s has %d MiB, %d MiB of them free", c.FSSizeMiB, m.DataDir, total, int64(fs.Bavail)*fs.Bsize>>20)
	}
	return c, nil
}

// addBooting books memory and makes the row, layer and directory of a VM that is about to boot.
func (m *Manager) addBooting(ctx context.Context, c Caller, config catalog.VMConfig, boot Boot, req RunRequest) (_ *vm, err error) {
	defer m.Commits.Hold()()
	var undo undo
	defer func() { undo.run(&err) }()
	record, err := newRecord(c, ident.New(), config, req.Labels)
	if err != nil {
		return nil, err
	}
	record.BootEnv, record.BuildID = req.Env, req.BuildID
	for _, option := range req.Options {
		option(&record)
	}
	if err := m.book(ctx, m.booking(c.OrgID, config.VCPUCount, config.MemSizeMiB<<20), record.ID); err != nil {
		return nil, err
	}
	undo.add(func() { m.ledger.release(record.ID) })
	if record.UID, err = m.takeUID(); err != nil {
		return nil, err
	}
	undo.add(func() { m.freeUID(record.UID) })
	uid, gid, err := m.ids(ctx, c.OrgID, record.UID)
	if err != nil {
		return nil, err
	}
	layer, err := m.Commits.NewLayer(ctx, c.OrgID, "", boot.ImageFile, config.FSSizeMiB<<20, uid, gid)
	if err != nil {
		return nil, err
	}
	undo.add(func() { m.Commits.DropLayer(context.WithoutCancel(ctx), layer.ID) })
	record.LayerID, record.State = layer.ID, string(StateBooting)
	v := newVM(record)
	return v, m.add(ctx, v, uid, gid)
}

// firstBoot is what a VM that boots needs beyond its row.
type firstBoot struct {
	boot        Boot
	templateKey string // "": makes no template
	settled     func() // called once, when a template is there or will not be
}

// boot brings a VM from booting to running, or to dead with the reason.
func (m *Manager) boot(ctx context.Context, v *vm, first firstBoot) {
	settled := first.settled
	defer func() { settled() }()
	unlock, err := v.lock(ctx)
	if err != nil {
		return
	}
	defer unlock()
	defer v.markBooted()
	began := time.Now()
	err = m.bootGuest(ctx, v, first.boot)
	if err == nil && first.templateKey != "" {
		// The template is taken before the guest has an identity. Failing to make one costs the next VM a boot.
		if err := m.makeTemplate(ctx, v, first.templateKey, settled); err != nil {
			m.Logger.Warn("no template", "vm", v.record.ID, "error", err)
		} else {
			settled = func() {} // when it is written
		}
	}
	if err == nil {
		err = m.handOut(ctx, v)
	}
	if err != nil {
		if m.life.Err() != nil {
			return // versd stops: the next one finishes the boot (adopt.go)
		}
		m.die(v, fmt.Sprintf("did not boot: %v", err))
		return
	}
	m.Logger.Info("VM booted", "vm", v.record.ID, "took", time.Since(began))
}

// handOut gives a VM that has booted its identity and shows it as running.
func (m *Manager) handOut(ctx context.Context, v *vm) error {
	if err := m.renew(ctx, v, "run", v.snapshot().BootEnv); err != nil {
		return err
	}
	if err := m.startMain(ctx, v); err != nil {
		return err
	}
	return m.update(ctx, v, func(r *VM) { r.State, r.BootEnv = string(StateRunning), nil })
}

// bootGuest starts the process and waits until the agent answers.
func (m *Manager) bootGuest(ctx context.Context, v *vm, boot Boot) error {
	r := v.snapshot()
	spec, err := m.spec(ctx, r)
	if err != nil {
		return err
	}
	host := m.Driver.Host()
	spec.Hardware = host.Hardware
	spec.Hardware.MemoryBytes, spec.Hardware.VCPUs = r.Config.MemSizeMiB<<20, int(r.Config.VCPUCount)
	spec.Kernel, spec.Initrd, spec.Cmdline = boot.Kernel.Name, boot.Initrd.Name, cmdline
	if err := m.start(ctx, v, spec); err != nil {
		return err
	}
	m.watch(v)
	if err := v.instance.Resume(ctx); err != nil {
		return err
	}
	return m.awaitAgent(ctx, v)
}

// awaitAgent waits until the agent of a booting guest says that it is ready. While it says that it is not, as long as
// systemd starts, it is asked ever less often: without an accelerator an answer takes the guest milliseconds of its only CPU.
func (m *Manager) awaitAgent(ctx context.Context, v *vm) error {
	ctx, release := whileRunning(ctx, v.instance)
	defer release()
	const shortest, longest = 20 * time.Millisecond, 400 * time.Millisecond
	pause := shortest
	for {
		info, err := v.agent.Hello(ctx)
		if err == nil && info.Ready {
			return nil
		}
		if err == nil {
			pause = min(pause*5/4, longest)
		} else {
			pause = shortest
		}
		select {
		case <-ctx.Done():
			if ended(ctx) {
				return fault.New(fault.Internal, "the guest or its process ended while it booted")
			}
			return fault.New(fault.Timeout, "the agent in the guest did not answer within %s (%v): %w", m.BootLimit, err, ctx.Err())
		case <-time.After(pause):
		}
	}
}

var errEnded = errors.New("the guest or its process ended")

// whileRunning is ctx, cancelled also when the instance ends: who waits for an answer of the guest would wait for
// its whole limit otherwise. The caller calls release.
func whileRunning(ctx context.Context, instance Instance) (running context.Context, release context.CancelFunc) {
	running, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-instance.Ended():
			cancel(errEnded)
		case <-running.Done():
		}
	}()
	return running, func() { cancel(nil) }
}

// ended says whether a context of [whileRunning] is over because its instance ended.
func ended(running context.Context) bool { return errors.Is(context.Cause(running), errEnded) }

// spec is what every VM is started with, whatever it comes from: directory, user, disk.
func (m *Manager) spec(ctx context.Context, r VM) (Spec, error) {
	uid, gid, err := m.ids(ctx, r.OrgID, r.UID)
	if err != nil {
		return Spec{}, err
	}
	s := Spec{ID: r.ID, Dir: m.vmDir(r.ID), UID: uid, GID: gid}
	s.Disk, err = m.diskOf(ctx, r.LayerID)
	return s, err
}

func (m *Manager) diskOf(ctx context.Context, layerID string) ([]Layer, error) {
	files, err := m.Commits.Files(ctx, layerID)
	if err != nil {
		return nil, err
	}
	disk := []Layer{{Path: files[0], Format: "raw"}}
	for _, f := range files[1:] {
		disk = append(disk, Layer{Path: f, Format: "qcow2"})
	}
	return disk, nil
}
