package image_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vers/internal/fault"
	"vers/internal/image"
	"vers/internal/image/imagetest"
)

// cpioEntry is what a reader sees of an archive.
type cpioEntry struct {
	Name string
	Mode uint64
	Size int
	Dev  string
}

// readCpio reads a newc archive by the book (cpio(5)), strictly.
func readCpio(t *testing.T, data []byte) (entries []cpioEntry, content map[string][]byte) {
	t.Helper()
	content = map[string][]byte{}
	for pos := 0; ; {
		if len(data)-pos < 110 || string(data[pos:pos+6]) != "070701" {
			t.Fatalf("no header at %d", pos)
		}
		field := func(i int) int {
			n, err := strconv.ParseUint(string(data[pos+6+8*i:pos+14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
		mode, size, nameLen := field(1), field(6), field(11)
		dev := fmt.Sprintf("%d:%d", field(9), field(10))
		name := data[pos+110 : pos+110+nameLen]
		if name[len(name)-1] != 0 {
			t.Fatalf("name %q has no end", name)
		}
		pos = (pos + 110 + nameLen + 3) / 4 * 4
		if string(name[:len(name)-1]) == "TRAILER!!!" {
			return entries, content
		}
		content[string(name[:len(name)-1])] = data[pos : pos+size]
		pos = (pos + size + 3) / 4 * 4
		entries = append(entries, cpioEntry{string(name[:len(name)-1]), uint64(mode), size, dev})
	}
}

func TestCpio(t *testing.T) {
	var out bytes.Buffer
	w := image.NewCpioWriter(&out)
	w.Dir("dev", 0o755)
	w.Char("dev/console", 0o600, 5, 1)
	w.File("odd", 0o644, []byte("seven b"))
	w.File("empty", 0o600, nil)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got, content := readCpio(t, out.Bytes())
	want := []cpioEntry{{"dev", 0o040755, 0, "0:0"}, {"dev/console", 0o020600, 0, "5:1"}, {"odd", 0o100644, 7, "0:0"}, {"empty", 0o100600, 0, "0:0"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if string(content["odd"]) != "seven b" {
		t.Errorf("content is %q", content["odd"])
	}
}

func TestCpioReportsMissingFile(t *testing.T) {
	w := image.NewCpioWriter(io.Discard)
	w.Copy("init", 0o755, filepath.Join(t.TempDir(), "absent"))
	if err := w.Close(); err == nil {
		t.Error("a file that is not there was archived")
	}
}

func TestInitrd(t *testing.T) {
	kernel, _ := imagetest.Open(t)
	data, agent := t.TempDir(), filepath.Join(t.TempDir(), "vers-agent")
	if err := os.WriteFile(agent, []byte("#!agent one\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	first, digest, err := image.Initrd(t.Context(), data, kernel, agent)
	if err != nil {
		t.Fatal(err)
	}
	packed, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	if sum, err := image.DigestFile(first); err != nil || sum != digest {
		t.Errorf("digest is %s, of the file %s (%v)", digest, sum, err)
	}
	plain, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	unpacked, err := io.ReadAll(plain)
	if err != nil {
		t.Fatal(err)
	}
	entries, content := readCpio(t, unpacked)
	if string(content["init"]) != "#!agent one\n" {
		t.Errorf("/init is %q", content["init"])
	}
	at := map[string]int{}
	for i, e := range entries {
		at[e.Name] = i + 1
		if dir := filepath.Dir(e.Name); dir != "." && at[dir] == 0 {
			t.Errorf("%s comes before its directory", e.Name)
		}
	}
	for _, name := range []string{"proc", "sys", "dev", "run", "newroot", "dev/console"} {
		if at[name] == 0 {
			t.Errorf("%s is missing", name)
		}
	}
	// Every module is listed after those it needs.
	loaded := map[string]bool{}
	for _, path := range strings.Fields(string(content["lib/modules/order"])) {
		name := strings.TrimPrefix(path, "/")
		if at[name] == 0 {
			t.Errorf("%s is listed but not there", path)
		}
		deps, err := image.ModuleDepends(filepath.Join(kernel.ModulesDir, strings.TrimPrefix(name, "lib/modules/")))
		if err != nil {
			t.Fatal(err)
		}
		for _, dep := range deps {
			if !loaded[image.ModuleName(dep)] {
				t.Errorf("%s is listed before %s, which it needs", name, dep)
			}
		}
		loaded[image.ModuleName(name)] = true
	}
	for _, name := range []string{"virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "virtio_console", "overlay", "fuse"} {
		if !loaded[name] {
			t.Errorf("module %s is missing", name)
		}
	}

	// Elsewhere the same bytes; here the cached file; another agent, another file.
	again, _, err := image.Initrd(t.Context(), t.TempDir(), kernel, agent)
	if err != nil {
		t.Fatal(err)
	}
	if other, err := os.ReadFile(again); err != nil || !bytes.Equal(other, packed) {
		t.Errorf("composed twice, the archives differ (%v)", err)
	}
	before, err := os.Stat(first)
	if err != nil {
		t.Fatal(err)
	}
	if cached, _, err := image.Initrd(t.Context(), data, kernel, agent); err != nil || cached != first {
		t.Errorf("not cached: %s, %v", cached, err)
	}
	if after, err := os.Stat(first); err != nil || !os.SameFile(before, after) {
		t.Errorf("the cached file was written again (%v)", err)
	}
	if err := os.WriteFile(agent, []byte("#!agent two\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if changed, _, err := image.Initrd(t.Context(), data, kernel, agent); err != nil || changed == first {
		t.Errorf("another agent gave the same archive: %s, %v", changed, err)
	}
}

func TestInitrdWithoutAgent(t *testing.T) {
	_, _, err := image.Initrd(t.Context(), t.TempDir(), image.Kernel{}, filepath.Join(t.TempDir(), "vers-agent"))
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "vers-agent") {
		t.Errorf("got %v", err)
	}
}
