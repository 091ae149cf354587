// Package disk makes and reads the qcow2 layers that VM disks consist of.
package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Geometry of the overlays we write: QEMU's own defaults.
const (
	clusterBits = 16
	clusterSize = 1 << clusterBits
	headerSize  = 104 // of a version 3 header without optional fields
	magic       = 0x514649fb

	extensionBackingFormat = 0xe2792aca
)

// CreateOverlay writes an empty qcow2 file (version 3) of size bytes over backing, whose name is stored as given and may
// be relative to the overlay's folder. An existing path is refused. Nothing is left behind on error. Writing the few
// clusters ourselves saves a process on every branch and restore.
func CreateOverlay(path string, size int64, backing, backingFormat string) (err error) {
	image, err := emptyOverlay(size, backing, backingFormat)
	if err != nil {
		return fmt.Errorf("create overlay %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("create overlay: %w", err)
	}
	defer func() {
		if closeErr := f.Close(); err == nil && closeErr != nil {
			err = fmt.Errorf("create overlay: %w", closeErr)
		}
		if err != nil {
			os.Remove(path)
		}
	}()
	if _, err := f.Write(image); err != nil {
		return fmt.Errorf("create overlay: %w", err)
	}
	return nil
}

// emptyOverlay lays out: header, refcount table, one refcount block, L1 table (all zero: everything comes from the
// backing file). Clusters 0 to n are in use once each.
func emptyOverlay(size int64, backing, backingFormat string) ([]byte, error) {
	if size <= 0 || size%512 != 0 {
		return nil, fmt.Errorf("size %d is not a positive number of 512-byte sectors", size)
	}
	if len(backing) > 1023 || len(backing) == 0 {
		return nil, fmt.Errorf("the backing file's name has %d characters, 1 to 1023 are possible", len(backing))
	}
	const perL1Entry = clusterSize / 8 * clusterSize // bytes of disk that one L2 table maps
	l1Entries := (size + perL1Entry - 1) / perL1Entry
	l1Clusters := (l1Entries*8 + clusterSize - 1) / clusterSize
	clusters := 3 + l1Clusters
	if clusters > clusterSize/2 {
		return nil, fmt.Errorf("size %d is beyond what one refcount block describes", size)
	}
	image := make([]byte, clusters*clusterSize)
	be := binary.BigEndian
	header := image[:clusterSize]
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
	at := putExtension(header, headerSize, extensionBackingFormat, []byte(backingFormat))
	at += 8 // end of extensions: type 0, length 0
	be.PutUint64(header[8:], uint64(at))
	be.PutUint32(header[16:], uint32(len(backing)))
	copy(header[at:], backing)

	be.PutUint64(image[clusterSize:], 2*clusterSize) // the one refcount block
	for i := range clusters {
		be.PutUint16(image[2*clusterSize+i*2:], 1)
	}
	return image, nil
}

func putExtension(header []byte, at int, kind uint32, data []byte) int {
	binary.BigEndian.PutUint32(header[at:], kind)
	binary.BigEndian.PutUint32(header[at+4:], uint32(len(data)))
	copy(header[at+8:], data)
	return at + 8 + (len(data)+7)&^7
}

// Sync brings a file and its name to stable storage.
func Sync(path string) error {
	for _, p := range []string{path, filepath.Dir(path)} {
		f, err := os.Open(p)
		if err != nil {
			return fmt.Errorf("sync: %w", err)
		}
		err = f.Sync()
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("sync %s: %w", p, err)
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
