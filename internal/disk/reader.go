package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// Reader gives the content of a disk that consists of a raw image and qcow2 layers over it, without QEMU. The files are
// only read and may be in use below running VMs; the backing files that headers name are not looked at, the caller says
// what the chain is. Lengths and offsets in the files are not trusted. A Reader is for one goroutine at a time.
//
// It knows what our layers consist of: qcow2 version 3, clusters of 64 KiB, no compression, encryption, extended L2
// entries or external data. Everything else is refused by name.
type Reader struct {
	files  []*os.File // the image first
	layers []layerMap // of files[1:]
	size   int64
	tables map[int64]*table // by index in the L1 tables; nil: no layer has anything there
}

// layerMap is where a layer has its L2 tables.
type layerMap struct {
	path string
	size int64
	l1   []uint64
}

// table says where 512 MiB of the disk are: one place for each cluster.
type table [tableEntries]place

// place is 16 bits of a file's number in the chain and 48 bits of a cluster's number in that file. Number 0 is the image,
// in which a cluster is where it is on the disk, whatever the low bits say. Cluster 0 of a layer, its header, stands for zeroes.
type place uint64

func (p place) file() int      { return int(p >> 48) }
func (p place) cluster() int64 { return int64(p & (1<<48 - 1)) }

// continues reports whether the cluster n further on the disk, at next, is also n further in the same file.
func (p place) continues(next place, n int64) bool {
	if p.file() == 0 || p.cluster() == 0 {
		return next == p
	}
	return next == p+place(n)
}

const (
	tableEntries = clusterSize / 8
	tableSpan    = tableEntries * clusterSize // bytes of disk that one L2 table maps
	maxChain     = 1<<16 - 1
	maxTables    = 1024 // kept in memory: 64 MiB, which is 512 GiB of disk

	offsetMask   = 1<<56 - 1<<9
	l2Compressed = 1 << 62
	l2Zero       = 1 << 0
)

// incompatible names the features that change how a file is read.
var incompatible = []string{"", "marked corrupt", "external data file", "compression type", "extended L2 entries"}

// OpenChain opens the raw image and the layers over it, lowest first.
func OpenChain(image string, layers []string) (_ *Reader, err error) {
	r := &Reader{tables: map[int64]*table{}}
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	if len(layers) > maxChain {
		return nil, fmt.Errorf("a chain of %d layers is longer than the %d that can be read", len(layers), maxChain)
	}
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	r.files = append(r.files, f)
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	r.size = st.Size()
	for _, path := range layers {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		r.files = append(r.files, f)
		layer, err := readLayer(f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if layer.size < r.size {
			return nil, fmt.Errorf("%s: the layer's disk has %d bytes, less than the %d below it: disks never shrink", path, layer.size, r.size)
		}
		r.size = layer.size
		r.layers = append(r.layers, layer)
	}
	return r, nil
}

// readLayer reads header and L1 table.
func readLayer(f *os.File) (layerMap, error) {
	head := make([]byte, clusterSize)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return layerMap{}, err
	}
	layer, entries, offset, err := parseGeometry(head[:n])
	if err != nil {
		return layer, err
	}
	layer.path = f.Name()
	st, err := f.Stat()
	if err != nil {
		return layer, err
	}
	if offset > uint64(st.Size()) || entries*8 > uint64(st.Size())-offset {
		return layer, fmt.Errorf("the L1 table (%d entries at %d) lies outside of the file", entries, offset)
	}
	raw := make([]byte, entries*8)
	if _, err := f.ReadAt(raw, int64(offset)); err != nil {
		return layer, fmt.Errorf("read the L1 table: %w", err)
	}
	layer.l1 = make([]uint64, entries)
	for i := range layer.l1 {
		layer.l1[i] = binary.BigEndian.Uint64(raw[i*8:]) & offsetMask
	}
	return layer, nil
}

