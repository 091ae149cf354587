package fake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"vers/internal/fault"
	"vers/internal/machine"
	"vers/internal/machine/testguest"
	"vers/internal/memory"
)

// Instance implements machine.Instance and its optional powers. Several can steer the same machine: after Adopt, as
// after a restart of versd, the older ones are out of date.
type Instance struct{ *guest }

var (
	_ machine.Instance      = Instance{}
	_ machine.MemoryPatcher = Instance{}
	_ machine.DiskWatcher   = Instance{}
	_ machine.DiskReporter  = Instance{}
	_ machine.Worker        = Instance{}
)

// guest is the machine itself.
type guest struct {
	driver *Driver
	spec   machine.Spec
	id     machine.Process
	ends   bool // it ends as soon as it runs

	mu      sync.Mutex
	status  machine.Status
	changed chan struct{} // closed when status changes, and replaced
	since   time.Time     // while it runs: counter is as of then
	counter testguest.Counters
	memory  map[int64][]byte // pages of its own, but for those of the counter
	files   []byte           // loaded, for the agent that is not started yet
	console []byte
	disk    []machine.Layer
	size    int64
	full    chan struct{}
	worked  time.Duration // CPU time
	agent   *agentProcess // nil until somebody calls it

	life        context.Context // ends with the guest
	endLife     context.CancelFunc
	calls       sync.WaitGroup // what serves connections
	ended, done chan struct{}
	endOnce     sync.Once
}

const consoleBytes = 64 << 10

// Process implements machine.Instance.
func (g *guest) Process() machine.Process { return g.id }

// Done implements machine.Instance.
func (g *guest) Done() <-chan struct{} { return g.done }

// Ended implements machine.Instance.
func (g *guest) Ended() <-chan struct{} { return g.ended }

// DiskFull implements machine.DiskWatcher.
func (g *guest) DiskFull() <-chan struct{} { return g.full }

// begin locks the machine for a method that needs its process.
func (g *guest) begin() (func(), error) {
	g.mu.Lock()
	if err := g.alive(); err != nil {
		g.mu.Unlock()
		return nil, err
	}
	return g.mu.Unlock, nil
}

func (g *guest) alive() error {
	select {
	case <-g.done:
		return fault.Conflictf("the process of VM %s is gone", g.spec.ID)
	default:
		return nil
	}
}

// hooked calls the hook before a method that needs the process, and locks.
func (g *guest) hooked(op Op) (func(), error) {
	g.mu.Lock()
	err := g.alive()
	g.mu.Unlock()
	if err == nil {
		err = g.driver.at(op, g.spec)
	}
	if err != nil {
		return nil, fmt.Errorf("%s VM %s: %w", op, g.spec.ID, err)
	}
	return g.begin()
}

// PatchMemory implements machine.MemoryPatcher.
func (g *guest) PatchMemory(_ context.Context, s *memory.Snapshot) error {
	unlock, err := g.hooked(OpPatch)
	if err != nil {
		return err
	}
	defer unlock()
	if g.status != machine.StatusPrepared || s.Size() != g.spec.Hardware.MemoryBytes {
		return fault.Conflictf("VM %s is %s with %d bytes of RAM: %d bytes are put into it before it is loaded only", g.spec.ID, g.status, g.spec.Hardware.MemoryBytes, s.Size())
	}
	return s.Range(func(page int64, data []byte) error {
		g.memory[page] = append([]byte(nil), data...)
		return nil
	})
}

// Load implements machine.Instance.
func (g *guest) Load(_ context.Context, deviceState string) error {
	unlock, err := g.hooked(OpLoad)
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
	page, err := g.page(testguest.CounterPage)
	if err != nil {
		return fmt.Errorf("load VM %s: %w", g.spec.ID, err)
	}
	counter := testguest.ParseCounters(page)
	attempts, files, ok := decodeState(data)
	if !ok || attempts != counter.Attempts {
		return fmt.Errorf("load VM %s: %s is no device state that belongs to its memory", g.spec.ID, deviceState)
	}
	g.counter, g.files = counter, files
	g.setStatus(machine.StatusPaused)
	return nil
}

// page reads memory. The caller holds mu.
func (g *guest) page(number int64) ([]byte, error) {
	if page, ok := g.memory[number]; ok {
		return page, nil
	}
	if g.spec.MemoryFile == "" {
		return make([]byte, pageBytes), nil
	}
	return readPage(g.spec.MemoryFile, number)
}

// ReadPage gives a page of memory other than those of the counter.
func (g *guest) ReadPage(number int64) ([]byte, error) {
	unlock, err := g.begin()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return g.page(number)
}

// Write makes the guest write to count pages of its memory, beginning with page number first: each is filled with value.
func (g *guest) Write(first, count int64, value byte) error {
	unlock, err := g.begin()
	if err != nil {
		return err
	}
	defer unlock()
	if first <= testguest.PatternPage || (first+count)*pageBytes > g.spec.Hardware.MemoryBytes {
		return fault.Invalidf("pages %d to %d are the counter's or not there", first, first+count-1)
	}
	page := make([]byte, pageBytes) // shared by all: nobody writes into a page
	for i := range page {
		page[i] = value
	}
	for i := range count {
		g.memory[first+i] = page
	}
	return nil
}

// Counters gives how far the guest has counted.
func (g *guest) Counters() testguest.Counters {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.advance()
	return g.counter
}

// Resume implements machine.Instance.
func (g *guest) Resume(context.Context) error { return g.set(OpResume, true) }

// Pause implements machine.Instance.
func (g *guest) Pause(context.Context) error { return g.set(OpPause, false) }

