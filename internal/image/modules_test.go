package image

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vers/internal/fault"
)

// fakeTree makes module files and gives a function that knows their dependencies.
func fakeTree(t *testing.T, deps map[string][]string, builtin string) (*moduleTree, func(string) ([]string, error)) {
	t.Helper()
	dir := t.TempDir()
	for name := range deps {
		path := filepath.Join(dir, "kernel", name+".ko")
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte(builtin), 0o644); err != nil {
		t.Fatal(err)
	}
	tree, err := openModuleTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tree, func(path string) ([]string, error) {
		for name, list := range deps {
			if moduleName(name) == moduleName(path) {
				return list, nil
			}
		}
		return nil, fmt.Errorf("asked about %s", path)
	}
}

func TestLoadOrder(t *testing.T) {
	deps := map[string][]string{
		"net":        {"failover", "crc", "ring"},
		"failover":   {"ring"},
		"ring":       nil,
		"virtio-rng": {"ring"},
		"loop-a":     {"loop_b"},
		"loop-b":     {"loop_a"},
		"orphan":     {"nobody"},
	}
	for name, tt := range map[string]struct {
		wanted []string
		want   []string
		kind   fault.Kind
	}{
		"dependencies first, each once": {[]string{"net", "virtio_rng"}, []string{"kernel/ring.ko", "kernel/failover.ko", "kernel/net.ko", "kernel/virtio-rng.ko"}, 0},
		"built in":                      {[]string{"crc"}, nil, 0},
		"circle":                        {[]string{"loop_a"}, nil, fault.Invalid},
		"missing dependency":            {[]string{"orphan"}, nil, fault.NotFound},
		"unknown":                       {[]string{"absent"}, nil, fault.NotFound},
		"optional":                      {[]string{"absent?", "virtio-rng?", "crc?"}, []string{"kernel/ring.ko", "kernel/virtio-rng.ko"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			tree, depends := fakeTree(t, deps, "kernel/lib/crc.ko\n")
			var wanted []wantedModule
			for _, name := range tt.wanted {
				name, optional := strings.CutSuffix(name, "?")
				wanted = append(wanted, wantedModule{name, optional})
			}
			got, err := tree.loadOrder(wanted, depends)
			if fault.KindOf(err) != tt.kind || (err != nil) != (tt.kind != 0) {
				t.Fatalf("error %v", err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseDepends(t *testing.T) {
	for _, tt := range []struct {
		modinfo string
		want    []string
	}{
		{"license=GPL\x00depends=virtio_ring,virtio\x00name=x\x00", []string{"virtio", "virtio_ring"}},
		{"depends=\x00", nil},
		{"", nil},
		{"xdepends=a\x00depends=b", []string{"b"}},
	} {
		if diff := cmp.Diff(tt.want, parseDepends([]byte(tt.modinfo))); diff != "" {
			t.Errorf("%q: %s", tt.modinfo, diff)
		}
	}
}

func TestModuleDependsOfNoModule(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bad.ko")
	if err := os.WriteFile(path, []byte("\x7fELF not really"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := moduleDepends(path); err == nil {
		t.Error("accepted")
	}
}
