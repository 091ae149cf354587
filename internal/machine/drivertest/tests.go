package drivertest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"vers/internal/fault"
	"vers/internal/machine"
	"vers/internal/machine/testguest"
	"vers/internal/memory"
)

func testBoot(t *testing.T, b *bench) {
	v := b.start(t, b.spec(t, b.imageLayer()))
	b.wantStatus(t, v, machine.StatusPaused)
	check(t, v.Pause(b.ctx))
	check(t, v.Resume(b.ctx))
	check(t, v.Resume(b.ctx))
	b.wantStatus(t, v, machine.StatusRunning)
	b.waitCount(t, v, 5)
	check(t, v.Pause(b.ctx))
	check(t, v.Pause(b.ctx))
	b.wantStatus(t, v, machine.StatusPaused)
	before, err := v.Console(b.ctx)
	check(t, err)
	first, second := b.capture(t, v, false), b.capture(t, v, false)
	if first.Counters != second.Counters {
		t.Fatalf("a paused guest counted from %v to %v", first.Counters, second.Counters)
	}
	after, err := v.Console(b.ctx)
	check(t, err)
	if !bytes.Equal(before, after) {
		t.Fatal("the console of a paused guest changed, or reading took something out of it")
	}
	check(t, v.Resume(b.ctx))
	b.waitCount(t, v, second.Attempts+5)
}

func testClones(t *testing.T, b *bench) {
	parent := b.running(t, 20)
	c := b.capture(t, parent, false)
	b.wantStatus(t, parent, machine.StatusRunning)
	b.waitCount(t, parent, c.Attempts+5)
	for range 3 {
		b.goesOn(t, b.restore(t, c), c)
	}
	b.waitCount(t, parent, c.Attempts+10)

	// What a clone has of its own is little, and enough for its clones, while the file it came from stays as it was.
	child := b.restore(t, c)
	b.goesOn(t, child, c)
	before, err := os.ReadFile(c.flat)
	check(t, err)
	second := b.capture(t, child, false)
	if second.Finished <= c.Finished || second.pages == 0 || second.pages > 256 {
		t.Fatalf("second generation at %v after %v with %d pages of its own", second.Counters, c.Counters, second.pages)
	}
	b.goesOn(t, b.restore(t, second), second)
	b.goesOn(t, b.restore(t, c), c)
	after, err := os.ReadFile(c.flat)
	check(t, err)
	if !bytes.Equal(before, after) {
		t.Fatal("a clone wrote to the memory file that all share")
	}
}

func testZeroedPages(t *testing.T, b *bench) {
	v := b.running(t, testguest.PatternBit)
	// Captures until one has the page filled, and one of its clone has it zero.
	filled := b.captureWith(t, v, true)
	clone := b.restore(t, filled)
	check(t, clone.Resume(b.ctx))
	zero := b.captureWith(t, clone, false)
	b.goesOn(t, b.restore(t, zero), zero)
}

// captureWith captures until the pattern page is filled, or zero, and checks that it is what the guest made it.
func (b *bench) captureWith(t *testing.T, v *vm, filled bool) commit {
	t.Helper()
	for {
		c := b.capture(t, v, false)
		follows := bytes.Equal(readPage(t, c.flat, testguest.PatternPage), c.Pattern())
		if follows && (c.Attempts&testguest.PatternBit != 0) == filled {
			return c
		}
		if !follows && c.Attempts == c.Finished { // else the guest was caught just before it changed the page
			t.Fatalf("the page that follows the counter is wrong at %v", c.Counters)
		}
		b.waitCount(t, v, c.Attempts+1)
	}
}

func testLateMemory(t *testing.T, b *bench) {
	parent := b.running(t, 20)
	c := b.capture(t, parent, false)
	s := b.spec(t, c.disk)
	s.MemoryFile = filepath.Join(b.root, "flats", "late.ram")
	check(t, os.WriteFile(s.MemoryFile, nil, 0o600))
	check(t, os.Truncate(s.MemoryFile, s.Hardware.MemoryBytes))
	b.share(t, s, s.MemoryFile)
	v := b.start(t, s)
	b.wantStatus(t, v, machine.StatusPrepared)

	data, err := os.ReadFile(c.flat)
	check(t, err)
	f, err := os.OpenFile(s.MemoryFile, os.O_WRONLY, 0)
	check(t, err)
	_, err = f.Write(data)
	check(t, err)
	check(t, f.Close())
	check(t, v.Load(b.ctx, c.state))
	b.goesOn(t, v, c)
}

