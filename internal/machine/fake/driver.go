// Package fake is a machine.Driver in memory: what stands on it can be tested without a VM. Its machines count like the
// guest of testguest, in memory, on the disk and on the console, and pass the conformance suite of drivertest.
//
// Device states and memory files are real files. The content of disks is kept in memory, by path of the layer.
package fake

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"vers/internal/fault"
	"vers/internal/machine"
	"vers/internal/machine/testguest"
)

// Driver implements machine.Driver.
type Driver struct {
	hardware machine.Hardware
	boot     string

	mu       sync.Mutex
	machines map[int]*guest    // by pid
	disks    map[string]uint32 // number that a layer holds at byte 512; absent: the layer below decides
	full     map[string]bool   // directories without room
	nextPID  int
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
		machines: map[int]*guest{}, disks: map[string]uint32{}, full: map[string]bool{}, nextPID: firstPID,
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
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nextPID++
	g := &guest{
		driver: d, spec: spec, disk: append([]machine.Layer(nil), spec.Disk...), size: testguest.DiskBytes,
		id:     machine.Process{PID: d.nextPID, StartTime: uint64(d.nextPID), BootID: d.boot},
		status: machine.StatusPaused, ended: make(chan struct{}), done: make(chan struct{}), ends: endsAtOnce(spec.Disk[0].Path),
	}
	if spec.MemoryFile != "" {
		g.status = machine.StatusPrepared
	}
	d.machines[g.id.PID] = g
	return Instance{guest: g}, nil
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
	for _, path := range []string{spec.Dir, spec.Disk[len(spec.Disk)-1].Path} {
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
	g := d.machines[id.PID]
	d.mu.Unlock()
	if g == nil || g.id != id || !d.Alive(id) {
		return nil, fault.NotFoundf("process %d of VM %s is gone", id.PID, spec.ID)
	}
	return Instance{guest: g}, nil
}

// Alive reports whether a machine runs.
func (d *Driver) Alive(id machine.Process) bool {
	d.mu.Lock()
	g := d.machines[id.PID]
	d.mu.Unlock()
	if g == nil || g.id != id {
		return false
	}
	select {
	case <-g.done:
		return false
	default:
		return true
	}
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

// SetFull says whether dir has no room for a device state.
func (d *Driver) SetFull(dir string, full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full[dir] = full
}

// FailCapture makes the next Capture of any machine fail with err, in the pause, before the disk is switched.
func (d *Driver) FailCapture(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failing = err
}

// captureError gives what a capture into dir fails with, and forgets it if it was for once.
func (d *Driver) captureError(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.failing; err != nil {
		d.failing = nil
		return err
	}
	if d.full[dir] {
		return fmt.Errorf("write the device state: no space left on device")
	}
	return nil
}

// Running gives the number of machines whose process exists.
func (d *Driver) Running() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, g := range d.machines {
		select {
		case <-g.done:
		default:
			n++
		}
	}
	return n
}

// readCounters reads what the guest had in a memory file.
func readCounters(path string) (testguest.Counters, error) {
	f, err := os.Open(path)
	if err != nil {
		return testguest.Counters{}, err
	}
	defer f.Close()
	page := make([]byte, 4096)
	if _, err := f.ReadAt(page, testguest.CounterPage*4096); err != nil {
		return testguest.Counters{}, err
	}
	return testguest.ParseCounters(page), nil
}

// Device states of this driver are a magic and the attempts the guest had made.
const stateMagic = "vers fake device state\n"

func encodeState(c testguest.Counters) []byte {
	return binary.LittleEndian.AppendUint32([]byte(stateMagic), c.Attempts)
}

func decodeState(data []byte) (attempts uint32, ok bool) {
	if len(data) != len(stateMagic)+4 || string(data[:len(stateMagic)]) != stateMagic {
		return 0, false
	}
	return binary.LittleEndian.Uint32(data[len(stateMagic):]), true
}
