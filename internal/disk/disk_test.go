package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// qemuIO runs qemu-io commands on a qcow2 file.
func qemuIO(t testing.TB, path string, commands ...string) {
	t.Helper()
	args := []string{"-f", "qcow2"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	if out := run(t, "qemu-io", append(args, path)...); strings.Contains(out, "rror") || strings.Contains(out, "failed") {
		t.Fatalf("qemu-io %s: %s", path, out)
	}
}

// QEMU's own tools must find nothing wrong with what we write, and read from it what we meant.
func TestCreateOverlay(t *testing.T) {
	for _, size := range []int64{512, 65536 - 512, 1 << 20, 1 << 30, 1<<30 + 512, 512<<20 + 65536, 64 << 30, 2 << 40, 1 << 51} {
		for _, format := range []string{"raw", "qcow2"} {
			t.Run(fmt.Sprint(size, format), func(t *testing.T) {
				dir := t.TempDir()
				run(t, "qemu-img", "create", "-q", "-f", format, filepath.Join(dir, "base"), "4096")
				path := filepath.Join(dir, "top.qcow2")
				must(t, CreateOverlay(path, size, "base", format))
				if out := run(t, "qemu-img", "check", path); !strings.Contains(out, "No errors were found") {
					t.Error(out)
				}
				var told struct {
					Format        string `json:"format"`
					VirtualSize   int64  `json:"virtual-size"`
					Backing       string `json:"backing-filename"`
					BackingFormat string `json:"backing-filename-format"`
					ClusterSize   int    `json:"cluster-size"`
				}
				must(t, json.Unmarshal([]byte(run(t, "qemu-img", "info", "--output=json", path)), &told))
				if told.Format != "qcow2" || told.VirtualSize != size || told.Backing != "base" || told.BackingFormat != format || told.ClusterSize != clusterSize {
					t.Errorf("qemu-img info: %+v", told)
				}
				info, err := Stat(path)
				must(t, err)
				want := Info{Format: "qcow2", VirtualSize: size, Backing: "base", BackingFormat: format, AllocatedBytes: info.AllocatedBytes}
				if info != want || info.AllocatedBytes > 16<<10 {
					t.Errorf("%+v, want %+v", info, want)
				}
				// QEMU can write to its ends, and everything is still in order.
				qemuIO(t, path, "write -P 7 0 512", fmt.Sprintf("write -P 8 %d 512", size-512), fmt.Sprintf("read -P 8 %d 512", size-512))
				if out := run(t, "qemu-img", "check", path); !strings.Contains(out, "No errors were found") {
					t.Error(out)
				}
			})
		}
	}
}

func TestCreateOverlayRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	for _, c := range []struct {
		size            int64
		backing, format string
	}{
		{0, "b", "raw"}, {-512, "b", "raw"}, {513, "b", "raw"}, {1 << 62, "b", "raw"},
		{512, "", "raw"}, {512, strings.Repeat("b", 1024), "raw"}, {512, "a\x00b", "raw"}, {512, "b", ""}, {512, "b", "vmdk"},
	} {
		if err := CreateOverlay(path, c.size, c.backing, c.format); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a file was left behind")
	}
	must(t, os.WriteFile(path, []byte("mine"), 0o600))
	if err := CreateOverlay(path, 512, "b", "raw"); !fault.Is(err, fault.Conflict) || !errors.Is(err, os.ErrExist) {
		t.Errorf("over an existing file: %v", err)
	}
	if got, _ := os.ReadFile(path); string(got) != "mine" {
		t.Error("an existing file was changed")
	}
	long := strings.Repeat("b", 1023)
	must(t, CreateOverlay(path+"2", 512, long, "raw"))
	if info, err := Stat(path + "2"); err != nil || info.Backing != long {
		t.Errorf("%v", err)
	}
}

// layers makes three layers over a base in dir, with everything a merge must get right: data over data, zeroes over
// data, a disk that grew, clusters written in part.
func makeLayers(t testing.TB, dir string) (layers []string, base string) {
	t.Helper()
	base = filepath.Join(dir, "base.raw")
	content := make([]byte, 4<<20)
	for i := range content {
		content[i] = byte(i>>12) | 1
	}
	must(t, os.WriteFile(base, content, 0o600))
	below, format := "base.raw", "raw"
	for i, c := range []struct {
		size   int64
		writes []string
	}{
		{4 << 20, []string{"write -P 11 0 96k", "write -P 11 1M 1M", "write -P 11 3M 4k"}},
		{4 << 20, []string{"write -P 12 64k 96k", "write -z -u 1M 256k", "write -P 12 2M 512"}},
		{8 << 20, []string{"write -P 13 1200k 20k", "write -P 0 2500k 300k", "write -P 13 7M 64k"}},
	} {
		path := filepath.Join(dir, fmt.Sprintf("layer%d.qcow2", i))
		must(t, CreateOverlay(path, c.size, below, format))
		qemuIO(t, path, c.writes...)
		layers, below, format = append(layers, path), filepath.Base(path), "qcow2"
	}
	return layers, base
}

