package image_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vers/internal/fault"
	"vers/internal/image"
	"vers/internal/image/imagetest"
)

// What is there is not made again: no program is even looked for, and nothing is written.
func TestPrepareIsIdempotent(t *testing.T) {
	dir, err := imagetest.Base(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", t.TempDir())
	said := &strings.Builder{}
	start := time.Now()
	kernel, err := image.PrepareKernel(t.Context(), dir, said)
	if err != nil {
		t.Fatal(err)
	}
	file, err := image.PrepareDefaultImage(t.Context(), dir, said)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > time.Second || said.Len() > 0 {
		t.Errorf("it took %v and said %q", took, said)
	}
	if len(kernel.Digest) != 64 || kernel.Release == "" || len(file.Digest) != 64 || file.SizeBytes != image.DefaultDiskBytes {
		t.Errorf("kernel %+v, image %+v", kernel, file)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*", ".new-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left half made: %v (%v)", left, err)
	}
}

// The image holds nothing of the host it was made on, and is whole.
func TestDefaultImageIsClean(t *testing.T) {
	_, file := imagetest.Open(t)
	if out, err := exec.CommandContext(t.Context(), "e2fsck", "-fn", file.Path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	cat := func(path string) string {
		out, err := exec.CommandContext(t.Context(), "debugfs", "-R", "cat "+path, file.Path).Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	for path, want := range map[string]string{
		"/etc/hostname":    "vers\n",
		"/etc/resolv.conf": "nameserver 10.77.0.1\n",
		"/etc/machine-id":  "",
		"/etc/apt/sources.list": "deb http://deb.debian.org/debian bookworm main\ndeb http://deb.debian.org/debian bookworm-updates main\n" +
			"deb http://deb.debian.org/debian-security bookworm-security main\n",
	} {
		if got := cat(path); got != want {
			t.Errorf("%s is %q", path, got)
		}
	}
	list, err := exec.CommandContext(t.Context(), "debugfs", "-R", "ls -p /etc/apt/apt.conf.d", file.Path).Output()
	if err != nil || strings.Contains(string(list), "mmdebstrap") {
		t.Errorf("settings of the build are in the image: %s (%v)", list, err)
	}
	if shadow := cat("/etc/shadow"); !strings.HasPrefix(shadow, "root:*:") {
		t.Errorf("root has a password: %q", strings.SplitN(shadow, "\n", 2)[0])
	}
}

func TestOpenKernel(t *testing.T) {
	data := t.TempDir()
	if _, err := image.OpenKernel(data, "other.bin"); !fault.Is(err, fault.NotFound) || err.Error() != "kernel image 'other.bin' not found" {
		t.Errorf("got %v", err)
	}
	for _, name := range []string{"", "..", "a/b", ".lock", "a\x00b", "../../etc"} {
		if _, err := image.OpenKernel(data, name); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := image.OpenImage(data, name); !fault.Is(err, fault.Invalid) {
			t.Errorf("image %q: %v", name, err)
		}
	}
	dir := filepath.Join(data, "kernels", "half.bin")
	write(t, filepath.Join(dir, "release"), "6.1\n")
	write(t, filepath.Join(dir, "digest"), "abc\n")
	if _, err := image.OpenKernel(data, "half.bin"); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "incomplete") {
		t.Errorf("a kernel without vmlinuz: %v", err)
	}
}

// An image without a digest was put there whole (by a rename); it is taken as it is and not replaced.
func TestPrepareAdoptsImageWithoutDigest(t *testing.T) {
	data := t.TempDir()
	path := filepath.Join(data, "images", "default.ext4")
	write(t, path, "content")
	file, err := image.PrepareDefaultImage(t.Context(), data, nil)
	if err != nil {
		t.Fatal(err)
	}
	if sum, _ := image.DigestFile(path); file.Digest != sum || file.SizeBytes != int64(len("content")) {
		t.Errorf("%+v", file)
	}
}

func TestPrepareWithoutTools(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	data := t.TempDir()
	if _, err := image.PrepareDefaultImage(t.Context(), data, nil); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "versd doctor") {
		t.Errorf("image: %v", err)
	}
	if _, err := image.PrepareKernel(t.Context(), data, nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("kernel: %v", err)
	}
	for _, sub := range []string{"kernels", "images"} {
		if entries, err := os.ReadDir(filepath.Join(data, sub)); err != nil || len(entries) > 1 { // the lock
			t.Errorf("left in %s: %v (%v)", sub, entries, err)
		}
	}
}

// While one process prepares, another waits, and stops waiting when it is told to.
func TestLockIsExclusive(t *testing.T) {
	dir := t.TempDir()
	err := image.WithLock(t.Context(), dir, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		err := image.WithLock(ctx, dir, func() error { return errors.New("entered twice") })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := image.WithLock(t.Context(), dir, func() error { return nil }); err != nil {
		t.Errorf("not given back: %v", err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
