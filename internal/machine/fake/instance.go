package fake

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"vers/internal/fault"
	"vers/internal/machine"
	"vers/internal/machine/testguest"
	"vers/internal/memory"
)

// Instance implements machine.Instance. Several can steer the same machine: after Adopt, as after a restart of versd,
// the older ones are out of date.
type Instance struct{ *guest }

var _ machine.Instance = Instance{}

// guest is the machine itself.
type guest struct {
	driver *Driver
	spec   machine.Spec
	id     machine.Process
	ends   bool // it ends as soon as it runs

	mu      sync.Mutex
	status  machine.Status
	counter testguest.Counters
	console []byte
	disk    []machine.Layer
	size    int64
	stop    chan struct{} // ends the vCPU; nil: stands still
	stopped chan struct{}

	ended, done chan struct{}
	endOnce     sync.Once
}

// stepTime is how long the guest takes for half of a number.
const stepTime = 250 * time.Microsecond

const consoleBytes = 64 << 10

// Process implements machine.Instance.
func (g *guest) Process() machine.Process { return g.id }

// Done implements machine.Instance.
func (g *guest) Done() <-chan struct{} { return g.done }

// Ended implements machine.Instance.
func (g *guest) Ended() <-chan struct{} { return g.ended }

// begin locks the machine for a method that needs its process.
func (g *guest) begin() (func(), error) {
	g.mu.Lock()
	select {
	case <-g.done:
		g.mu.Unlock()
		return nil, fault.Conflictf("the process of VM %s is gone", g.spec.ID)
	default:
		return g.mu.Unlock, nil
	}
}

// Load implements machine.Instance.
func (g *guest) Load(_ context.Context, deviceState string) error {
	unlock, err := g.begin()
	if err != nil {
		return err
	}
	defer unlock()
	if g.status != machine.StatusPrepared {
		return fault.Conflictf("VM %s is %s: only a VM that was started with a memory file is loaded, once", g.spec.ID, g.status)
	}
	data, err := os.ReadFile(deviceState)
	if err != nil {
		return fmt.Errorf("load VM %s: %w", g.spec.ID, err)
	}
	counter, err := readCounters(g.spec.MemoryFile)
	if err != nil {
		return fmt.Errorf("load VM %s: %w", g.spec.ID, err)
	}
	attempts, ok := decodeState(data)
	if !ok || attempts != counter.Attempts {
		return fmt.Errorf("load VM %s: %s is no device state that belongs to its memory", g.spec.ID, deviceState)
	}
	g.counter, g.status = counter, machine.StatusPaused
	return nil
}

// Resume implements machine.Instance.
func (g *guest) Resume(context.Context) error {
	unlock, err := g.begin()
	if err != nil {
		return err
	}
	defer unlock()
	if err := g.canRun(); err != nil {
		return err
	}
	g.setRunning(true)
	return nil
}

// Pause implements machine.Instance.
func (g *guest) Pause(context.Context) error {
	unlock, err := g.begin()
	if err != nil {
		return err
	}
	defer unlock()
	if err := g.canRun(); err != nil {
		return err
	}
	g.setRunning(false)
	return nil
}

func (g *guest) canRun() error {
	switch g.status {
	case machine.StatusEnded:
		return fault.Conflictf("the guest of VM %s has ended", g.spec.ID)
	case machine.StatusPrepared:
		return fault.Conflictf("VM %s waits for its state: load it first", g.spec.ID)
	}
	return nil
}

// setRunning starts or stops the vCPU. The caller holds mu.
func (g *guest) setRunning(run bool) {
	switch {
	case run && g.ends:
		g.console = append(g.console, "bye\n"...)
		g.end()
	case run && g.stop == nil:
		g.status = machine.StatusRunning
		g.stop, g.stopped = make(chan struct{}), make(chan struct{})
		go g.run(g.stop, g.stopped)
	case !run && g.stop != nil:
		g.halt()
		g.status = machine.StatusPaused
	}
}

// halt waits until the vCPU stands still. The caller holds mu, and holds it again afterwards.
func (g *guest) halt() {
	if g.stop == nil {
		return
	}
	close(g.stop)
	stopped := g.stopped
	g.stop = nil
	g.mu.Unlock()
	<-stopped
	g.mu.Lock()
}

func (g *guest) end() {
	g.halt()
	g.status = machine.StatusEnded
	g.endOnce.Do(func() { close(g.ended) })
}

