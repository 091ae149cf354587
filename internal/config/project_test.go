package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vers/internal/fault"
)

func TestParseProject(t *testing.T) {
	full := `
[machine]
mem_size_mib = 2048           # VM memory allocation in MiB
vcpu_count = 4
fs_size_vm_mib = 4096

[rootfs]
name = "custom"

[kernel]
name = "other.bin"

[builder]
name = "none"
dockerfile = "docker/Dockerfile"
`
	all := Project{
		Machine: Machine{2048, 4, 4096}, RootFS: RootFS{"custom"}, Kernel: Kernel{"other.bin"},
		Builder: Builder{"none", "docker/Dockerfile"}, FSSizeGiven: true, File: "vers.toml",
	}
	with := func(change func(*Project)) Project {
		p := DefaultProject()
		p.File = "vers.toml"
		change(&p)
		return p
	}
	tests := []struct {
		name, text string
		want       Project
	}{
		{"empty", "", with(func(*Project) {})},
		{"full", full, all},
		{"byte order mark", "\xef\xbb\xbf" + full, all},
		{"subset", "[machine]\nvcpu_count = 2\n", with(func(p *Project) { p.Machine.VCPUCount = 2 })},
		{"zero is kept", "[machine]\nmem_size_mib = 0\n", with(func(p *Project) { p.Machine.MemSizeMiB = 0 })},
		{"second disk name", "[machine]\nfs_size_mib = 99\n", with(func(p *Project) { p.Machine.FSSizeMiB, p.FSSizeGiven = 99, true })},
		{"both disk names", "[machine]\nfs_size_mib = 99\nfs_size_vm_mib = 98\n", with(func(p *Project) {
			p.Machine.FSSizeMiB, p.FSSizeGiven = 98, true
			p.Warnings = []string{"vers.toml: machine.fs_size_mib (99) is ignored because machine.fs_size_vm_mib (98) is set too"}
		})},
		{"cluster size", "[machine]\nfs_size_cluster_mib = 99\n", with(func(p *Project) {
			p.Warnings = []string{"vers.toml: machine.fs_size_cluster_mib is obsolete and ignored; use fs_size_vm_mib"}
		})},
		{"unknown", "[meta]\nname = \"x\"\n[machine]\nmem_sizemib = 3\n", with(func(p *Project) {
			p.Warnings = []string{
				`vers.toml: line 1: unknown key "meta" is ignored`,
				`vers.toml: line 4: unknown key "machine.mem_sizemib" is ignored`,
			}
		})},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParseProject("vers.toml", []byte(test.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseProjectErrors(t *testing.T) {
	tests := []struct{ name, text, position string }{
		{"syntax", "[machine]\nmem_size_mib = \n", "line 2, column 16"},
		{"open table", "[machine\nmem_size_mib = 1\n", "line 1"},
		{"type", "[machine]\nmem_size_mib = \"512\"\n", "line 2, column 16"},
		{"float", "[machine]\nvcpu_count = 1.5\n", "line 2"},
		{"too large", "[machine]\nvcpu_count = 99999999999999999999\n", "line 2"},
		{"table as value", "machine = 3\n", "line 1"},
		{"twice", "[rootfs]\nname = \"a\"\nname = \"b\"\n", "vers.toml"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := ParseProject("vers.toml", []byte(test.text))
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("got %v, want an invalid fault", err)
			}
			for _, part := range []string{"error parsing vers.toml", test.position} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not contain %q", err, part)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
		})
	}
}

func TestLoadProject(t *testing.T) {
	dir, home := t.TempDir(), t.TempDir()
	load := func(explicit string) Project {
		t.Helper()
		p, err := LoadProject(dir, home, explicit)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if p := load(""); p.File != "" || p.Machine.MemSizeMiB != 512 {
		t.Errorf("without files: %+v", p)
	}
	write(filepath.Join(home, ".vers", "vers.toml"), "[machine]\nmem_size_mib = 700\n")
	if p := load(""); p.Machine.MemSizeMiB != 700 {
		t.Errorf("user-wide file: %+v", p)
	}
	write(filepath.Join(dir, "vers.toml"), "[machine]\nmem_size_mib = 800\n")
	if p := load(""); p.Machine.MemSizeMiB != 800 || p.File != "vers.toml" {
		t.Errorf("own file: %+v", p)
	}
	write(filepath.Join(dir, "vers-dev.toml"), "[machine]\nmem_size_mib = 900\n")
	if p := load("vers-dev.toml"); p.Machine.MemSizeMiB != 900 {
		t.Errorf("named file: %+v", p)
	}
	if _, err := LoadProject(dir, home, "gone.toml"); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "gone.toml") {
		t.Errorf("named file that does not exist: %v", err)
	}
	if _, err := LoadProject(dir, home, "."); !fault.Is(err, fault.Invalid) {
		t.Errorf("folder instead of a file: %v", err)
	}
}

func FuzzParseProject(f *testing.F) {
	f.Add([]byte("[machine]\nmem_size_mib = 512\n[other]\na.b = [1,{c=2}]\n"))
	f.Add([]byte("[machine"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, err := ParseProject("vers.toml", data)
		if err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("not an invalid fault: %v", err)
		}
	})
}

func TestProjectNetwork(t *testing.T) {
	for _, tt := range []struct {
		name, text, want, fails string
		internal                bool
	}{
		{name: "nothing said", text: "[machine]\n"},
		{name: "allow alone", text: "[egress]\nallow = [\"example.org:443\", \"10.0.0.1\"]\n", want: "none,allow=example.org:443,10.0.0.1"},
		{name: "all", text: "[egress]\nmode = \"internet\"\ndeny = [\"192.0.2.7\"]\nbandwidth = \"1MiB\"\nconnections = 9\n[network]\ninternal = true\n",
			want: "internet,deny=192.0.2.7,bandwidth=1MiB,connections=9", internal: true},
		{name: "no mode", text: "[egress]\nmode = \"open\"\n", fails: "is unknown"},
		{name: "no bandwidth", text: "[egress]\nbandwidth = \"much\"\n", fails: "bytes per second"},
		{name: "no connections", text: "[egress]\nconnections = -1\n", fails: "connections"},
	} {
		p, err := ParseProject("vers.toml", []byte(tt.text))
		switch {
		case tt.fails != "":
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tt.fails) || !strings.Contains(err.Error(), "vers.toml") {
				t.Errorf("%s: %v, want a failure with %q", tt.name, err, tt.fails)
			}
		case err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case p.Internal != tt.internal || (p.Egress == nil) != (tt.want == "") || p.Egress != nil && p.Egress.String() != tt.want:
			t.Errorf("%s: %v, internal %v", tt.name, p.Egress, p.Internal)
		}
	}
}