// testPatch starts a clone from the memory file that its parent was started from, with the parent's own pages on top.
func testPatch(t *testing.T, b *bench) {
	base := b.capture(t, b.running(t, testguest.PatternBit), false) // with more than the counter to be replaced
	parent := b.restore(t, base)
	b.goesOn(t, parent, base)
	c, own := b.take(t, parent, false)
	before, err := os.ReadFile(base.flat)
	check(t, err)
	s := b.spec(t, c.disk)
	s.MemoryFile = base.flat
	v := b.start(t, s)
	patcher, ok := v.Instance.(machine.MemoryPatcher)
	if !ok {
		t.Log("this driver does not put pages into memory")
		return
	}
	check(t, patcher.PatchMemory(b.ctx, own))
	check(t, v.Load(b.ctx, c.state))
	b.goesOn(t, v, c)
	after, err := os.ReadFile(base.flat)
	check(t, err)
	if !bytes.Equal(before, after) {
		t.Fatal("the pages went into the memory file that all share")
	}
	// What was put in is the clone's own: a capture of it holds it.
	again := b.capture(t, v, false)
	b.goesOn(t, b.restore(t, again), again)
	small := memory.NewSnapshot(ramBytes/2, nil)
	if err := b.prepare(t, base).Instance.(machine.MemoryPatcher).PatchMemory(b.ctx, small); err == nil {
		t.Fatal("pages of a smaller memory were put in")
	}
}

func testActiveLayer(t *testing.T, b *bench) {
	v := b.running(t, 5)
	want := func(when string) {
		t.Helper()
		reporter, ok := v.Instance.(machine.DiskReporter)
		if !ok {
			t.Log("this driver does not say where its machines write to")
			return
		}
		path, err := reporter.ActiveLayer(b.ctx)
		check(t, err)
		if top := v.spec.Disk[len(v.spec.Disk)-1].Path; filepath.Base(path) != filepath.Base(top) {
			t.Fatalf("%s the machine writes to %s, want %s", when, path, top)
		}
	}
	want("at first")
	b.capture(t, v, false)
	want("after a capture")
	b.capture(t, v, true)
	id := v.Process()
	b.Forget(v.Instance)
	adopted, err := b.Driver.Adopt(b.ctx, v.spec, id)
	check(t, err)
	v.Instance = adopted
	want("adopted")
}

func testPausedCapture(t *testing.T, b *bench) {
	v := b.running(t, 5)
	c := b.capture(t, v, true)
	b.wantStatus(t, v, machine.StatusPaused)
	again := b.capture(t, v, false)
	b.wantStatus(t, v, machine.StatusPaused)
	if c.Counters != again.Counters {
		t.Fatalf("a paused guest counted from %v to %v", c.Counters, again.Counters)
	}
	b.goesOn(t, b.restore(t, again), again)
	check(t, v.Resume(b.ctx))
	b.waitCount(t, v, c.Attempts+5)
}

func testCaptureFails(t *testing.T, b *bench) {
	v := b.running(t, 5)
	state := filepath.Join(v.spec.Dir, "state")
	good := b.overlay(t, v.spec, v.spec.Disk)
	exists := filepath.Join(v.spec.Dir, "exists")
	check(t, os.WriteFile(exists, []byte("precious"), 0o600))
	for _, c := range []struct {
		name string
		req  machine.CaptureRequest
	}{
		{"state outside the directory", machine.CaptureRequest{DeviceState: filepath.Join(b.root, "state"), Overlay: good}},
		{"state exists", machine.CaptureRequest{DeviceState: exists, Overlay: good}},
		{"no overlay", machine.CaptureRequest{DeviceState: state, Overlay: machine.Layer{Path: good.Path + ".missing", Format: "qcow2"}}},
		{"raw overlay", machine.CaptureRequest{DeviceState: state, Overlay: machine.Layer{Path: good.Path, Format: "raw"}}},
	} {
		got, err := v.Capture(b.ctx, c.req)
		if err == nil || got.DiskSwitched || got.Memory != nil {
			t.Fatalf("%s: %+v, %v", c.name, got, err)
		}
		b.wantStatus(t, v, machine.StatusRunning)
	}
	if data, err := os.ReadFile(exists); err != nil || string(data) != "precious" {
		t.Fatalf("a file that was in the way now holds %q (%v)", data, err)
	}
	c := b.capture(t, v, false)
	b.waitCount(t, v, c.Attempts+5)
}

