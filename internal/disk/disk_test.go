package disk

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func qemuImg(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// QEMU's own tools must find nothing wrong with what we write.
func TestCreateOverlay(t *testing.T) {
	for _, size := range []int64{512, 1 << 20, 1<<30 + 512, 64 << 30, 2 << 40} {
		dir := t.TempDir()
		base := filepath.Join(dir, "base.raw")
		if err := os.WriteFile(base, make([]byte, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "top.qcow2")
		if err := CreateOverlay(path, size, "base.raw", "raw"); err != nil {
			t.Fatal(err)
		}
		qemuImg(t, "check", path)
		info, err := Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		want := Info{Format: "qcow2", VirtualSize: size, Backing: "base.raw", BackingFormat: "raw", AllocatedBytes: info.AllocatedBytes}
		if info != want {
			t.Errorf("size %d: %+v, want %+v", size, info, want)
		}
		if err := CreateOverlay(path, size, "base.raw", "raw"); err == nil {
			t.Error("an existing file was overwritten")
		}
		// QEMU can write to it and what it says is still in order.
		exec.Command("qemu-io", "-c", "write -P 7 0 512", path).Run()
		qemuImg(t, "check", path)
	}
	for _, size := range []int64{0, -1, 513, 1 << 62} {
		if err := CreateOverlay(filepath.Join(t.TempDir(), "x"), size, "b", "raw"); err == nil {
			t.Errorf("size %d was accepted", size)
		}
	}
}

// Three layers become one; every byte is what the chain shows. The headers name backing files that do not exist.
func TestMerge(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base.raw")
	if err := os.WriteFile(base, []byte(strings.Repeat("base", 1<<18)), 0o600); err != nil {
		t.Fatal(err)
	}
	var layers []string
	below := "base.raw"
	for i, name := range []string{"one", "two", "three"} {
		path := filepath.Join(dir, name+".qcow2")
		format := "qcow2"
		if i == 0 {
			format = "raw"
		}
		if err := CreateOverlay(path, 4<<20, below, format); err != nil {
			t.Fatal(err)
		}
		run := exec.Command("qemu-io", "-f", "qcow2", "-c", "write -P "+string(rune('1'+i))+" "+[]string{"0", "64k", "2M"}[i]+" 96k", path)
		if out, err := run.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		layers, below = append(layers, path), name+".qcow2"
	}
	merged := filepath.Join(dir, "merged.qcow2")
	if err := Merge(context.Background(), merged, layers, base, "raw"); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, "check", merged)
	qemuImg(t, "compare", merged, layers[2])
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Merge(ctx, merged+".2", layers, base, "raw"); err == nil {
		t.Error("a cancelled merge succeeded")
	}
	if _, err := os.Stat(merged + ".2"); err == nil {
		t.Error("a cancelled merge left its file")
	}
}

func FuzzParseHeader(f *testing.F) {
	image, err := emptyOverlay(1<<30, "base.raw", "raw")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(image[:256])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > clusterSize {
			return
		}
		info, err := parseHeader(data)
		if err == nil && len(info.Backing) > 1023 {
			t.Errorf("backing name of %d bytes", len(info.Backing))
		}
	})
}
