// Package commit is the commit store: what a commit consists of on disk, how it becomes durable, how its memory is
// made ready for a restore, and who may delete what.
//
// A commit is three things (docs/formats.md):
//
//	commits/<id>/manifest.json   what it was taken of and what is needed to load it
//	commits/<id>/device.state    CPU and devices, as QEMU wrote them
//	commits/<id>/memory.delta    pages that differ from its memory base (another commit, or zeroes)
//	layers/…                     its disk: a chain of qcow2 files over an image
//
// and one that can always be made again:
//
//	flats/<id>.ram               the whole memory as one sparse file, mapped by every VM restored from it
//
// Nothing that a commit names is ever written to again.
package commit

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"vers/internal/fault"
	"vers/internal/memory"
)

// ManifestVersion is the version of the manifest's format. A manifest with a higher one is refused.
const ManifestVersion = 1

// Manifest describes a commit. It is stored with the commit's files and, the same bytes, in the catalogue.
type Manifest struct {
	Version     int              `json:"version"`
	CommitID    string           `json:"commit_id"`
	CreatedAt   time.Time        `json:"created_at"`
	Hardware    Hardware         `json:"hardware"`
	QEMUVersion string           `json:"qemu_version"` // that wrote the device state; informative
	Kernel      FileDigest       `json:"kernel"`
	Initrd      FileDigest       `json:"initrd"`
	Cmdline     string           `json:"cmdline"`
	Config      json.RawMessage  `json:"config"` // catalog.VMConfig
	DiskBytes   int64            `json:"disk_bytes"`
	DeviceState FileDigest       `json:"device_state"`
	Memory      memory.DeltaInfo `json:"memory"`
	MemoryBase  string           `json:"memory_base,omitempty"` // commit the delta is relative to
}

// Hardware is the part of a machine that a device state depends on. A restore uses it as recorded, whatever today's
// defaults are.
type Hardware struct {
	Accelerator string `json:"accelerator"`  // "kvm" or "tcg"
	CPU         string `json:"cpu"`          // QEMU's CPU model
	MachineType string `json:"machine_type"` // versioned, for example pc-q35-7.2
	MemoryBytes int64  `json:"memory_bytes"` // guest RAM, a multiple of 1 MiB
	VCPUs       int    `json:"vcpus"`
	Devices     string `json:"devices"` // name of the device list, so that a later one can differ; "v1"
}

// FileDigest names a file and its BLAKE3 hash.
type FileDigest struct {
	Name   string `json:"name,omitempty"`
	Size   int64  `json:"size,omitempty"`
	BLAKE3 string `json:"blake3,omitempty"`
}

// ParseManifest reads a manifest and checks that this program understands it.
func ParseManifest(data []byte) (Manifest, error) {
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("read commit manifest: %w", err)
	}
	switch {
	case m.Version < 1 || m.Version > ManifestVersion:
		return m, fault.Unavailablef("commit %s has manifest version %d, this versd reads up to %d: upgrade versd", m.CommitID, m.Version, ManifestVersion)
	case m.Hardware.MemoryBytes <= 0 || m.Hardware.MemoryBytes%(1<<20) != 0:
		return m, fmt.Errorf("manifest of commit %s: memory size %d is not a whole number of MiB", m.CommitID, m.Hardware.MemoryBytes)
	}
	return m, nil
}

// writeFile writes a small file durably: contents, then name.
func writeFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", filepath.Base(path), err)
	}
	return nil
}