func testFullDisk(t *testing.T, b *bench) {
	s := b.spec(t, b.imageLayer())
	b.LimitDir(t, s.Dir)
	b.own(t, s, s.Dir, 0o700)
	v := b.start(t, s)
	check(t, v.Resume(b.ctx))
	b.waitCount(t, v, 5)
	room := b.FillDir(t, s.Dir)
	state := filepath.Join(s.Dir, "state")
	got, err := v.Capture(b.ctx, machine.CaptureRequest{DeviceState: state, Overlay: b.overlay(t, s, s.Disk)})
	if err == nil || got.DiskSwitched || got.Memory != nil {
		t.Fatalf("capture without room: %+v, %v", got, err)
	}
	t.Logf("capture without room: %v", err)
	if _, err := os.Lstat(state); !os.IsNotExist(err) {
		t.Fatalf("half a device state is left: %v", err)
	}
	b.wantStatus(t, v, machine.StatusRunning)
	room()
	c := b.capture(t, v, false)
	b.goesOn(t, b.restore(t, c), c)
}

func testGrow(t *testing.T, b *bench) {
	v := b.running(t, 5)
	check(t, v.GrowDisk(b.ctx, 2*testguest.DiskBytes))
	check(t, v.GrowDisk(b.ctx, 2*testguest.DiskBytes))
	if err := v.GrowDisk(b.ctx, testguest.DiskBytes); !fault.Is(err, fault.Invalid) {
		t.Fatalf("shrink: %v, want invalid", err)
	}
	numbers := b.waitCount(t, v, 5)
	b.waitCount(t, v, numbers[len(numbers)-1]+5)
}

func testAdopt(t *testing.T, b *bench) {
	v := b.running(t, 5)
	before := b.waitCount(t, v, 5)
	id := v.Process()
	b.Forget(v.Instance)
	if !b.Alive(id) {
		t.Fatal("the process ended with its controller")
	}
	for name, other := range map[string]machine.Process{
		"another start time": {PID: id.PID, StartTime: id.StartTime + 1, BootID: id.BootID},
		"another boot":       {PID: id.PID, StartTime: id.StartTime, BootID: "00000000-0000-0000-0000-000000000000"},
		"no such process":    {PID: 1 << 30, StartTime: id.StartTime, BootID: id.BootID},
	} {
		if _, err := b.Driver.Adopt(b.ctx, v.spec, other); !fault.Is(err, fault.NotFound) {
			t.Fatalf("adopt with %s: %v, want not found", name, err)
		}
	}
	adopted, err := b.Driver.Adopt(b.ctx, v.spec, id)
	check(t, err)
	v.Instance = adopted
	if adopted.Process() != id {
		t.Fatalf("adopted %v, not %v", adopted.Process(), id)
	}
	b.wantStatus(t, v, machine.StatusRunning)
	numbers := b.waitCount(t, v, before[len(before)-1]+5)
	if numbers[0] > before[len(before)-1] {
		t.Fatalf("the console forgot what it held before: it starts with %d", numbers[0])
	}
	c := b.capture(t, v, false)
	b.goesOn(t, b.restore(t, c), c)
	check(t, v.Kill(b.ctx))
	if _, err := b.Driver.Adopt(b.ctx, v.spec, id); !fault.Is(err, fault.NotFound) {
		t.Fatalf("adopt after the end: %v, want not found", err)
	}
}

func testKill(t *testing.T, b *bench) {
	v := b.running(t, 5)
	check(t, v.Kill(b.ctx))
	select {
	case <-v.Done():
	default:
		t.Fatal("Done is open after Kill")
	}
	check(t, v.Kill(b.ctx))
	b.wantGone(t, v)
}

func testCrash(t *testing.T, b *bench) {
	v := b.running(t, 5)
	b.Crash(t, v.Instance)
	wait(b.ctx, t, "Done after a crash", v.Done())
	b.wantGone(t, v)

	adopted := b.running(t, 5)
	id := adopted.Process()
	b.Forget(adopted.Instance)
	again, err := b.Driver.Adopt(b.ctx, adopted.spec, id)
	check(t, err)
	adopted.Instance = again
	b.Crash(t, again)
	wait(b.ctx, t, "Done of an adopted instance after a crash", again.Done())
}

