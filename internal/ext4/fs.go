// Package ext4 reads ext4 file systems of guests and compares two of them, without the host's kernel and without writing.
//
// A guest has root over its disk, so nothing on it is trusted: every number is checked before it is used, every loop ends,
// memory is bounded, and damage gives an error (fault.Conflict: the state of the disk forbids the operation). Features that
// our images do not have and that change how data is found are refused by name.
//
// The disk of a running VM's commit looks as after a sudden power cut. What the journal holds of finished transactions is
// therefore applied, in memory, as the kernel would do when mounting.
package ext4

import (
	"encoding/binary"
	"errors"
	"io"

	"vers/internal/fault"
)

var le = binary.LittleEndian

const (
	superOffset = 1024
	superSize   = 1024
	superMagic  = 0xEF53

	rootInode    = 2
	maxCached    = 2048 // metadata blocks kept: 8 MiB
	maxFileSize  = 1 << 44
	minInodeSize = 128
)

// Incompatible features. Those without a name here are fine to read.
const (
	featureFiletype = 0x2
	featureRecover  = 0x4
	featureExtents  = 0x40
	feature64Bit    = 0x80
)

// refused are features that change how data is found, by bit.
var refused = map[int]string{
	0: "compression", 3: "journal_dev", 4: "meta_bg", 10: "ea_inode", 12: "dirdata", 15: "inline_data", 16: "encrypt", 17: "casefold",
}

// known are the incompatible features that reading does not mind: filetype, recover, extents, 64bit, mmp, flex_bg,
// csum_seed, largedir.
const known = featureFiletype | featureRecover | featureExtents | feature64Bit | 0x100 | 0x200 | 0x2000 | 0x4000

// FS is an ext4 file system, for one goroutine at a time.
type FS struct {
	disk      io.ReaderAt
	diskSize  int64
	blockSize int64
	super

	overlay journal           // blocks whose present content is in the journal
	cache   map[uint64][]byte // metadata blocks
	work    int64             // bytes that may still be read: see spend
}

// super is what we need of the superblock.
type super struct {
	blocks         uint64
	firstBlock     uint64
	inodes         uint32
	inodesPerGroup uint32
	inodeSize      int64
	descSize       int64
	features       uint32
	journalInode   uint32
}

// Open reads the superblock and the journal of the file system that fills a disk of size bytes.
func Open(disk io.ReaderAt, size int64) (*FS, error) {
	fs := &FS{disk: disk, diskSize: size, cache: map[uint64][]byte{}, work: workPerByte*size + 64<<20}
	raw := make([]byte, superSize)
	if _, err := disk.ReadAt(raw, superOffset); err != nil {
		return nil, readError("the superblock", err)
	}
	if err := fs.readSuper(raw); err != nil {
		return nil, err
	}
	if fs.features&featureRecover == 0 {
		return fs, nil
	}
	if err := fs.loadJournal(); err != nil {
		return nil, err
	}
	clear(fs.cache)
	// The superblock itself may be in the journal: a file system that has just grown.
	block, err := fs.block(superOffset / uint64(fs.blockSize))
	if err != nil {
		return nil, err
	}
	return fs, fs.readSuper(block[superOffset%fs.blockSize:][:superSize])
}

