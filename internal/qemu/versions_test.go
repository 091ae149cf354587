package qemu

import (
	"os"
	"slices"
	"testing"
	"time"

	"vers/internal/machine/testguest"
)

// TestCrossVersions takes a commit with one QEMU and restores it with another, both ways. VERS_TEST_QEMU_OTHER names
// the other one.
func TestCrossVersions(t *testing.T) {
	other := os.Getenv("VERS_TEST_QEMU_OTHER")
	if other == "" {
		t.Skip("VERS_TEST_QEMU_OTHER names no second QEMU")
	}
	for _, accelerator := range []string{acceleratorTCG, acceleratorKVM} {
		a, b := newTestDriver(t, accelerator), newTestDriverFor(t, accelerator, other)
		for _, pair := range [][2]*Driver{{a, b}, {b, a}} {
			t.Run(accelerator+" "+pair[0].capabilities.Version+" to "+pair[1].capabilities.Version, func(t *testing.T) {
				crossVersions(t, pair[0], pair[1])
			})
		}
	}
}

func crossVersions(t *testing.T, from, to *Driver) {
	flat, state, disk := countingCommit(t, from, 64<<20)
	page := make([]byte, 4096)
	f, err := os.Open(flat)
	must(t, err)
	defer f.Close()
	_, err = f.ReadAt(page, testguest.CounterPage*4096)
	must(t, err)
	at := testguest.ParseCounters(page)

	s := countingSpec(t, to, 64<<20)
	s.Disk = append(slices.Clone(disk), newLayer(t, s, "clone", disk[len(disk)-1]))
	s.MemoryFile = flat
	must(t, to.Host().CanLoad(s.Hardware))
	i := startFor(t, to, s)
	must(t, i.Load(t.Context(), state))
	must(t, i.Resume(t.Context()))
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		console, err := i.Console(t.Context())
		must(t, err)
		if numbers := testguest.ParseConsole(console); len(numbers) > 5 {
			if first := numbers[0]; first < at.Finished || first > at.Finished+3 {
				t.Fatalf("it went on with %d after %v", first, at)
			}
			return
		}
	}
	t.Fatal("it does not count")
}
