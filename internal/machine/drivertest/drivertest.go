// Package drivertest is the conformance suite of machine.Driver. Every driver runs it on the guests of testguest.
package drivertest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vers/internal/disk"
	"vers/internal/machine"
	"vers/internal/machine/testguest"
	"vers/internal/memory"
)

// Harness is a driver and what the suite must know to see through it.
type Harness struct {
	Driver machine.Driver

	// UID and GID of the first machine; the next ones have the next UIDs. 0: the driver cannot change users.
	UID, GID int

	// DiskCount reads the 32-bit number at byte 512 of a disk that nobody writes to.
	DiskCount func(t *testing.T, layers []machine.Layer) uint32

	// Forget makes the driver let go of an instance without ending it, as a versd does that is killed.
	Forget func(machine.Instance)

	// Crash ends the process of an instance from outside.
	Crash func(t *testing.T, instance machine.Instance)

	// LimitDir prepares the directory of an instance, not yet started, so that FillDir can fill it; until the test ends.
	LimitDir func(t *testing.T, dir string)

	// FillDir leaves no room in such a directory until undo is called.
	FillDir func(t *testing.T, dir string) (undo func())

	// Alive reports whether the process of an instance exists.
	Alive func(machine.Process) bool
}

const (
	pageBytes = 4096
	ramBytes  = 64 << 20
	patience  = 60 * time.Second // for anything; reached only when the test fails
)

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	for _, c := range []struct {
		name string
		test func(*testing.T, *bench)
	}{
		{"boot, pause and resume", testBoot},
		{"three clones go on with the next number", testClones},
		{"pages that become zero are zero in the clone", testZeroedPages},
		{"the memory file may be written until Load", testLateMemory},
		{"pages are put on top of the memory file", testPatch},
		{"capture of a paused machine, and keeping it paused", testPausedCapture},
		{"the active layer is known", testActiveLayer},
		{"a capture that fails leaves the machine running", testCaptureFails},
		{"no room for the device state", testFullDisk},
		{"the disk grows", testGrow},
		{"adoption", testAdopt},
		{"kill", testKill},
		{"a crash is noticed", testCrash},
		{"the guest ends", testEnded},
		{"what needs another state is refused", testStates},
		{"hardware of another host is refused", testHost},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			t.Cleanup(cancel)
			c.test(t, newBench(ctx, t, h))
		})
	}
}

// bench is the place of one test: directories, and the machines it started.
type bench struct {
	Harness
	ctx   context.Context
	root  string
	image string
	count int
}

func newBench(ctx context.Context, t *testing.T, h Harness) *bench {
	b := &bench{Harness: h, ctx: ctx, root: t.TempDir()}
	for _, dir := range []string{"images", "layers", "vms", "flats"} {
		check(t, os.Mkdir(filepath.Join(b.root, dir), 0o755))
	}
	b.image = filepath.Join(b.root, "images", "counting.raw")
	check(t, testguest.WriteCounting(b.image))
	return b
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// vm is a machine under test.
type vm struct {
	machine.Instance
	spec machine.Spec
	base string // flat file its memory came from
}

// spec describes a new machine on the image, with an overlay and a directory of its own.
func (b *bench) spec(t *testing.T, below []machine.Layer) machine.Spec {
	t.Helper()
	b.count++
	id := fmt.Sprintf("vm%d", b.count)
	s := machine.Spec{ID: id, Dir: filepath.Join(b.root, "vms", id)}
	if b.UID != 0 {
		s.UID, s.GID = b.UID+b.count, b.GID
	}
	s.Hardware = b.Driver.Host().Hardware
	s.Hardware.MemoryBytes, s.Hardware.VCPUs = ramBytes, 1
	check(t, os.Mkdir(s.Dir, 0o700))
	b.own(t, s, s.Dir, 0o700)
	s.Disk = append(append([]machine.Layer(nil), below...), b.overlay(t, s, below))
	return s
}

// own gives a file to the machine's user, readable by its group.
func (b *bench) own(t *testing.T, s machine.Spec, path string, mode os.FileMode) {
	t.Helper()
	check(t, os.Chmod(path, mode))
	if s.UID != 0 {
		check(t, os.Chown(path, s.UID, s.GID))
	}
}

// overlay makes an empty layer over the others.
func (b *bench) overlay(t *testing.T, s machine.Spec, below []machine.Layer) machine.Layer {
	t.Helper()
	b.count++
	layer := machine.Layer{Path: filepath.Join(b.root, "layers", fmt.Sprintf("layer%d.qcow2", b.count)), Format: "qcow2"}
	top := below[len(below)-1]
	check(t, disk.CreateOverlay(layer.Path, testguest.DiskBytes, top.Path, top.Format))
	b.own(t, s, layer.Path, 0o640)
	return layer
}

func (b *bench) imageLayer() []machine.Layer {
	return []machine.Layer{{Path: b.image, Format: "raw"}}
}

// start starts a machine and makes sure that it ends with the test.
func (b *bench) start(t *testing.T, s machine.Spec) *vm {
	t.Helper()
	i, err := b.Driver.Start(b.ctx, s)
	check(t, err)
	v := &vm{Instance: i, spec: s, base: s.MemoryFile}
	t.Cleanup(func() { b.end(t, v) })
	return v
}

func (b *bench) end(t *testing.T, v *vm) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := v.Kill(ctx); err != nil {
		t.Errorf("end %s: %v", v.spec.ID, err)
	}
	if id := v.Process(); b.Alive(id) {
		t.Errorf("process %d of %s still runs", id.PID, v.spec.ID)
	}
}