// parseGeometry reads from a header what finding data needs, and refuses what a Reader does not know.
func parseGeometry(b []byte) (layer layerMap, l1Entries, l1Offset uint64, err error) {
	fail := func(format string, args ...any) (layerMap, uint64, uint64, error) {
		return layerMap{}, 0, 0, fmt.Errorf(format, args...)
	}
	info, err := parseHeader(b)
	if err != nil {
		return fail("%w", err)
	}
	be := binary.BigEndian
	switch {
	case info.Format != "qcow2":
		return fail("not a qcow2 file")
	case be.Uint32(b[4:]) != 3:
		return fail("qcow2 version %d: layers have version 3", be.Uint32(b[4:]))
	case be.Uint32(b[20:]) != clusterBits:
		return fail("qcow2 clusters of 2^%d bytes: layers have 2^%d", be.Uint32(b[20:]), clusterBits)
	case be.Uint32(b[32:]) != 0:
		return fail("the qcow2 file is encrypted (method %d)", be.Uint32(b[32:]))
	}
	for bit := 1; bit < 64; bit++ { // bit 0, dirty, is about reference counts only
		if be.Uint64(b[72:])&(1<<bit) == 0 {
			continue
		}
		if bit < len(incompatible) {
			return fail("qcow2 feature %q is not for us", incompatible[bit])
		}
		return fail("unknown qcow2 feature: bit %d", bit)
	}
	l1Entries, l1Offset = uint64(be.Uint32(b[36:])), be.Uint64(b[40:])
	needed := (uint64(info.VirtualSize) + tableSpan - 1) / tableSpan
	if l1Entries > maxL1Entries || l1Entries < needed {
		return fail("the L1 table has %d entries; a disk of %d bytes needs %d, and %d is the limit", l1Entries, info.VirtualSize, needed, maxL1Entries)
	}
	return layerMap{size: info.VirtualSize}, needed, l1Offset, nil
}

// Size is the disk's size in bytes.
func (r *Reader) Size() int64 { return r.size }

// Close closes the files.
func (r *Reader) Close() error {
	var errs []error
	for _, f := range r.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// ReadAt implements io.ReaderAt.
func (r *Reader) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("read a disk at %d: before its start", off)
	}
	if off >= r.size {
		return 0, io.EOF
	}
	if int64(len(p)) > r.size-off {
		p, err = p[:r.size-off], io.EOF
	}
	for n < len(p) {
		run, readErr := r.readRun(p[n:], off+int64(n))
		if readErr != nil {
			return n, readErr
		}
		n += run
	}
	return n, err
}

// readRun reads as much as lies together in one file.
func (r *Reader) readRun(p []byte, off int64) (int, error) {
	first, err := r.place(off)
	if err != nil {
		return 0, err
	}
	length := clusterSize - off%clusterSize
	for length < int64(len(p)) {
		next, err := r.place(off + length)
		if err != nil {
			return 0, err
		}
		if !first.continues(next, (length+off%clusterSize)/clusterSize) {
			break
		}
		length += clusterSize
	}
	p = p[:min(length, int64(len(p)))]
	at := first.cluster()*clusterSize + off%clusterSize
	switch {
	case first.file() == 0:
		at = off
	case first.cluster() == 0:
		clear(p)
		return len(p), nil
	}
	n, err := r.files[first.file()].ReadAt(p, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("read %s: %w", r.files[first.file()].Name(), err)
	}
	clear(p[n:]) // beyond a file's end there are zeroes
	return len(p), nil
}

// place says where the cluster at off is.
func (r *Reader) place(off int64) (place, error) {
	t, err := r.table(off / tableSpan)
	if t == nil || err != nil {
		return 0, err
	}
	return t[off/clusterSize%tableEntries], nil
}

// table merges the L2 tables of all layers, the upper over the lower.
func (r *Reader) table(index int64) (*table, error) {
	if t, ok := r.tables[index]; ok {
		return t, nil
	}
	var t *table
	for i, layer := range r.layers {
		if index >= int64(len(layer.l1)) || layer.l1[index] == 0 {
			continue
		}
		if t == nil {
			t = &table{}
		}
		if err := t.overlay(r.files[i+1], i+1, int64(layer.l1[index])); err != nil {
			return nil, fmt.Errorf("%s: L2 table %d: %w", layer.path, index, err)
		}
	}
	if len(r.tables) >= maxTables {
		clear(r.tables)
	}
	r.tables[index] = t
	return t, nil
}

func (t *table) overlay(f *os.File, number int, offset int64) error {
	raw := make([]byte, clusterSize)
	if _, err := f.ReadAt(raw, offset); err != nil {
		return fmt.Errorf("at %d: %w", offset, err)
	}
	for i := range t {
		switch entry := binary.BigEndian.Uint64(raw[i*8:]); {
		case entry&l2Compressed != 0:
			return fmt.Errorf("cluster %d is compressed, which layers are not", i)
		case entry&l2Zero != 0:
			t[i] = place(number) << 48
		case entry&offsetMask == 0: // what is below
		case entry&offsetMask%clusterSize != 0:
			return fmt.Errorf("cluster %d is at %#x, between two clusters of the file", i, entry&offsetMask)
		default:
			t[i] = place(number)<<48 | place(entry&offsetMask/clusterSize)
		}
	}
	return nil
}
