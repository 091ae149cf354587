// Package fake is a machine.Driver in memory: what stands on it can be tested without a VM. Its machines count like the
// guest of testguest, in memory, on the disk and on the console, and pass the conformance suite of drivertest. With
// Networks and Images a whole machine.Manager runs on it.
//
// Device states and memory files are real files. The content of disks is kept in memory, by path of the layer. A machine
// has a real agent (internal/agent) with a directory as its root; commands are processes of the host, which end with
// their machine. A clone gets the files of that directory as they were in the capture, not the commands.
package fake

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"vers/internal/fault"
	"vers/internal/machine"
	"vers/internal/machine/testguest"
)

// Driver implements machine.Driver.
type Driver struct {
	hardware machine.Hardware
	boot     string

	mu       sync.Mutex
	machines map[int]*guest      // by pid
	byDir    map[string]*guest   // the latest one of each directory
	byVM     map[string]*network // the latest one of each VM
	disks    map[string]uint32   // number that a layer holds at byte 512; absent: the layer below decides
	services map[uint16]Service
	networks int             // open
	full     map[string]bool // directories without room
	nextPID  int
	bare     bool
	hook     Hook
	failing  error // what the next Capture fails with
}

var _ machine.Driver = (*Driver)(nil)

// firstPID is beyond what Linux gives to processes, so that nobody can kill a real one by the number.
const firstPID = 1 << 24

// New makes a driver without machines.
func New() *Driver {
	return &Driver{
		hardware: machine.Hardware{Accelerator: "tcg", CPU: "fake", MachineType: "fake-1", Devices: "v1"},
		boot:     "00000000-0000-4000-8000-00000000fa4e",
		machines: map[int]*guest{}, byDir: map[string]*guest{}, byVM: map[string]*network{}, disks: map[string]uint32{}, services: map[uint16]Service{},
		full: map[string]bool{}, nextPID: firstPID,
	}
}

// Host implements machine.Driver.
func (d *Driver) Host() machine.Host {
	return machine.Host{
		Hardware: d.hardware, QEMUVersion: "fake", QEMUPath: "fake", AcceleratorBy: "nothing is accelerated",
		OverheadBytes: 1 << 20, CanLoad: d.canLoad,
	}
}

func (d *Driver) canLoad(h machine.Hardware) error {
	h.MemoryBytes, h.VCPUs = 0, 0
	if h != d.hardware {
		return fault.Unavailablef("the state was taken on %+v, this host has %+v", h, d.hardware)
	}
	return nil
}

// Start implements machine.Driver.
func (d *Driver) Start(_ context.Context, spec machine.Spec) (machine.Instance, error) {
	if err := d.checkSpec(spec); err != nil {
		return nil, fmt.Errorf("start VM %s: %w", spec.ID, err)
	}
	if err := d.at(OpStart, spec); err != nil {
		return nil, fmt.Errorf("start VM %s: %w", spec.ID, err)
	}
	// What an earlier process of this machine left: a boot that begins again begins with the image.
	if err := os.RemoveAll(filepath.Join(spec.Dir, rootDir)); err != nil {
		return nil, err
	}
	g := &guest{
		driver: d, spec: spec, disk: append([]machine.Layer(nil), spec.Disk...), size: testguest.DiskBytes,
		status: machine.StatusPaused, changed: make(chan struct{}), memory: map[int64][]byte{}, full: make(chan struct{}, 1),
		ended: make(chan struct{}), done: make(chan struct{}), ends: endsAtOnce(spec.Disk[0].Path),
	}
	g.life, g.endLife = context.WithCancel(context.Background())
	if spec.MemoryFile != "" {
		g.status = machine.StatusPrepared
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nextPID++
	g.id = machine.Process{PID: d.nextPID, StartTime: uint64(d.nextPID), BootID: d.boot}
	d.machines[g.id.PID], d.byDir[spec.Dir] = g, g
	return d.present(g), nil
}

// present gives the view of a machine that its user gets. The caller holds mu.
func (d *Driver) present(g *guest) machine.Instance {
	if d.bare {
		return struct{ machine.Instance }{Instance{g}}
	}
	return Instance{g}
}

func (d *Driver) checkSpec(spec machine.Spec) error {
	if err := d.canLoad(spec.Hardware); err != nil {
		return err
	}
	if spec.Hardware.MemoryBytes < 1<<20 || spec.Hardware.MemoryBytes%(1<<20) != 0 || spec.Hardware.VCPUs < 1 {
		return fault.Invalidf("%d bytes of RAM and %d vCPUs make no machine", spec.Hardware.MemoryBytes, spec.Hardware.VCPUs)
	}
	if len(spec.Disk) == 0 {
		return fault.Invalidf("there is no disk")
	}
	paths := []string{spec.Dir}
	for _, layer := range spec.Disk {
		paths = append(paths, layer.Path)
	}
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil || !filepath.IsAbs(path) {
			return fault.Invalidf("the path %q is not absolute, or nothing is there", path)
		}
	}
	if spec.MemoryFile != "" {
		info, err := os.Stat(spec.MemoryFile)
		if err != nil {
			return err
		}
		if info.Size() != spec.Hardware.MemoryBytes {
			return fault.Invalidf("the memory file has %d bytes, RAM is to have %d", info.Size(), spec.Hardware.MemoryBytes)
		}
	}
	return nil
}

func endsAtOnce(image string) bool {
	f, err := os.Open(image)
	if err != nil {
		return false
	}
	defer f.Close()
	boot := make([]byte, 512)
	_, err = f.Read(boot)
	return err == nil && testguest.Ends(boot)
}

// Adopt implements machine.Driver.
func (d *Driver) Adopt(_ context.Context, spec machine.Spec, id machine.Process) (machine.Instance, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.machines[id.PID]
	if g == nil || g.id != id {
		return nil, fault.NotFoundf("process %d of VM %s is gone", id.PID, spec.ID)
	}
	return d.present(g), nil
}

// Alive reports whether a machine runs.
func (d *Driver) Alive(id machine.Process) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.machines[id.PID]
	return g != nil && g.id == id
}

// Machine gives the running machine with an id, for what the outside does to it: crash, power off, write to memory.
func (d *Driver) Machine(vmID string) (Instance, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, g := range d.machines {
		if g.spec.ID == vmID {
			return Instance{g}, true
		}
	}
	return Instance{}, false
}

// Running gives the number of machines whose process exists.
func (d *Driver) Running() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.machines)
}

// Networks gives the number of open networks.
func (d *Driver) Networks() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.networks
}

// EndAll ends all machines, as a host does that restarts.
func (d *Driver) EndAll() {
	d.mu.Lock()
	var all []*guest
	for _, g := range d.machines {
		all = append(all, g)
	}
	d.mu.Unlock()
	for _, g := range all {
		g.Crash()
	}
}

// gone forgets a machine whose process has ended.
func (d *Driver) gone(g *guest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.machines, g.id.PID)
	if d.byDir[g.spec.Dir] == g {
		delete(d.byDir, g.spec.Dir)
	}
	delete(d.full, g.spec.Dir)
}

// DiskCount gives the number that the guest wrote to a disk.
func (d *Driver) DiskCount(layers []machine.Layer) uint32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := len(layers) - 1; i >= 0; i-- {
		if n, ok := d.disks[layers[i].Path]; ok {
			return n
		}
	}
	return 0
}

// writeDisk is a guest's write.
func (d *Driver) writeDisk(layer string, n uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.disks[layer] = n
}

// stepTime is how long the guest takes for half of a number.
const stepTime = 250 * time.Microsecond
