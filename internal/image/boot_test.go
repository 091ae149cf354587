package image_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"vers/internal/disk"
	"vers/internal/image"
	"vers/internal/image/imagetest"
)

// buildStatic builds a Go program the way the agent is built.
func buildStatic(t *testing.T, pkg string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, text)
	}
	return out
}

// boot runs a guest until it powers off and gives what its console said. Emulated, so that it works everywhere.
func boot(t *testing.T, kernel image.Kernel, initrd, overlay, cmdline string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-machine", "pc-q35-7.2,smbus=off,sata=off,i8042=off,vmport=off,hpet=off", "-accel", "tcg", "-cpu", "max", "-m", "512",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", kernel.Vmlinuz, "-initrd", initrd, "-append", "console=ttyS0 quiet loglevel=3 panic=-1 no_timer_check root=/dev/vda "+cmdline,
		"-drive", "if=none,id=root,format=qcow2,file="+overlay, "-device", "virtio-blk-pci,drive=root",
		"-device", "virtio-net-pci", "-device", "virtio-rng-pci", "-serial", "stdio")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	start := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatalf("QEMU: %v\n%s\nconsole:\n%s", err, &errs, &out)
	}
	t.Logf("%v until power-off", time.Since(start).Round(10*time.Millisecond))
	return out.String()
}

func overlayOn(t *testing.T, base string, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "overlay.qcow2")
	if err := disk.CreateOverlay(path, size, base, "raw"); err != nil {
		t.Fatal(err)
	}
	return path
}

// Kernel, modules, initramfs and image together, with a first process that reports what it finds. The disk is larger
// than the image, so the file system is grown while it is mounted, as in every VM with a larger disk.
func TestBoot(t *testing.T) {
	kernel, root := imagetest.Open(t)
	before, err := os.Stat(root.Path)
	if err != nil {
		t.Fatal(err)
	}
	initrd, _, err := image.Initrd(t.Context(), t.TempDir(), kernel, buildStatic(t, "./testdata/init"))
	if err != nil {
		t.Fatal(err)
	}
	overlay := overlayOn(t, root.Path, 8<<30)
	console := boot(t, kernel, initrd, overlay, "")
	t.Logf("console:\n%s", console)
	for _, want := range []string{
		"virtio_blk.ko", "virtio_net.ko", "virtio-rng.ko", "virtio_console.ko", "overlay.ko", "fuse.ko",
		"cat /etc/hostname: vers\r", "cat /etc/resolv.conf: nameserver 10.77.0.1\r", "git version ", "print(6*7)': 42\r",
		"id -un: root\r", "passwd -S root: root L ", "/proc: 755 directory, 1777 directory, 555 directory\r", "guest: done\r",
	} {
		if !strings.Contains(console, want) {
			t.Errorf("the console does not say %q", want)
		}
	}
	// The guest grew the file system from 1 to 8 GiB (less tables and journal); that must cost little on the host.
	found := regexp.MustCompile(`(\d+) blocks of 4096`).FindStringSubmatch(console)
	if found == nil {
		t.Fatal("the console does not say how large the file system is")
	}
	if blocks, err := strconv.ParseInt(found[1], 10, 64); err != nil || blocks*4096 < 78<<30/10 {
		t.Errorf("the file system has %s blocks of 4096 after growing to 8 GiB (%v)", found[1], err)
	}
	allocated, err := disk.Allocated(overlay)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("overlay holds %d KiB", allocated>>10)
	if allocated > 64<<20 {
		t.Errorf("growing the file system filled %d MiB of the overlay", allocated>>20)
	}
	after, err := os.Stat(root.Path)
	if err != nil {
		t.Fatal(err)
	}
	if !after.ModTime().Equal(before.ModTime()) {
		t.Error("the shared image was written to")
	}
}

// The agent as it is shipped greets from the composed initramfs.
func TestBootAgent(t *testing.T) {
	kernel, root := imagetest.Open(t)
	initrd, _, err := image.Initrd(t.Context(), t.TempDir(), kernel, buildStatic(t, "vers/cmd/vers-agent"))
	if err != nil {
		t.Fatal(err)
	}
	console := boot(t, kernel, initrd, overlayOn(t, root.Path, image.DefaultDiskBytes), "vers.mode=probe")
	if !strings.Contains(console, "vers-agent: hello") {
		t.Errorf("no greeting:\n%s", console)
	}
}
