// Package config reads vers.toml, which describes how a VM is made (spec/cli.md 5), and the server's own file.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"vers/internal/egress"
	"vers/internal/fault"
)

// ProjectFile is the name of the file in a project's folder.
const ProjectFile = "vers.toml"

// Project is the content of vers.toml with the built-in values in place of what the file leaves out.
type Project struct {
	Machine Machine
	RootFS  RootFS
	Kernel  Kernel
	Builder Builder

	Egress   *egress.Policy // the table [egress]: what the VM may reach; nil: the file does not say
	Internal bool           // network.internal: VMs of the organisation reach it, and it them

	// FSSizeGiven: the file says Machine.FSSizeMiB. Else the disk may be as large as the image needs.
	FSSizeGiven bool

	// File is the path the values came from; empty when there was none and all values are built in.
	File string
	// Warnings are complaints that do not stop anything, one line each: unknown and obsolete keys.
	Warnings []string
}

// Machine is the table [machine]. Sizes in MiB. Values are not checked here, since flags may replace them.
type Machine struct {
	MemSizeMiB int64
	VCPUCount  int64
	FSSizeMiB  int64
}

// RootFS is the table [rootfs].
type RootFS struct{ Name string }

// Kernel is the table [kernel].
type Kernel struct{ Name string }

// Builder is the table [builder].
type Builder struct {
	Name       string // "docker" or "none"
	Dockerfile string // relative to the project
}

// DefaultProject holds the built-in values.
func DefaultProject() Project {
	return Project{
		Machine: Machine{MemSizeMiB: 512, VCPUCount: 1, FSSizeMiB: 1024},
		RootFS:  RootFS{Name: "default"},
		Kernel:  Kernel{Name: "default.bin"},
		Builder: Builder{Name: "docker", Dockerfile: "Dockerfile"},
	}
}

// file mirrors vers.toml. Pointers tell a key that is absent from one that is zero: zero is a mistake to report.
type file struct {
	Machine struct {
		MemSizeMiB       *int64 `toml:"mem_size_mib"`
		VCPUCount        *int64 `toml:"vcpu_count"`
		FSSizeVMMiB      *int64 `toml:"fs_size_vm_mib"`
		FSSizeMiB        *int64 `toml:"fs_size_mib"`
		FSSizeClusterMiB *int64 `toml:"fs_size_cluster_mib"`
	} `toml:"machine"`
	RootFS struct {
		Name *string `toml:"name"`
	} `toml:"rootfs"`
	Kernel struct {
		Name *string `toml:"name"`
	} `toml:"kernel"`
	Builder struct {
		Name       *string `toml:"name"`
		Dockerfile *string `toml:"dockerfile"`
	} `toml:"builder"`
	Egress  *Egress `toml:"egress"`
	Network struct {
		Internal *bool `toml:"internal"`
	} `toml:"network"`
}

// LoadProject finds and reads the project's file: explicit if it is not empty, else vers.toml in dir, else
// ~/.vers/vers.toml below home (skipped when home is empty), else the built-in values. Parent folders are not searched.
//
// A file that cannot be read or parsed is fault.Invalid, with the file, line, column and reason in the message: a VM
// of the wrong size would be worse than none (spec/cli.md, ruling C12).
func LoadProject(dir, home, explicit string) (Project, error) {
	if explicit != "" {
		path := explicit
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return Project{}, fault.Invalidf("cannot read the configuration file %s: %w", explicit, reason(err))
		}
		return ParseProject(explicit, data)
	}
	candidates := []struct{ path, shown string }{{filepath.Join(dir, ProjectFile), ProjectFile}}
	if home != "" {
		path := filepath.Join(home, ".vers", ProjectFile)
		candidates = append(candidates, struct{ path, shown string }{path, path})
	}
	for _, c := range candidates {
		data, err := os.ReadFile(c.path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return Project{}, fault.Invalidf("cannot read %s: %w; fix its permissions or remove it", c.shown, reason(err))
		}
		return ParseProject(c.shown, data)
	}
	return DefaultProject(), nil
}

// reason drops the path from a file system error, because the message has it already.
func reason(err error) error {
	var pathError *os.PathError
	if errors.As(err, &pathError) {
		return pathError.Err
	}
	return err
}

// ParseProject reads data, the content of the file called name in messages.
func ParseProject(name string, data []byte) (Project, error) {
	p := DefaultProject()
	p.File = name
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // written by some editors
	var f file
	if err := toml.Unmarshal(data, &f); err != nil {
		return Project{}, positioned(name, err)
	}
	p.Warnings = unknownKeys(name, data)

	set(&p.Machine.MemSizeMiB, f.Machine.MemSizeMiB)
	set(&p.Machine.VCPUCount, f.Machine.VCPUCount)
	set(&p.Machine.FSSizeMiB, f.Machine.FSSizeMiB)
	set(&p.Machine.FSSizeMiB, f.Machine.FSSizeVMMiB)
	p.FSSizeGiven = f.Machine.FSSizeMiB != nil || f.Machine.FSSizeVMMiB != nil
	set(&p.RootFS.Name, f.RootFS.Name)
	set(&p.Kernel.Name, f.Kernel.Name)
	set(&p.Builder.Name, f.Builder.Name)
	set(&p.Builder.Dockerfile, f.Builder.Dockerfile)
	set(&p.Internal, f.Network.Internal)
	if f.Egress != nil {
		policy, err := f.Egress.own()
		if err != nil {
			return Project{}, fault.Invalidf("error parsing %s: [egress]: %w", name, err)
		}
		p.Egress = &policy
	}

	if f.Machine.FSSizeMiB != nil && f.Machine.FSSizeVMMiB != nil && *f.Machine.FSSizeMiB != *f.Machine.FSSizeVMMiB {
		p.Warnings = append(p.Warnings, fmt.Sprintf(
			"%s: machine.fs_size_mib (%d) is ignored because machine.fs_size_vm_mib (%d) is set too",
			name, *f.Machine.FSSizeMiB, *f.Machine.FSSizeVMMiB))
	}
	if f.Machine.FSSizeClusterMiB != nil {
		p.Warnings = append(p.Warnings, name+": machine.fs_size_cluster_mib is obsolete and ignored; use fs_size_vm_mib")
	}
	return p, nil
}

func set[T any](dst *T, value *T) {
	if value != nil {
		*dst = *value
	}
}

// positioned turns an error of the TOML library into one line with file, line, column and reason.
func positioned(name string, err error) error {
	var decode *toml.DecodeError
	if !errors.As(err, &decode) {
		return fault.Invalidf("error parsing %s: %w", name, err)
	}
	line, column := decode.Position()
	text := strings.TrimPrefix(decode.Error(), "toml: ")
	if key := strings.Join(decode.Key(), "."); key != "" && !strings.Contains(text, key) {
		text = key + ": " + text
	}
	return fault.Invalidf("error parsing %s: line %d, column %d: %s", name, line, column, text)
}

// unknownKeys decodes once more, strictly, only to name the keys that mean nothing to us. Old files carry whole
// tables of them.
func unknownKeys(name string, data []byte) []string {
	decoder := toml.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	var missing *toml.StrictMissingError
	if !errors.As(decoder.Decode(&file{}), &missing) {
		return nil
	}
	var warnings []string
	seen := map[string]bool{}
	for _, e := range missing.Errors {
		key := strings.Join(e.Key(), ".")
		if seen[key] {
			continue
		}
		seen[key] = true
		line, _ := e.Position()
		warnings = append(warnings, fmt.Sprintf("%s: line %d: unknown key %q is ignored", name, line, key))
	}
	return warnings
}