// Three layers become one with the same content, whatever the layers' headers say about their backing files.
func TestMerge(t *testing.T) {
	dir := t.TempDir()
	layers, base := makeLayers(t, dir)
	before := map[string][]byte{}
	for _, path := range append(layers, base) {
		data, err := os.ReadFile(path)
		must(t, err)
		before[path] = data
	}
	reference := filepath.Join(dir, "reference.raw")
	run(t, "qemu-img", "convert", "-O", "raw", layers[2], reference)
	// The headers lie: to what they name there is other content.
	moved := filepath.Join(dir, "moved")
	must(t, os.Mkdir(moved, 0o700))
	var paths []string
	for i, path := range layers {
		paths = append(paths, filepath.Join(moved, fmt.Sprintf("m%d.qcow2", i)))
		must(t, os.WriteFile(paths[i], before[path], 0o600))
		must(t, os.WriteFile(filepath.Join(moved, filepath.Base(path)), before[layers[0]], 0o600))
	}
	must(t, os.WriteFile(filepath.Join(moved, "base.raw"), make([]byte, 4<<20), 0o600))

	merged := filepath.Join(dir, "out", "merged.qcow2")
	must(t, os.Mkdir(filepath.Dir(merged), 0o700))
	must(t, Merge(context.Background(), merged, paths, base, "raw"))
	run(t, "qemu-img", "check", merged)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", reference, merged)
	for path, data := range before {
		if now, _ := os.ReadFile(path); !bytes.Equal(now, data) {
			t.Errorf("%s was changed", path)
		}
	}
	info, err := Stat(merged)
	must(t, err)
	if info.Backing != "../base.raw" || info.BackingFormat != "raw" || info.VirtualSize != 8<<20 {
		t.Errorf("%+v", info)
	}
	// 1.6 MiB differ from the base, of which 0.5 MiB are zeroes now.
	if info.AllocatedBytes > 1800<<10 {
		t.Errorf("the merged layer takes %d bytes: not sparse", info.AllocatedBytes)
	}
	if err := Merge(context.Background(), merged, paths, base, "raw"); !fault.Is(err, fault.Conflict) {
		t.Errorf("over an existing file: %v", err)
	}

	// The upper two over the lowest one as base.
	upper := filepath.Join(dir, "upper.qcow2")
	must(t, Merge(context.Background(), upper, layers[1:], layers[0], "qcow2"))
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", reference, upper)
	entries, err := filepath.Glob(filepath.Join(dir, "*", "*"+TempSuffix))
	if err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// A merge that cannot be finished leaves nothing.
func TestMergeFails(t *testing.T) {
	dir := t.TempDir()
	layers, base := makeLayers(t, dir)
	out := t.TempDir()
	dst := filepath.Join(out, "merged.qcow2")
	nothing := func(what string, err error, part string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), dst) || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v", what, err)
		}
		if entries, _ := os.ReadDir(out); len(entries) > 0 {
			t.Errorf("%s: left %v", what, entries)
		}
	}
	ctx := context.Background()
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	nothing("cancelled", Merge(cancelled, dst, layers, base, "raw"), "canceled")
	nothing("no layers", Merge(ctx, dst, nil, base, "raw"), "none")
	nothing("no such layer", Merge(ctx, dst, []string{dir + "/no"}, base, "raw"), dir+"/no")
	nothing("raw layer", Merge(ctx, dst, []string{base}, base, "raw"), "not qcow2")
	nothing("no such base", Merge(ctx, dst, layers, dir+"/no", "raw"), dir+"/no")

	// Cancelled while qemu-img is at work: it waits for somebody to write to the base, which is a pipe.
	pipe := filepath.Join(dir, "pipe")
	must(t, unix.Mkfifo(pipe, 0o600))
	running, stop := context.WithCancel(ctx)
	go func() {
		for running.Err() == nil {
			if _, err := os.Stat(dst + TempSuffix); err == nil {
				stop()
			}
		}
	}()
	nothing("cancelled at work", Merge(running, dst, layers, pipe, "raw"), "canceled")
	stop()

	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	small := t.TempDir()
	run(t, "mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", small)
	defer run(t, "umount", small)
	out, dst = small, filepath.Join(small, "merged.qcow2")
	err := Merge(ctx, dst, layers, base, "raw")
	if !fault.Is(err, fault.Exhausted) {
		t.Errorf("full disk: %v", err)
	}
	nothing("full disk", err, "disk is full")
	must(t, os.WriteFile(filepath.Join(small, "fill"), nil, 0o600))
	_ = os.WriteFile(filepath.Join(small, "fill"), make([]byte, 600<<10), 0o600)
	if err := CreateOverlay(dst, 1<<30, "b", "raw"); !fault.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), dst) {
		t.Errorf("overlay on a full disk: %v", err)
	}
	if _, err := os.Stat(dst); err == nil {
		t.Error("an overlay was left on a full disk")
	}
}

