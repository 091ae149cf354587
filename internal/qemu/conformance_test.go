package qemu

import (
	"context"
	"encoding/binary"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"vers/internal/machine"
	"vers/internal/machine/drivertest"
)

// testUID is the first of the users that tests give to machines; nobody has it.
const testUID = 791000

func TestConformanceTCG(t *testing.T) {
	drivertest.Run(t, harness(newTestDriver(t, acceleratorTCG)))
}

// TestConformanceKVM runs the whole suite under KVM, on guests so small that they run where a stock kernel hangs.
func TestConformanceKVM(t *testing.T) {
	drivertest.Run(t, harness(newTestDriver(t, acceleratorKVM)))
}

func newTestDriver(t testing.TB, accelerator string) *Driver {
	t.Helper()
	binary := "qemu-system-x86_64"
	if other := os.Getenv("VERS_TEST_QEMU"); other != "" {
		binary = other
	}
	return newTestDriverFor(t, accelerator, binary)
}

// newTestDriverFor makes a driver of a certain QEMU. VERS_TEST_QEMU_TREES lists the directories that it needs besides
// the system's.
func newTestDriverFor(t testing.TB, accelerator, binary string) *Driver {
	t.Helper()
	if _, err := exec.LookPath(binary); err != nil {
		t.Skip("QEMU is not installed")
	}
	c := Config{Binary: binary, Trees: filepath.SplitList(os.Getenv("VERS_TEST_QEMU_TREES")), Accelerator: accelerator, Logger: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if accelerator == acceleratorKVM {
		f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		if err != nil {
			t.Skipf("no KVM here: %v", err)
		}
		f.Close()
		c.CPU = "qemu64"
	}
	d, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// testWriter logs into the test; what comes after its end is dropped.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Logf("%s", p[:len(p)-1])
	}
	return len(p), nil
}

func harness(d *Driver) drivertest.Harness {
	h := drivertest.Harness{
		Driver:    d,
		DiskCount: diskCount,
		Forget: func(i machine.Instance) {
			instance := i.(*Instance)
			instance.Forget()
			<-instance.released
		},
		Crash: func(t *testing.T, i machine.Instance) {
			if err := unix.Kill(i.Process().PID, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
		LimitDir: limitDir,
		FillDir:  fillDir,
		Alive:    machine.Process.Alive,
	}
	if d.confinement == confinedAsRoot {
		h.UID, h.GID = testUID, testUID
	}
	return h
}

// diskCount reads the disk through qemu-img, which shares no code with ours.
func diskCount(t *testing.T, layers []machine.Layer) uint32 {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "disk.raw")
	top := layers[len(layers)-1]
	out, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-U", "-f", top.Format, "-O", "raw", top.Path, raw).CombinedOutput()
	if err != nil {
		t.Fatalf("read the disk: %v: %s", err, out)
	}
	data, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint32(data[512:])
}

// limitDir mounts a small file system on dir.
func limitDir(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount("test", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("a small file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// fillDir leaves 16 KiB, less than a device state needs.
func fillDir(t *testing.T, dir string) func() {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var written int64
	for block := make([]byte, 4096); ; written += 4096 {
		if _, err := f.Write(block); err != nil {
			break
		}
	}
	if err := f.Truncate(written - 16<<10); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// kill ends an instance after a test.
func killAfter(t testing.TB, i machine.Instance) {
	t.Cleanup(func() {
		if err := i.Kill(context.Background()); err != nil {
			t.Error(err)
		}
	})
}
