// Package disk makes and reads the qcow2 layers that VM disks consist of.
package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
)

// Geometry of the overlays we write: QEMU's own defaults.
const (
	clusterBits = 16
	clusterSize = 1 << clusterBits
	magic       = 0x514649fb

	headerSizeV2 = 72
	headerSize   = 104 // of a version 3 header without optional fields

	extensionBackingFormat = 0xe2792aca

	maxBackingName = 1023 // QEMU's limits
	maxL1Entries   = 32 << 20 / 8
)

// CreateOverlay writes an empty qcow2 file (version 3) of size bytes over backing, whose name is stored as given and may
// be relative to the overlay's folder. Nothing is synced. Writing the few bytes ourselves saves a process on every
// branch and restore.
//
// Errors: fault.Conflict if path exists, fault.Exhausted if the disk is full. On error nothing is left behind.
func CreateOverlay(path string, size int64, backing, backingFormat string) (err error) {
	parts, err := emptyOverlay(size, backing, backingFormat)
	if err != nil {
		return fmt.Errorf("create overlay %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return writeError("create overlay", path, "", err)
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			_ = os.Remove(path)
			err = writeError("create overlay", path, "", err)
		}
	}()
	// What is not written stays a hole: an untouched overlay takes 12 KiB.
	if err := f.Truncate(parts.length); err != nil {
		return err
	}
	for cluster, data := range parts.clusters {
		if _, err := f.WriteAt(data, int64(cluster)*clusterSize); err != nil {
			return err
		}
	}
	return nil
}

// overlay is an empty qcow2 file: the beginnings of its first clusters. The rest, up to length, is zero.
type overlay struct {
	clusters [][]byte
	length   int64
}

// emptyOverlay lays out: header, refcount table, one refcount block, L1 table (all zero: everything comes from the
// backing file). All clusters are in use once each.
func emptyOverlay(size int64, backing, backingFormat string) (overlay, error) {
	if size <= 0 || size%512 != 0 {
		return overlay{}, fmt.Errorf("size %d is not a positive number of 512-byte sectors", size)
	}
	if len(backing) == 0 || len(backing) > maxBackingName || strings.ContainsRune(backing, 0) {
		return overlay{}, fmt.Errorf("the backing file's name %q is not of 1 to %d characters", backing, maxBackingName)
	}
	if backingFormat != "raw" && backingFormat != "qcow2" {
		return overlay{}, fmt.Errorf("the backing file's format %q is neither raw nor qcow2", backingFormat)
	}
	const perL1Entry = clusterSize / 8 * clusterSize // bytes of disk that one L2 table maps
	l1Entries := (size-1)/perL1Entry + 1
	if l1Entries > maxL1Entries {
		return overlay{}, fmt.Errorf("size %d is beyond the %d that QEMU opens", size, int64(maxL1Entries)*perL1Entry)
	}
	clusters := 3 + (l1Entries*8+clusterSize-1)/clusterSize

	be := binary.BigEndian
	header := make([]byte, headerSize, 4096)
	be.PutUint32(header[0:], magic)
	be.PutUint32(header[4:], 3) // version
	be.PutUint32(header[20:], clusterBits)
	be.PutUint64(header[24:], uint64(size))
	be.PutUint32(header[36:], uint32(l1Entries))
	be.PutUint64(header[40:], 3*clusterSize) // L1 table
	be.PutUint64(header[48:], 1*clusterSize) // refcount table
	be.PutUint32(header[56:], 1)             // clusters of it
	be.PutUint32(header[96:], 4)             // refcounts of 1<<4 bits
	be.PutUint32(header[100:], headerSize)
	header = appendExtension(header, extensionBackingFormat, []byte(backingFormat))
	header = appendExtension(header, 0, nil) // the end
	be.PutUint64(header[8:], uint64(len(header)))
	be.PutUint32(header[16:], uint32(len(backing)))
	header = append(header, backing...)

	table := be.AppendUint64(nil, 2*clusterSize) // the one refcount block
	var block []byte
	for range clusters {
		block = be.AppendUint16(block, 1)
	}
	return overlay{clusters: [][]byte{header, table, block}, length: clusters * clusterSize}, nil
}

// appendExtension appends a header extension, padded to a multiple of 8 bytes.
func appendExtension(header []byte, kind uint32, data []byte) []byte {
	header = binary.BigEndian.AppendUint32(header, kind)
	header = binary.BigEndian.AppendUint32(header, uint32(len(data)))
	header = append(header, data...)
	return append(header, make([]byte, -len(data)&7)...)
}

// writeError names the file, and says what to do when the disk is full. detail may be what another program reported.
func writeError(what, path, detail string, err error) error {
	if detail != "" {
		err = fmt.Errorf("%w: %s", err, detail)
	}
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), strings.Contains(detail, unix.ENOSPC.Error()), strings.Contains(detail, "No space left"):
		return fault.Exhaustedf("%s %s: the disk is full: free some space, for example by deleting commits: %w", what, path, err)
	case errors.Is(err, os.ErrExist):
		return fault.Conflictf("%s %s: it exists already and is never overwritten: %w", what, path, err)
	}
	return fmt.Errorf("%s %s: %w", what, path, err)
}

// Sync brings a file and its name to stable storage. Errors: fault.Exhausted if the disk was full after all.
func Sync(path string) error {
	for _, p := range []string{path, filepath.Dir(path)} {
		f, err := os.Open(p)
		if err != nil {
			return fmt.Errorf("sync: %w", err)
		}
		err = f.Sync()
		if err := errors.Join(err, f.Close()); err != nil {
			return writeError("sync", p, "", err)
		}
	}
	return nil
}

// Allocated gives the bytes that a sparse file takes on disk.
func Allocated(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Blocks * 512, nil
}
