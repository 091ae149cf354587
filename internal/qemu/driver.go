package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
	"vers/internal/machine"
)

// Config is what a Driver is made of.
type Config struct {
	Binary      string // QEMU; "" is qemu-system-x86_64 in PATH
	Accelerator string // "auto" (also ""), "kvm" or "tcg"
	CPU         string // CPU model; "": the best that is proven under KVM, or max
	CacheDir    string // directory where the accelerator's proof is kept; "": not kept
	Kernel      string // to prove KVM with, with Initrd (vers.mode=probe); "": auto means TCG
	Initrd      string
	Launcher    []string // executable and arguments that call LauncherMain; empty: this executable
	Trees       []string // more directories that QEMU needs to read, if it is not installed under /usr
	Logger      *slog.Logger
}

// Driver starts machines in QEMU. It implements machine.Driver.
type Driver struct {
	capabilities Capabilities
	choice       Choice
	confinement  confinement
	lost         []string
	launcher     []string
	trees        []string
	log          *slog.Logger
}

var _ machine.Driver = (*Driver)(nil)

// startLimit bounds the wait for a new QEMU's greeting, when the caller sets no limit. It takes 50 ms on an idle host.
const startLimit = time.Minute

// New finds out what QEMU and the host can do, and proves the accelerator.
func New(ctx context.Context, c Config) (*Driver, error) {
	if c.Binary == "" {
		c.Binary = "qemu-system-x86_64"
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if len(c.Launcher) == 0 {
		// Not its path: the file may be replaced by a newer one while versd runs.
		c.Launcher = []string{"/proc/self/exe"}
	}
	d := &Driver{launcher: c.Launcher, trees: c.Trees, log: c.Logger}
	var prober Prober
	var err error
	if d.capabilities, err = prober.Probe(ctx, c.Binary); err != nil {
		return nil, err
	}
	if d.confinement, d.lost, err = findConfinement(ctx, d.launcher); err != nil {
		return nil, err
	}
	for _, lost := range d.lost {
		d.log.Warn("confinement is incomplete", "lost", lost)
	}
	if d.choice, err = d.chooseAccelerator(ctx, c); err != nil {
		return nil, err
	}
	return d, nil
}

// Capabilities says what the QEMU in use can do.
func (d *Driver) Capabilities() Capabilities { return d.capabilities }

// Host implements machine.Driver.
func (d *Driver) Host() machine.Host {
	overhead := int64(56 << 20) // measured: 25 MiB private after a restore, more when the guest works
	if d.choice.Accelerator == acceleratorTCG {
		overhead += tbSizeMiB << 20
	}
	return machine.Host{
		Hardware: machine.Hardware{
			Accelerator: d.choice.Accelerator, CPU: d.choice.CPU, MachineType: d.capabilities.MachineType, Devices: devicesV1,
		},
		QEMUVersion:        d.capabilities.Version,
		QEMUPath:           d.capabilities.Path,
		AcceleratorBy:      d.choice.Proof,
		OverheadBytes:      overhead,
		WritableMemoryFile: !d.capabilities.ReadOnlyMapping,
		Unconfined:         append([]string(nil), d.lost...),
		CanLoad:            d.canLoad,
	}
}

// canLoad: a device state loads only into the machine that wrote it.
func (d *Driver) canLoad(h machine.Hardware) error {
	if err := checkHardware(h, d.capabilities); err != nil {
		return err
	}
	if h.Accelerator != d.choice.Accelerator {
		return fault.Unavailablef("the state was taken with accelerator %s, this host uses %s (%s)", h.Accelerator, d.choice.Accelerator, d.choice.Proof)
	}
	if h.Accelerator == acceleratorKVM && h.CPU != d.choice.CPU {
		return fault.Unavailablef("the state was taken with CPU model %s, this host provides %s", h.CPU, d.choice.CPU)
	}
	return nil
}

// Start implements machine.Driver.
func (d *Driver) Start(ctx context.Context, spec machine.Spec) (machine.Instance, error) {
	if len(spec.Disk) == 0 {
		return nil, fault.Invalidf("VM %s has no disk", spec.ID)
	}
	i, err := d.start(ctx, spec)
	if err != nil {
		return nil, err // a nil *Instance must not become an interface
	}
	return i, nil
}

func (d *Driver) start(ctx context.Context, spec machine.Spec) (_ *Instance, err error) {
	if err := checkSpec(spec, d.confinement); err != nil {
		return nil, err
	}
	args, err := arguments(spec, d.capabilities)
	if err != nil {
		return nil, err
	}
	out, outFD, err := newOutput(spec.Dir)
	if err != nil {
		return nil, err
	}
	listener, err := listenMonitor(spec.Dir)
	if err != nil {
		unix.Close(outFD)
		out.close()
		return nil, err
	}
	process, err := startLauncher(d.launcher, d.plan(spec, args), outFD, listener)
	unix.Close(listener)
	unix.Close(outFD)
	if err != nil {
		out.close()
		return nil, err
	}
	i := newInstance(d, spec, process, out)
	defer func() {
		if err != nil {
			ctx := context.WithoutCancel(ctx)
			err = fmt.Errorf("start VM %s: %w", spec.ID, i.ending(ctx, err))
			_ = i.Kill(ctx)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if _, err = i.monitor(ctx); err != nil {
		return nil, err
	}
	status, err := i.queryStatus(ctx)
	if err != nil {
		return nil, err
	}
	want := "prelaunch"
	if spec.MemoryFile != "" {
		want = "inmigrate"
	}
	if status != want {
		return nil, fmt.Errorf("QEMU is %s, not %s", status, want)
	}
	return i, nil
}

// Adopt implements machine.Driver.
func (d *Driver) Adopt(ctx context.Context, spec machine.Spec, id machine.Process) (machine.Instance, error) {
	process, err := openProcess(id)
	if err != nil {
		return nil, err
	}
	out, err := openOutput(spec.Dir)
	if err != nil {
		process.release()
		return nil, err
	}
	i := newInstance(d, spec, process, out)
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err = i.loadConsole(); err == nil {
		if _, err = i.monitor(ctx); err == nil {
			_, err = i.Status(ctx) // closes Ended if the guest did while nobody looked
		}
	}
	if err != nil {
		select {
		case <-i.done:
			return nil, fault.NotFoundf("process %d of VM %s is gone", id.PID, spec.ID)
		default:
		}
		err = fmt.Errorf("adopt VM %s: %w", spec.ID, i.ending(ctx, err))
		i.Forget()
		return nil, err
	}
	return i, nil
}

func checkSpec(spec machine.Spec, c confinement) error {
	for _, path := range append(append([]string{spec.Dir}, layerPaths(spec.Disk)...), spec.MemoryFile, spec.Kernel, spec.Initrd) {
		if path != "" && (!filepath.IsAbs(path) || filepath.Clean(path) != path) {
			return fault.Invalidf("VM %s: the path %q is not absolute and clean", spec.ID, path)
		}
	}
	if spec.MemoryFile != "" {
		info, err := os.Stat(spec.MemoryFile)
		if err != nil {
			return fmt.Errorf("VM %s: look at its memory file: %w", spec.ID, err)
		}
		if info.Size() != spec.Hardware.MemoryBytes {
			return fault.Invalidf("VM %s: the memory file %s has %d bytes, guest RAM is to have %d", spec.ID, spec.MemoryFile, info.Size(), spec.Hardware.MemoryBytes)
		}
	}
	if (spec.UID != 0 || spec.GID != 0) && c != confinedAsRoot {
		return fault.Unavailablef("VM %s: versd may not start processes as user %d: run it as root, or give the VM no user", spec.ID, spec.UID)
	}
	return nil
}

func layerPaths(layers []machine.Layer) []string {
	var paths []string
	for _, l := range layers {
		paths = append(paths, l.Path)
	}
	return paths
}

// plan says what the process may see. Layers are shown by directory, because a capture adds one; which of their files
// QEMU can open, their owner and mode decide. The directory of the active layer can be written, again by mode.
func (d *Driver) plan(spec machine.Spec, args []string) launchPlan {
	p := launchPlan{
		Confinement: d.confinement, Dir: spec.Dir, UID: spec.UID, GID: spec.GID, Argv: args,
		Env:   []string{"PATH=/usr/bin:/bin", "LANG=C.UTF-8", "HOME=/", "MALLOC_ARENA_MAX=2"},
		Trees: append([]string(nil), d.trees...),
		KVM:   spec.Hardware.Accelerator == acceleratorKVM,
	}
	if spec.MemoryFile != "" {
		if d.capabilities.ReadOnlyMapping {
			p.Trees = append(p.Trees, spec.MemoryFile)
		} else {
			p.Writable = append(p.Writable, spec.MemoryFile) // opened read-write by QEMU before 8.2, though mapped privately
		}
	} else {
		for _, path := range []string{spec.Kernel, spec.Initrd} {
			if path != "" {
				p.Trees = append(p.Trees, path)
			}
		}
	}
	for i, path := range layerPaths(spec.Disk) {
		if i == len(spec.Disk)-1 {
			p.Writable = append(p.Writable, filepath.Dir(path))
		} else {
			p.Trees = append(p.Trees, filepath.Dir(path))
		}
	}
	return p
}

// listenMonitor binds the QMP socket before QEMU starts, so that a connection can be made at once.
func listenMonitor(dir string) (fd int, err error) {
	if err := os.Remove(filepath.Join(dir, "qmp.sock")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return -1, fmt.Errorf("remove an old QMP socket: %w", err)
	}
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make the QMP socket: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
			fd, err = -1, fmt.Errorf("make the QMP socket: %w", err)
		}
	}()
	return fd, inDirectory(dir, func(short string) error {
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: short + "/qmp.sock"}); err != nil {
			return err
		}
		if err := os.Chmod(short+"/qmp.sock", 0o600); err != nil {
			return err
		}
		return unix.Listen(fd, 4)
	})
}

