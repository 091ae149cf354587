package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"vers/internal/machine"
	"vers/internal/machine/testguest"
	"vers/internal/memory"
)

// BenchmarkLauncher measures what confinement adds to the start of a process.
func BenchmarkLauncher(b *testing.B) {
	d := newTestDriver(b, acceleratorTCG)
	b.ResetTimer()
	for b.Loop() {
		must(b, tryConfinement(b.Context(), d.launcher, d.confinement))
	}
}

// BenchmarkRestore measures the steps of a restore, and the pause of a capture, with the counting guest.
func BenchmarkRestore(b *testing.B) {
	for _, accelerator := range []string{acceleratorTCG, acceleratorKVM} {
		for _, mib := range []int64{64, 512, 2048} {
			b.Run(fmt.Sprintf("%s/%dMiB", accelerator, mib), func(b *testing.B) {
				d := newTestDriver(b, accelerator)
				flat, state, disk := countingCommit(b, d, mib<<20)
				var start, load, resume, pause []time.Duration
				b.ResetTimer()
				for b.Loop() {
					s := countingSpec(b, d, mib<<20)
					s.Disk = append(slices.Clone(disk), newLayer(b, s, "clone", disk[len(disk)-1]))
					s.MemoryFile = flat
					at := time.Now()
					lap := func(into *[]time.Duration) {
						*into = append(*into, time.Since(at))
						at = time.Now()
					}
					i, err := d.Start(b.Context(), s)
					must(b, err)
					lap(&start)
					must(b, i.Load(b.Context(), state))
					lap(&load)
					must(b, i.Resume(b.Context()))
					lap(&resume)
					c, err := i.Capture(b.Context(), machine.CaptureRequest{
						DeviceState: filepath.Join(s.Dir, "state"), Overlay: newLayer(b, s, "next", s.Disk[len(s.Disk)-1]),
					})
					must(b, err)
					pause = append(pause, c.Paused)
					c.Memory.Release()
					must(b, i.Kill(b.Context()))
				}
				for name, list := range map[string][]time.Duration{"start": start, "load": load, "resume": resume, "pause": pause} {
					slices.Sort(list)
					b.ReportMetric(float64(list[len(list)/2].Microseconds())/1000, name+"-ms")
				}
			})
		}
	}
}

// countingCommit makes a commit of a root machine.
func countingCommit(b testing.TB, d *Driver, ram int64) (flat, state string, disk []machine.Layer) {
	b.Helper()
	s := countingSpec(b, d, ram)
	i := startFor(b, d, s)
	must(b, i.Resume(b.Context()))
	for {
		console, err := i.Console(b.Context())
		must(b, err)
		if len(testguest.ParseConsole(console)) > 5 {
			break
		}
	}
	state = filepath.Join(s.Dir, "state")
	c, err := i.Capture(b.Context(), machine.CaptureRequest{DeviceState: state, Overlay: newLayer(b, s, "next", s.Disk[1])})
	must(b, err)
	defer c.Memory.Release()
	f, err := memory.NewFlat(b.Context(), filepath.Join(filepath.Dir(s.Dir), "flat.ram"), "", ram)
	must(b, err)
	must(b, f.Apply(c.Memory))
	must(b, f.Finish())
	flat = filepath.Join(filepath.Dir(s.Dir), "flat.ram")
	must(b, os.Chmod(flat, 0o660))
	own(b, s, flat)
	return flat, state, s.Disk
}

// BenchmarkBareQEMU is what a start costs without us: the same QEMU, machine only, to its greeting.
func BenchmarkBareQEMU(b *testing.B) {
	d := newTestDriver(b, acceleratorTCG)
	for b.Loop() {
		_, err := probe(b.Context(), d.capabilities.Path)
		must(b, err)
	}
}