func (g *guest) set(op Op, run bool) error {
	unlock, err := g.hooked(op)
	if err != nil {
		return err
	}
	defer unlock()
	switch g.status {
	case machine.StatusEnded:
		return fault.Conflictf("the guest of VM %s has ended", g.spec.ID)
	case machine.StatusPrepared:
		return fault.Conflictf("VM %s waits for its state: load it first", g.spec.ID)
	}
	g.setRunning(run)
	return nil
}

// setRunning starts or stops the vCPU. The caller holds mu.
func (g *guest) setRunning(run bool) {
	switch {
	case run && g.ends:
		g.console = append(g.console, "bye\n"...)
		g.end()
	case run && g.status == machine.StatusPaused:
		g.since = time.Now()
		g.setStatus(machine.StatusRunning)
	case !run && g.status == machine.StatusRunning:
		g.advance()
		g.setStatus(machine.StatusPaused)
	}
}

func (g *guest) setStatus(s machine.Status) {
	g.status = s
	close(g.changed)
	g.changed = make(chan struct{})
}

// end ends the guest, not its process. The caller holds mu.
func (g *guest) end() {
	g.advance()
	g.setStatus(machine.StatusEnded)
	g.endOnce.Do(func() { close(g.ended) })
	g.endLife()
}

// advance lets the vCPU do what it would have done by now. In one step it counts and writes the disk, in the next one it
// prints. The caller holds mu.
func (g *guest) advance() {
	if g.status != machine.StatusRunning {
		return
	}
	steps := time.Since(g.since) / stepTime
	if steps == 0 {
		return
	}
	g.since = g.since.Add(steps * stepTime)
	for range steps {
		if g.counter.Attempts == g.counter.Finished {
			g.counter.Attempts++
			continue
		}
		g.counter.Finished = g.counter.Attempts
		g.console = append(g.console, testguest.ConsoleLine(g.counter.Finished)...)
	}
	if over := len(g.console) - consoleBytes; over > 0 {
		g.console = append([]byte(nil), g.console[over:]...)
	}
	g.driver.writeDisk(g.disk[len(g.disk)-1].Path, g.counter.Attempts)
}

// Capture implements machine.Instance.
func (g *guest) Capture(_ context.Context, req machine.CaptureRequest) (c machine.Capture, err error) {
	unlock, err := g.begin()
	if err != nil {
		return c, err
	}
	defer func() { unlock() }()
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
	// outside calls the hook, which may wait, and looks whether the machine is still there.
	outside := func(hook func(machine.Spec) error) error {
		err := func() error {
			g.mu.Unlock()
			defer g.mu.Lock() // also where a test ends in its hook
			return hook(g.spec)
		}()
		if err = errors.Join(g.alive(), err); err != nil {
			return fmt.Errorf("capture VM %s: %w", g.spec.ID, err)
		}
		return nil
	}
	if err := outside(g.driver.captureError); err != nil {
		return c, err
	}
	files := g.files
	if g.agent != nil {
		if files, err = packFiles(g.root()); err != nil {
			return c, fmt.Errorf("capture VM %s: %w", g.spec.ID, err)
		}
	}
	if err := os.WriteFile(req.DeviceState, encodeState(g.counter, files), 0o600); err != nil {
		return c, errors.Join(fmt.Errorf("capture VM %s: %w", g.spec.ID, err), os.Remove(req.DeviceState))
	}
	g.disk = append(g.disk, req.Overlay)
	c.DiskSwitched = true
	if err := outside(func(s machine.Spec) error { return g.driver.at(OpSwitch, s) }); err != nil {
		return c, err
	}
	pages := maps.Clone(g.memory)
	pages[testguest.CounterPage], pages[testguest.PatternPage] = g.counter.Page(), g.counter.Pattern()
	c.Memory = memory.NewSnapshot(g.spec.Hardware.MemoryBytes, pages)
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

// ActiveLayer implements machine.DiskReporter.
func (g *guest) ActiveLayer(context.Context) (string, error) {
	unlock, err := g.begin()
	if err != nil {
		return "", err
	}
	defer unlock()
	return g.disk[len(g.disk)-1].Path, nil
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
	unlock, err := g.hooked(OpGrow)
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
	g.advance()
	return append([]byte(nil), g.console...), nil
}

// Kill implements machine.Instance.
func (g *guest) Kill(context.Context) error {
	if err := g.driver.at(OpKill, g.spec); err != nil {
		return fmt.Errorf("kill VM %s: %w", g.spec.ID, err)
	}
	g.Crash()
	return nil
}

// Crash ends the process, as if it had been killed from outside, and waits until nothing of the guest is left.
func (g *guest) Crash() {
	g.mu.Lock()
	if g.alive() == nil {
		close(g.done) // first: who sees the guest's end looks whether it was that of the process
		g.end()
		g.driver.gone(g)
	}
	agent := g.agent
	g.mu.Unlock()
	if agent != nil {
		agent.end()
	}
	g.calls.Wait()
}

// PowerOff makes the guest end by itself.
func (g *guest) PowerOff() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.alive() == nil {
		g.end()
	}
}

// CPUTime implements machine.Worker.
func (g *guest) CPUTime() (time.Duration, error) {
	unlock, err := g.begin()
	if err != nil {
		return 0, err
	}
	defer unlock()
	return g.worked, nil
}

// Work makes the guest use CPU time.
func (g *guest) Work(cpu time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.worked += cpu
}

// FillDisk stops the guest as if the host's disk were full.
func (g *guest) FillDisk() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.alive() != nil || g.status != machine.StatusRunning {
		return
	}
	g.setRunning(false)
	select {
	case g.full <- struct{}{}:
	default:
	}
}
