package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// Info is what a disk file says about itself.
type Info struct {
	Format         string // "qcow2" or "raw"
	VirtualSize    int64  // bytes
	Backing        string // "" without one; as stored, perhaps relative to the file's folder
	BackingFormat  string
	AllocatedBytes int64
}

// Incompatible features in a version 3 header that no layer of ours may have.
const (
	incompatibleCorrupt  = 1 << 1
	incompatibleDataFile = 1 << 2
)

// Stat reads the header of a disk file. Lengths in it are not trusted. A file without qcow2's magic is raw.
func Stat(path string) (Info, error) {
	f, err := os.Open(path)
	if err != nil {
		return Info{}, err
	}
	defer f.Close()
	head := make([]byte, clusterSize)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return Info{}, fmt.Errorf("read %s: %w", path, err)
	}
	info, err := parseHeader(head[:n])
	if err != nil {
		return Info{}, fmt.Errorf("%s: %w", path, err)
	}
	if info.Format == "raw" {
		st, err := f.Stat()
		if err != nil {
			return Info{}, err
		}
		info.VirtualSize = st.Size()
	}
	info.AllocatedBytes, err = Allocated(path)
	return info, err
}

// parseHeader reads the first bytes of a file: at most one cluster of 64 KiB.
func parseHeader(b []byte) (Info, error) {
	be := binary.BigEndian
	if len(b) < 4 || be.Uint32(b) != magic {
		return Info{Format: "raw"}, nil
	}
	if len(b) < headerSizeV2 {
		return Info{}, fmt.Errorf("qcow2 header is cut off after %d bytes", len(b))
	}
	version := be.Uint32(b[4:])
	if version != 2 && version != 3 {
		return Info{}, fmt.Errorf("qcow2 version %d is unknown", version)
	}
	info := Info{Format: "qcow2", VirtualSize: int64(be.Uint64(b[24:]))}
	if info.VirtualSize < 0 {
		return Info{}, fmt.Errorf("qcow2 virtual size %d is not possible", uint64(info.VirtualSize))
	}
	if version == 3 {
		if len(b) < headerSize || be.Uint32(b[100:]) < headerSize {
			return Info{}, errors.New("qcow2 header is shorter than version 3 demands")
		}
		if features := be.Uint64(b[72:]); features&(incompatibleCorrupt|incompatibleDataFile) != 0 {
			return Info{}, fmt.Errorf("qcow2 features %#x are not for us: the file is marked corrupt (%#x) or keeps its data in another file (%#x)",
				features, incompatibleCorrupt, incompatibleDataFile)
		}
	}
	offset, length := be.Uint64(b[8:]), uint64(be.Uint32(b[16:]))
	if offset == 0 {
		return info, nil
	}
	if length > maxBackingName || offset > uint64(len(b)) || length > uint64(len(b))-offset {
		return Info{}, fmt.Errorf("the backing file's name (%d bytes at %d) lies outside of the header", length, offset)
	}
	info.Backing = string(b[offset : offset+length])
	at := uint64(headerSizeV2)
	if version == 3 {
		at = uint64(be.Uint32(b[100:]))
	}
	for at+8 <= offset {
		kind, size := be.Uint32(b[at:]), uint64(be.Uint32(b[at+4:]))
		if kind == 0 {
			break
		}
		if size > offset-at-8 {
			return Info{}, fmt.Errorf("qcow2 header extension at %d has %d bytes, more than there are", at, size)
		}
		if kind == extensionBackingFormat {
			info.BackingFormat = string(b[at+8 : at+8+size])
		}
		at += 8 + (size+7)&^7
	}
	return info, nil
}