func (fs *FS) readSuper(b []byte) error {
	if le.Uint16(b[0x38:]) != superMagic {
		return fault.Conflictf("the disk holds no ext4 file system (or one inside of a partition)")
	}
	s := super{
		blocks: uint64(le.Uint32(b[0x4:])), firstBlock: uint64(le.Uint32(b[0x14:])), inodes: le.Uint32(b[0x0:]),
		inodesPerGroup: le.Uint32(b[0x28:]), inodeSize: int64(le.Uint16(b[0x58:])), descSize: 32,
		features: le.Uint32(b[0x60:]), journalInode: le.Uint32(b[0xE0:]),
	}
	for bit := range 32 {
		if s.features&^known&(1<<bit) == 0 {
			continue
		}
		if name := refused[bit]; name != "" {
			return fault.Conflictf("the ext4 feature %s is not supported", name)
		}
		return fault.Conflictf("the file system has an unknown ext4 feature: incompatible bit %d", bit)
	}
	if s.features&featureFiletype == 0 || le.Uint32(b[0x4C:]) == 0 {
		return fault.Conflictf("the file system is older than ext4: it lacks the feature filetype")
	}
	if s.features&feature64Bit != 0 {
		s.blocks |= uint64(le.Uint32(b[0x150:])) << 32
		s.descSize = int64(le.Uint16(b[0xFE:]))
	}
	logSize := le.Uint32(b[0x18:])
	if logSize > 2 {
		return fault.Conflictf("ext4 blocks of 2^%d bytes are not supported: 1, 2 and 4 KiB are", uint64(logSize)+10)
	}
	if size := int64(1024) << logSize; fs.blockSize != 0 && fs.blockSize != size {
		return damaged("the superblock in the journal has another block size")
	}
	fs.blockSize = 1024 << logSize
	if s.blocks == 0 || s.blocks > uint64(fs.diskSize/fs.blockSize) || s.firstBlock > 1 {
		return damaged("it claims %d blocks on a disk that holds %d", s.blocks, fs.diskSize/fs.blockSize)
	}
	if s.inodesPerGroup == 0 || s.inodes < rootInode || !powerOfTwo(s.inodeSize, minInodeSize, fs.blockSize) || !powerOfTwo(s.descSize, 32, fs.blockSize) {
		return damaged("%d inodes, %d for each group, of %d bytes, group descriptors of %d bytes", s.inodes, s.inodesPerGroup, s.inodeSize, s.descSize)
	}
	fs.super = s
	return nil
}

func powerOfTwo(n, low, high int64) bool { return n >= low && n <= high && n&(n-1) == 0 }

// damaged is the error for what a sound file system does not have.
func damaged(format string, args ...any) error {
	return fault.Conflictf("the ext4 file system is damaged: "+format, args...)
}

// workPerByte of the disk may be read in all. Reading a sound file system once needs less than one; a crafted one can let
// many files share a block.
const workPerByte = 8

// spend accounts for reading.
func (fs *FS) spend(bytes int64) error {
	if fs.work -= bytes; fs.work < 0 {
		return damaged("files share so many blocks that they hold more than %d times what the disk does", workPerByte)
	}
	return nil
}

// block gives a metadata block, which the caller must not change.
func (fs *FS) block(n uint64) ([]byte, error) {
	if b, ok := fs.cache[n]; ok {
		return b, nil
	}
	if err := fs.spend(fs.blockSize); err != nil {
		return nil, err
	}
	b := make([]byte, fs.blockSize)
	if err := fs.readBlocks(b, n); err != nil {
		return nil, err
	}
	if len(fs.cache) >= maxCached {
		clear(fs.cache)
	}
	fs.cache[n] = b
	return b, nil
}

// readBlocks fills p, a whole number of blocks, from block n on.
func (fs *FS) readBlocks(p []byte, n uint64) error {
	count := uint64(int64(len(p)) / fs.blockSize)
	if n >= fs.blocks || count > fs.blocks-n {
		return damaged("block %d lies beyond its %d blocks", n+count-1, fs.blocks)
	}
	if _, err := fs.disk.ReadAt(p, int64(n)*fs.blockSize); err != nil {
		return readError("the disk", err)
	}
	for _, logged := range fs.overlay.within(n, count) {
		at := int64(logged-n) * fs.blockSize
		if err := fs.overlay.read(fs, p[at:at+fs.blockSize], logged); err != nil {
			return err
		}
	}
	return nil
}

func readError(what string, err error) error {
	if errors.Is(err, io.EOF) {
		return damaged("%s ends too early", what)
	}
	return err
}
