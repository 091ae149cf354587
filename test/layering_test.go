package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// layers orders the parts (docs/architecture.md). A package may import those of a lower number, its own folder's, and
// what exceptions allow. Folders below one listed here belong to it.
var layers = map[string]int{
	"vers/internal/fault":   0,
	"vers/internal/ident":   0,
	"vers/images":           0,
	"vers/internal/mounts":  0,
	"vers/internal/partial": 0,
	"vers/internal/egress":  0,
	"vers/api":              0,

	"vers/internal/config":      1,
	"vers/internal/memory":      1,
	"vers/internal/disk":        1,
	"vers/internal/ext4":        1,
	"vers/internal/netstack":    1,
	"vers/internal/catalog":     1,
	"vers/internal/guest":       1,
	"vers/internal/audit":       1,
	"vers/internal/program":     1,
	"vers/internal/compression": 1,

	"vers/internal/commit": 2,
	"vers/internal/agent":  2,
	"vers/internal/rootfs": 2,

	"vers/internal/image": 3,

	"vers/internal/machine":  4,
	"vers/internal/registry": 4,

	"vers/internal/qemu": 5, // implements machine.Driver; who may use it is said in closed

	"vers/internal/deploy":  5,
	"vers/internal/gateway": 5,
	"vers/internal/build":   5, // buildfs and engine need no machine, and are in cmd/vers too

	"vers/internal/server": 6,
	"vers/internal/cli":    6,
	"vers/internal/doctor": 6,
	"vers/internal/bake":   6,

	"vers/internal/daemon": 7,

	"vers/cmd":   8,
	"vers/bench": 8,
	"vers/test":  8,
}

// closed lists what only a few may import.
var closed = map[string][]string{
	"vers/internal/qemu":   {"vers/internal/doctor", "vers/internal/daemon", "vers/cmd", "vers/bench"},
	"vers/internal/daemon": {"vers/cmd", "vers/bench"},
	"vers/internal/cli":    {"vers/cmd"},
	"vers/internal/agent":  {"vers/cmd", "vers/internal/machine/fake"},
}

// only lists, for the programs that must stay small, all parts that may be in them.
var only = map[string][]string{
	"vers/cmd/vers": {"vers/cmd/vers", "vers/internal/cli", "vers/internal/config", "vers/api", "vers/internal/fault", "vers/internal/ident",
		"vers/internal/build", "vers/internal/rootfs", "vers/internal/compression", "vers/internal/program", "vers/internal/ext4", "vers/internal/partial", "vers/internal/egress"},
	"vers/cmd/vers-agent": {"vers/cmd/vers-agent", "vers/internal/agent", "vers/internal/guest", "vers/internal/fault", "vers/internal/ident", "vers/internal/partial"},
}

// heavy must not be in them either, by whatever way.
var heavy = []string{"modernc.org/sqlite", "gvisor.dev/gvisor", "github.com/containers/gvisor-tap-vsock", "github.com/danielgtaylor/huma/v2"}

type goPackage struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,Deps", "vers/...").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var packages []goPackage
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

// part is the entry of layers that a package belongs to: the longest that begins its path.
func part(path string) string {
	for p := path; p != "vers"; p = p[:strings.LastIndexByte(p, '/')] {
		if _, ok := layers[p]; ok {
			return p
		}
	}
	return ""
}

func within(path string, parts []string) bool {
	for _, p := range parts {
		if path == p || strings.HasPrefix(path, p+"/") {
			return true
		}
	}
	return false
}

// badImport says why from may not import to, or "".
func badImport(from, to string) string {
	a, b := part(from), part(to)
	switch users, isClosed := closed[b]; {
	case a == "":
		return "has no place in layers: add its folder"
	case b == "":
		return "imports " + to + ", which has no place in layers"
	case a == b:
		return ""
	case layers[b] >= layers[a]:
		return "imports " + to + ", which is not below it"
	case isClosed && !within(from, users):
		return "imports " + to + ", which is for " + strings.Join(users, ", ")
	}
	return ""
}

// Imports go down only: a driver never imports what uses it, the domain knows neither HTTP's types nor QEMU.
func TestLayering(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, imported := range p.Imports {
			if !strings.HasPrefix(imported, "vers/") {
				continue
			}
			if why := badImport(p.ImportPath, imported); why != "" {
				t.Errorf("%s %s", p.ImportPath, why)
			}
		}
		allowed, small := only[p.ImportPath]
		if !small {
			continue
		}
		for _, dep := range p.Deps {
			if strings.HasPrefix(dep, "vers/") && !within(dep, allowed) {
				t.Errorf("%s contains %s, which belongs to the server", p.ImportPath, dep)
			}
			if within(dep, heavy) {
				t.Errorf("%s contains %s", p.ImportPath, dep)
			}
		}
	}
}

// The rules themselves: a wrong import must not pass.
func TestLayeringSeesWrongImports(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		allowed  bool
	}{
		{"vers/internal/machine", "vers/internal/memory", true},
		{"vers/internal/machine/fake", "vers/internal/machine", true},
		{"vers/internal/qemu", "vers/internal/machine", true},
		{"vers/internal/daemon", "vers/internal/qemu", true},
		{"vers/internal/memory", "vers/internal/machine", false},
		{"vers/internal/machine", "vers/internal/qemu", false},
		{"vers/internal/server", "vers/internal/qemu", false},
		{"vers/internal/machine", "vers/internal/registry", false},
		{"vers/internal/cli", "vers/internal/server", false},
		{"vers/internal/new", "vers/internal/fault", false},
	} {
		if why := badImport(tt.from, tt.to); (why == "") != tt.allowed {
			t.Errorf("%s imports %s: allowed %v, want %v (%s)", tt.from, tt.to, why == "", tt.allowed, why)
		}
	}
}
