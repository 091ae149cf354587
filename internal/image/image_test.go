package image_test

import (
	"archive/tar"
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

// testArchive is a small root file system with what is easily lost.
func testArchive(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	when := time.Unix(1_600_000_000, 0)
	for _, h := range []tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o700},
		{Name: "./etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./etc/owned", Typeflag: tar.TypeReg, Mode: 0o4750, Uid: 100000, Gid: 42, Size: 5},
		{Name: "./etc/link", Typeflag: tar.TypeSymlink, Linkname: "owned"},
		{Name: "./etc/hard", Typeflag: tar.TypeLink, Linkname: "./etc/owned"},
		{Name: "./dev/", Typeflag: tar.TypeDir, Mode: 0o700},
		{Name: "./dev/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3},
		{Name: "./null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3},
	} {
		h.ModTime, h.Format = when, tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// checkExt4 looks at a file system made of testArchive without mounting it.
func checkExt4(t *testing.T, path string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	for request, wants := range map[string][]string{
		"stat /etc/owned": {"Mode:  04750", "User: 100000", "Group:    42", "Links: 2", "Size: 5"},
		"stat /etc/link":  {"Type: symlink", "owned"},
		"stat /null":      {"Type: character special", "01:03"},
		"stat /":          {"Mode:  0755"},
		"stat /dev/null":  {"File not found"},
		"stat /dev":       {"Mode:  0755"},
		"stat /tmp":       {"Mode:  01777"},
		"stat /proc":      {"Mode:  0555"},
		"cat /etc/hard":   {"hello"},
		"stats":           {"resize_inode", "Inode count:              65536", "Block size:               4096", "Reserved block count:     0"},
	} {
		out, err := exec.CommandContext(t.Context(), "debugfs", "-R", request, path).CombinedOutput()
		if err != nil {
			t.Fatalf("debugfs %s: %v", request, err)
		}
		for _, want := range wants {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s does not say %q:\n%s", request, want, out)
			}
		}
	}
}

func TestTarToExt4(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.ext4")
	var said strings.Builder
	if err := image.TarToExt4(t.Context(), testArchive(t), path, image.DefaultDiskBytes, &said); err != nil {
		t.Fatal(err)
	}
	checkExt4(t, path)
	t.Logf("said %q", &said)
	info, err := os.Stat(path)
	if err != nil || info.Size() != image.DefaultDiskBytes {
		t.Errorf("%v, %v", info, err)
	}
	noMounts(t, path)
}

// The way without a loop device gives the same, but for parts of seconds.
func TestTarToExt4WithoutLoop(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.ext4")
	write(t, path, "")
	if err := os.Truncate(path, image.DefaultDiskBytes); err != nil {
		t.Fatal(err)
	}
	if err := image.FillByTree(t.Context(), testArchive(t), path); err != nil {
		t.Fatal(err)
	}
	checkExt4(t, path)
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v (%v)", entries, err)
	}
}

// A damaged archive and a stopped build leave no file, no mount and no loop device.
func TestTarToExt4Undoes(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "broken.tar")
	write(t, broken, strings.Repeat("no archive ", 2000))
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tt := range map[string]struct {
		ctx     context.Context
		archive string
	}{
		"broken archive": {t.Context(), broken},
		"no archive":     {t.Context(), filepath.Join(t.TempDir(), "absent")},
		"stopped":        {stopped, testArchive(t)},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "root.ext4")
			if err := image.TarToExt4(tt.ctx, tt.archive, path, image.DefaultDiskBytes, nil); err == nil {
				t.Fatal("no error")
			}
			if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the file is still there (%v)", err)
			}
			noMounts(t, path)
		})
	}
	path := filepath.Join(t.TempDir(), "mine.ext4")
	write(t, path, "precious")
	if err := image.TarToExt4(t.Context(), testArchive(t), path, image.DefaultDiskBytes, nil); err == nil {
		t.Error("an existing file was overwritten")
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "precious" {
		t.Errorf("an existing file was damaged: %q, %v", data, err)
	}
}

func noMounts(t *testing.T, path string) {
	t.Helper()
	// losetup -j names deleted files too.
	out, err := exec.CommandContext(t.Context(), "losetup", "-a").Output()
	if err != nil {
		t.Logf("losetup: %v", err)
	}
	if strings.Contains(string(out), path) {
		t.Errorf("a loop device is still attached: %s", out)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), "vers-mnt-") {
		t.Errorf("still mounted:\n%s", mounts)
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