// wantGone: everything but Process, Kill, Done and Ended fails with a conflict.
func (b *bench) wantGone(t *testing.T, v *vm) {
	t.Helper()
	wait(b.ctx, t, "Ended after Done", v.Ended())
	_, status := v.Status(b.ctx)
	_, console := v.Console(b.ctx)
	_, capture := v.Capture(b.ctx, machine.CaptureRequest{DeviceState: filepath.Join(v.spec.Dir, "gone"), Overlay: v.spec.Disk[1]})
	for name, err := range map[string]error{
		"Status": status, "Console": console, "Capture": capture, "Resume": v.Resume(b.ctx), "Pause": v.Pause(b.ctx),
		"Load": v.Load(b.ctx, "/nowhere"), "GrowDisk": v.GrowDisk(b.ctx, 2*testguest.DiskBytes),
	} {
		if !fault.Is(err, fault.Conflict) {
			t.Errorf("%s after the end: %v, want a conflict", name, err)
		}
	}
}

func testEnded(t *testing.T, b *bench) {
	check(t, testguest.WriteEnding(b.image))
	v := b.start(t, b.spec(t, b.imageLayer()))
	select {
	case <-v.Ended():
		t.Fatal("ended before it began")
	default:
	}
	check(t, v.Resume(b.ctx))
	wait(b.ctx, t, "Ended", v.Ended())
	b.wantStatus(t, v, machine.StatusEnded)
	console, err := v.Console(b.ctx)
	check(t, err)
	if !bytes.Contains(console, []byte("ye\n")) { // the firmware may still print in between
		t.Fatalf("console of a guest that ended: %q", console)
	}
	if err := v.Resume(b.ctx); !fault.Is(err, fault.Conflict) {
		t.Fatalf("resume of a guest that ended: %v, want a conflict", err)
	}
	id := v.Process()
	b.Forget(v.Instance)
	adopted, err := b.Driver.Adopt(b.ctx, v.spec, id)
	check(t, err)
	v.Instance = adopted
	wait(b.ctx, t, "Ended of an adopted instance", adopted.Ended())
}

func testStates(t *testing.T, b *bench) {
	v := b.running(t, 5)
	c := b.capture(t, v, false)
	if err := v.Load(b.ctx, c.state); !fault.Is(err, fault.Conflict) {
		t.Fatalf("load into a running machine: %v, want a conflict", err)
	}
	p := b.prepare(t, c)
	b.wantStatus(t, p, machine.StatusPrepared)
	if err := p.Resume(b.ctx); !fault.Is(err, fault.Conflict) {
		t.Fatalf("resume before load: %v, want a conflict", err)
	}
	if err := p.Pause(b.ctx); !fault.Is(err, fault.Conflict) {
		t.Fatalf("pause before load: %v, want a conflict", err)
	}
	if _, err := p.Capture(b.ctx, machine.CaptureRequest{DeviceState: filepath.Join(p.spec.Dir, "x"), Overlay: b.overlay(t, p.spec, p.spec.Disk)}); !fault.Is(err, fault.Conflict) {
		t.Fatalf("capture before load: %v, want a conflict", err)
	}
	if err := p.Load(b.ctx, c.state+".missing"); err == nil {
		t.Fatal("a missing device state was loaded")
	}
	check(t, p.Load(b.ctx, c.state))
	if err := p.Load(b.ctx, c.state); !fault.Is(err, fault.Conflict) {
		t.Fatalf("second load: %v, want a conflict", err)
	}
	broken := filepath.Join(b.root, "broken")
	check(t, os.WriteFile(broken, []byte("this is no device state"), 0o600))
	other := b.prepare(t, c)
	err := other.Load(b.ctx, broken)
	if err == nil {
		t.Fatal("garbage was loaded as device state")
	}
	t.Logf("garbage: %v", err)
}

func testHost(t *testing.T, b *bench) {
	host := b.Driver.Host()
	good := host.Hardware
	good.MemoryBytes, good.VCPUs = ramBytes, 1
	check(t, host.CanLoad(good))
	for name, change := range map[string]func(*machine.Hardware){
		"machine type": func(h *machine.Hardware) { h.MachineType = "pc-q35-99.9" },
		"devices":      func(h *machine.Hardware) { h.Devices = "v999" },
		"accelerator":  func(h *machine.Hardware) { h.Accelerator = "hvf" },
	} {
		other := good
		change(&other)
		if host.CanLoad(other) == nil {
			t.Errorf("a state with another %s can be loaded", name)
		}
		s := b.spec(t, b.imageLayer())
		s.Hardware = other
		if i, err := b.Driver.Start(b.ctx, s); err == nil {
			check(t, i.Kill(b.ctx))
			t.Errorf("a machine with another %s starts", name)
		}
	}
}