func TestStat(t *testing.T) {
	dir := t.TempDir()
	raw := filepath.Join(dir, "raw")
	must(t, os.WriteFile(raw, nil, 0o600))
	must(t, os.Truncate(raw, 1<<30))
	if info, err := Stat(raw); err != nil || info != (Info{Format: "raw", VirtualSize: 1 << 30}) {
		t.Errorf("%+v, %v", info, err)
	}
	if n, err := Allocated(raw); err != nil || n != 0 {
		t.Errorf("%d, %v", n, err)
	}
	must(t, Sync(raw))
	for _, missing := range []error{Sync(dir + "/no"), func() error { _, err := Stat(dir + "/no"); return err }(), func() error { _, err := Allocated(dir + "/no"); return err }()} {
		if !errors.Is(missing, os.ErrNotExist) {
			t.Errorf("no file: %v", missing)
		}
	}
	// Written by QEMU, in both versions.
	for _, compat := range []string{"0.10", "1.1"} {
		path := filepath.Join(dir, "q"+compat)
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat="+compat, "-b", raw, "-F", "raw", path, "5M")
		info, err := Stat(path)
		want := Info{Format: "qcow2", VirtualSize: 5 << 20, Backing: raw, BackingFormat: "raw", AllocatedBytes: info.AllocatedBytes}
		if err != nil || info != want {
			t.Errorf("%s: %+v, %v", compat, info, err)
		}
	}
	alone := filepath.Join(dir, "alone")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", alone, "5M")
	if info, err := Stat(alone); err != nil || info.Backing != "" || info.VirtualSize != 5<<20 {
		t.Errorf("%+v, %v", info, err)
	}
	// Damaged or dangerous headers.
	good, err := os.ReadFile(filepath.Join(dir, "q1.1"))
	must(t, err)
	be := binary.BigEndian
	for what, damage := range map[string]func(b []byte) []byte{
		"cut off":              func(b []byte) []byte { return b[:50] },
		"version":              func(b []byte) []byte { be.PutUint32(b[4:], 4); return b },
		"negative size":        func(b []byte) []byte { b[24] = 0x80; return b },
		"name outside":         func(b []byte) []byte { be.PutUint64(b[8:], 1<<40); return b },
		"name at the edge":     func(b []byte) []byte { be.PutUint64(b[8:], 1<<64-1); return b },
		"long name":            func(b []byte) []byte { be.PutUint32(b[16:], 1024); return b },
		"short header":         func(b []byte) []byte { be.PutUint32(b[100:], 72); return b },
		"extension too long":   func(b []byte) []byte { be.PutUint32(b[be.Uint32(b[100:])+4:], 1<<31); return b },
		"data in another file": func(b []byte) []byte { b[79] |= incompatibleDataFile; return b },
		"marked corrupt":       func(b []byte) []byte { b[79] |= incompatibleCorrupt; return b },
	} {
		path := filepath.Join(dir, "bad")
		must(t, os.WriteFile(path, damage(bytes.Clone(good)), 0o600))
		if info, err := Stat(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %+v, %v", what, info, err)
		}
	}
}

func FuzzParseHeader(f *testing.F) {
	image, err := emptyOverlay(1<<30, "base.raw", "raw")
	must(f, err)
	f.Add(image.clusters[0])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > clusterSize {
			return
		}
		info, err := parseHeader(data)
		if err == nil && (len(info.Backing) > maxBackingName || info.VirtualSize < 0) {
			t.Errorf("%+v", info)
		}
	})
}

func BenchmarkCreateOverlay(b *testing.B) {
	dir := b.TempDir()
	for i := range b.N {
		must(b, CreateOverlay(fmt.Sprint(dir, "/", i), 1<<30, "base.raw", "raw"))
	}
}