// run is the vCPU. In one step it counts and writes the disk, in the next one it prints.
func (g *guest) run(stop, stopped chan struct{}) {
	defer close(stopped)
	tick := time.NewTicker(stepTime)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			g.mu.Lock()
			select {
			case <-stop:
			default:
				g.step()
			}
			g.mu.Unlock()
		}
	}
}

func (g *guest) step() {
	if g.counter.Attempts == g.counter.Finished {
		g.counter.Attempts++
		g.driver.mu.Lock()
		g.driver.disks[g.disk[len(g.disk)-1].Path] = g.counter.Attempts
		g.driver.mu.Unlock()
		return
	}
	g.counter.Finished = g.counter.Attempts
	g.console = append(g.console, testguest.ConsoleLine(g.counter.Finished)...)
	if over := len(g.console) - consoleBytes; over > 0 {
		g.console = append([]byte(nil), g.console[over:]...)
	}
}

// Capture implements machine.Instance.
func (g *guest) Capture(_ context.Context, req machine.CaptureRequest) (c machine.Capture, err error) {
	unlock, err := g.begin()
	if err != nil {
		return c, err
	}
	defer unlock()
	if err := g.checkCapture(req); err != nil {
		return c, err
	}
	began, before := time.Now(), g.status
	g.setRunning(false)
	defer func() {
		if before == machine.StatusRunning && (err != nil || !req.KeepPaused) {
			g.setRunning(true)
		}
		c.Paused = max(time.Since(began), 1)
	}()
	if err := g.driver.captureError(g.spec.Dir); err != nil {
		return c, fmt.Errorf("capture VM %s: %w", g.spec.ID, err)
	}
	if err := os.WriteFile(req.DeviceState, encodeState(g.counter), 0o600); err != nil {
		return c, errors.Join(fmt.Errorf("capture VM %s: %w", g.spec.ID, err), os.Remove(req.DeviceState))
	}
	g.disk = append(g.disk, req.Overlay)
	c.DiskSwitched = true
	c.Memory = memory.NewSnapshot(g.spec.Hardware.MemoryBytes, map[int64][]byte{
		testguest.CounterPage: g.counter.Page(),
		testguest.PatternPage: g.counter.Pattern(),
	})
	return c, nil
}

func (g *guest) checkCapture(req machine.CaptureRequest) error {
	if g.status != machine.StatusRunning && g.status != machine.StatusPaused {
		return fault.Conflictf("VM %s is %s: only a running or paused VM can be captured", g.spec.ID, g.status)
	}
	if filepath.Dir(req.DeviceState) != g.spec.Dir {
		return fault.Invalidf("the device state %s is not in the directory of VM %s", req.DeviceState, g.spec.ID)
	}
	if _, err := os.Lstat(req.DeviceState); !errors.Is(err, os.ErrNotExist) {
		return fault.Conflictf("the device state %s exists", req.DeviceState)
	}
	if req.Overlay.Format != "qcow2" {
		return fault.Invalidf("a new layer has format qcow2, not %q", req.Overlay.Format)
	}
	if _, err := os.Stat(req.Overlay.Path); err != nil {
		return fmt.Errorf("capture VM %s: open the new layer: %w", g.spec.ID, err)
	}
	return nil
}

// Status implements machine.Instance.
func (g *guest) Status(context.Context) (machine.Status, error) {
	unlock, err := g.begin()
	if err != nil {
		return "", err
	}
	defer unlock()
	return g.status, nil
}

// GrowDisk implements machine.Instance.
func (g *guest) GrowDisk(_ context.Context, size int64) error {
	unlock, err := g.begin()
	if err != nil {
		return err
	}
	defer unlock()
	if size < g.size {
		return fault.Invalidf("the disk of VM %s has %d bytes and cannot shrink to %d", g.spec.ID, g.size, size)
	}
	g.size = size
	return nil
}

// Console implements machine.Instance.
func (g *guest) Console(context.Context) ([]byte, error) {
	unlock, err := g.begin()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return append([]byte(nil), g.console...), nil
}

// Kill implements machine.Instance.
func (g *guest) Kill(context.Context) error {
	g.Crash()
	return nil
}

// Crash ends the process, as if it had been killed from outside.
func (g *guest) Crash() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.end() // lets go of mu for a moment: another Crash may come first
	select {
	case <-g.done:
	default:
		close(g.done)
	}
}

// PowerOff makes the guest end by itself.
func (g *guest) PowerOff() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.end()
}
