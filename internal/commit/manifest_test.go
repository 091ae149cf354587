package commit_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/fault"
	"vers/internal/memory"
)

func sampleManifest() commit.Manifest {
	return commit.Manifest{
		Version: 1, CommitID: "0b9f1c52-7a6e-4d0c-8f11-2233445566aa", CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
		Hardware: commit.Hardware{Accelerator: "kvm", CPU: "host", MachineType: "pc-q35-7.2", MemoryBytes: 512 << 20, VCPUs: 2, Devices: "v1"},
		Kernel:   commit.FileDigest{Name: "vmlinuz"}, Initrd: commit.FileDigest{Name: "initrd", Size: 3, BLAKE3: "aa"},
		Cmdline: "quiet", Config: json.RawMessage(`{"vcpu_count":2}`), DiskBytes: 1 << 30,
		DeviceState: commit.FileDigest{Name: "device.state", Size: 9, BLAKE3: "bb"},
		Memory:      memory.DeltaInfo{Version: 1, RAMBytes: 512 << 20, Runs: 1, DataPages: 2, FileBytes: 4096, BLAKE3: "cc"},
		MemoryBase:  "1b9f1c52-7a6e-4d0c-8f11-2233445566aa",
	}
}

// Manifests written today are read by later versions: the format does not change by accident.
func TestManifest(t *testing.T) {
	t.Parallel()
	written, err := json.Marshal(sampleManifest())
	if err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile(filepath.Join("testdata", "manifest-v1.json"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(string(golden)) != string(written) {
		t.Errorf("the manifest is %s, it was %s", written, golden)
	}
	store := &commit.Store{}
	if m, err := store.Manifest(catalog.Commit{Manifest: golden}); err != nil || !reflect.DeepEqual(m, sampleManifest()) {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestParseManifest(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		change func(m *commit.Manifest)
		says   string
		kind   fault.Kind
	}{
		"no version":      {func(m *commit.Manifest) { m.Version = 0 }, "manifest version 0", fault.Unavailable},
		"later version":   {func(m *commit.Manifest) { m.Version = 2 }, "upgrade versd", fault.Unavailable},
		"no memory":       {func(m *commit.Manifest) { m.Hardware.MemoryBytes = 0 }, "memory size 0", fault.Internal},
		"negative memory": {func(m *commit.Manifest) { m.Hardware.MemoryBytes = -1 << 20 }, "memory size -1048576", fault.Internal},
		"part of a MiB":   {func(m *commit.Manifest) { m.Hardware.MemoryBytes++ }, "not a whole number of MiB", fault.Internal},
	} {
		m := sampleManifest()
		c.change(&m)
		data, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := commit.ParseManifest(data); !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), m.CommitID) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, data := range []string{"", "{", "[]", `"x"`, `{"version":"1"}`, `{"version":1}{}`, `{"version":1e99}`} {
		if _, err := commit.ParseManifest([]byte(data)); err == nil {
			t.Errorf("%q is a manifest", data)
		}
	}
}

// Whatever the bytes: an error, or a manifest that this program understands and that is the same when it is written again.
func FuzzParseManifest(f *testing.F) {
	good, err := json.Marshal(sampleManifest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := commit.ParseManifest(data)
		if err != nil {
			return
		}
		if m.Version != commit.ManifestVersion || m.Hardware.MemoryBytes < 1<<20 || m.Hardware.MemoryBytes%(1<<20) != 0 {
			t.Fatalf("%+v", m)
		}
		written, err := json.Marshal(m)
		if err != nil {
			if m.CreatedAt.Year() > 9999 || m.CreatedAt.Year() < 0 {
				return
			}
			t.Fatal(err)
		}
		again, err := commit.ParseManifest(written)
		if err != nil {
			t.Fatal(err)
		}
		rewritten, err := json.Marshal(again)
		if err != nil || string(rewritten) != string(written) {
			t.Fatalf("%s, %s, %v", written, rewritten, err)
		}
	})
}