// newInstance watches a process.
func newInstance(d *Driver, spec machine.Spec, p *process, out *output) *Instance {
	i := &Instance{
		driver: d, spec: spec, process: p, out: out, log: d.log.With("vm", spec.ID, "pid", p.id.PID),
		done: make(chan struct{}), ended: make(chan struct{}), forgotten: make(chan struct{}),
		released: make(chan struct{}), migrated: make(chan string, 8), diskFull: make(chan struct{}, 1),
	}
	go i.watch()
	return i
}

// watch waits for the end of the process and closes what belongs to it.
func (i *Instance) watch() {
	select {
	case <-i.process.done:
	case <-i.forgotten:
		i.closeMonitor()
		i.process.release()
		i.out.close()
		close(i.released)
		return
	}
	i.closeMonitor()
	i.process.release()
	i.out.finish()
	i.log.Info("QEMU has ended", "exit", i.process.exitCode(), "output", i.out.tail())
	i.end()
	close(i.done)
}

func (i *Instance) end() { i.endOnce.Do(func() { close(i.ended) }) }

// Instance is one QEMU process. It implements machine.Instance.
type Instance struct {
	driver    *Driver
	spec      machine.Spec
	process   *process
	out       *output
	log       *slog.Logger
	done      chan struct{}
	ended     chan struct{}
	endOnce   sync.Once
	forgotten chan struct{}
	forget    sync.Once
	released  chan struct{} // closed when everything was let go after Forget
	migrated  chan string   // states of an incoming migration
	diskFull  chan struct{} // the host had no room for a write

	change sync.Mutex // held by what changes the machine's state
	blocks *blocks    // nil: not asked yet; guarded by change

	mu      sync.Mutex
	qmp     *QMP
	console console
	address uintptr // of guest RAM in the process; 0: not looked up yet
}

var (
	_ machine.Instance = (*Instance)(nil)
	_ machine.Worker   = (*Instance)(nil)
)