// running starts a root machine and waits until its guest has counted to at least n.
func (b *bench) running(t *testing.T, n uint32) *vm {
	t.Helper()
	v := b.start(t, b.spec(t, b.imageLayer()))
	check(t, v.Resume(b.ctx))
	b.waitCount(t, v, n)
	return v
}

// waitCount waits until the guest has printed a number of at least n, and gives all numbers the console holds. The
// guest can only be asked, there is nothing to wait on.
func (b *bench) waitCount(t *testing.T, v *vm, n uint32) []uint32 {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		console, err := v.Console(b.ctx)
		check(t, err)
		if numbers := testguest.ParseConsole(console); len(numbers) > 0 && numbers[len(numbers)-1] >= n {
			return numbers
		}
		select {
		case <-tick.C:
		case <-b.ctx.Done():
			t.Fatalf("%s does not count to %d; console: %q", v.spec.ID, n, console)
		}
	}
}

// commit is a capture written down.
type commit struct {
	testguest.Counters
	flat   string
	state  string
	disk   []machine.Layer
	pages  int
	paused time.Duration
}

// capture takes a commit of v and checks that its parts agree.
func (b *bench) capture(t *testing.T, v *vm, keepPaused bool) commit {
	t.Helper()
	c, s := b.take(t, v, keepPaused)
	s.Release()
	return c
}

// take is capture that keeps the dirty pages, to be released.
func (b *bench) take(t *testing.T, v *vm, keepPaused bool) (commit, *memory.Snapshot) {
	t.Helper()
	b.count++
	state := filepath.Join(v.spec.Dir, fmt.Sprintf("state%d", b.count))
	overlay := b.overlay(t, v.spec, v.spec.Disk)
	got, err := v.Capture(b.ctx, machine.CaptureRequest{DeviceState: state, Overlay: overlay, KeepPaused: keepPaused})
	check(t, err)
	t.Cleanup(got.Memory.Release)
	if !got.DiskSwitched || got.Paused <= 0 {
		t.Fatalf("Capture: DiskSwitched %v, Paused %v", got.DiskSwitched, got.Paused)
	}
	c := commit{state: state, disk: v.spec.Disk, pages: got.Memory.Pages(), paused: got.Paused}
	v.spec.Disk = append(append([]machine.Layer(nil), v.spec.Disk...), overlay)
	c.flat = b.flatten(t, v, got.Memory)
	c.Counters = readCounters(t, c.flat)
	on := b.DiskCount(t, c.disk)
	if c.Finished > on || on > c.Attempts || c.Attempts > c.Finished+1 {
		t.Fatalf("memory and disk disagree: attempts %d, disk %d, finished %d", c.Attempts, on, c.Finished)
	}
	return c, got.Memory
}

// flatten writes the memory file of a commit.
func (b *bench) flatten(t *testing.T, v *vm, s *memory.Snapshot) string {
	t.Helper()
	b.count++
	path := filepath.Join(b.root, "flats", fmt.Sprintf("flat%d.ram", b.count))
	flat, err := memory.NewFlat(b.ctx, path, v.base, v.spec.Hardware.MemoryBytes)
	check(t, err)
	if err := flat.Apply(s); err != nil {
		flat.Abort()
		t.Fatal(err)
	}
	check(t, flat.Finish())
	b.share(t, v.spec, path)
	return path
}

// share lets every machine of the group map a memory file.
func (b *bench) share(t *testing.T, s machine.Spec, path string) {
	t.Helper()
	mode := os.FileMode(0o640)
	if b.Driver.Host().WritableMemoryFile {
		mode = 0o660
	}
	check(t, os.Chmod(path, mode))
	if s.GID != 0 {
		check(t, os.Chown(path, 0, s.GID))
	}
}

func readPage(t *testing.T, flat string, page int64) []byte {
	t.Helper()
	f, err := os.Open(flat)
	check(t, err)
	defer f.Close()
	data := make([]byte, pageBytes)
	_, err = f.ReadAt(data, page*pageBytes)
	check(t, err)
	return data
}

func readCounters(t *testing.T, flat string) testguest.Counters {
	t.Helper()
	return testguest.ParseCounters(readPage(t, flat, testguest.CounterPage))
}

// prepare starts a machine that waits for the state of c.
func (b *bench) prepare(t *testing.T, c commit) *vm {
	t.Helper()
	s := b.spec(t, c.disk)
	s.MemoryFile = c.flat
	return b.start(t, s)
}

// restore brings c up, paused.
func (b *bench) restore(t *testing.T, c commit) *vm {
	t.Helper()
	v := b.prepare(t, c)
	check(t, v.Load(b.ctx, c.state))
	b.wantStatus(t, v, machine.StatusPaused)
	return v
}

func (b *bench) wantStatus(t *testing.T, v *vm, want machine.Status) {
	t.Helper()
	got, err := v.Status(b.ctx)
	check(t, err)
	if got != want {
		t.Fatalf("%s is %s, want %s", v.spec.ID, got, want)
	}
}

// goesOn resumes a clone and checks that it counts on from c.
func (b *bench) goesOn(t *testing.T, v *vm, c commit) {
	t.Helper()
	check(t, v.Resume(b.ctx))
	numbers := b.waitCount(t, v, c.Attempts+5)
	if first := numbers[0]; first < c.Finished || first > c.Finished+3 {
		t.Fatalf("%s went on with %d after %d", v.spec.ID, first, c.Finished)
	}
	for i, n := range numbers {
		if n != numbers[0]+uint32(i) {
			t.Fatalf("%s counted %d as number %d after %d", v.spec.ID, n, i, numbers[0])
		}
	}
}

func wait(ctx context.Context, t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-ctx.Done():
		t.Fatalf("%s: %v", what, context.Cause(ctx))
	}
}
