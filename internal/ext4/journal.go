package ext4

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"slices"

	"vers/internal/fault"
)

var (
	be         = binary.BigEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

const (
	journalMagic = 0xC03B3998

	blockDescriptor = 1
	blockCommit     = 2
	blockSuperV2    = 4
	blockRevoke     = 5

	journal64Bit  = 0x2
	journalCsumV2 = 0x8
	journalCsumV3 = 0x10
	journalKnown  = 0x1 | journal64Bit | 0x4 | journalCsumV2 | journalCsumV3 // revoke, async commit

	tagEscaped  = 1
	tagSameUUID = 2
	tagLast     = 8

	maxJournalBlocks  = 1 << 20
	maxJournalExtents = 1 << 12
)

// journal says which blocks of the file system have their present content in the journal. The zero value is empty.
type journal struct {
	logged  map[uint64]logged
	numbers []uint64 // of logged, ascending
}

type logged struct {
	physical uint64 // where the content is
	escaped  bool   // its first four bytes are the journal's magic, stored as zero
	sequence uint32 // of the transaction
}

// within gives the logged blocks among count blocks from first on.
func (j *journal) within(first, count uint64) []uint64 {
	if len(j.numbers) == 0 {
		return nil
	}
	from, _ := slices.BinarySearch(j.numbers, first)
	to, _ := slices.BinarySearch(j.numbers, first+count)
	return j.numbers[from:to]
}

func (j *journal) read(fs *FS, p []byte, n uint64) error {
	entry := j.logged[n]
	if _, err := fs.disk.ReadAt(p, int64(entry.physical)*fs.blockSize); err != nil {
		return readError("the journal", err)
	}
	if entry.escaped {
		be.PutUint32(p, journalMagic)
	}
	return nil
}

// replay reads a journal from its tail to its last complete transaction.
type replay struct {
	fs          *FS
	extents     []extent
	first, last uint32 // blocks of the log; last is the first one after it
	features    uint32
	seed        uint32 // of checksums

	at       uint32
	left     uint32 // blocks until the log would bite its tail
	sequence uint32
	pending  map[uint64]logged // of the transaction that is being read
	revoking []uint64

	logged  map[uint64]logged
	revoked map[uint64]uint32 // by the transaction with that number; not valid before and in it
}

// loadJournal finds what the journal holds. A transaction without a valid end, and all after it, never happened.
func (fs *FS) loadJournal() error {
	n, err := fs.inode(fs.journalInode)
	if err != nil {
		return err
	}
	r := &replay{fs: fs, pending: map[uint64]logged{}, logged: map[uint64]logged{}, revoked: map[uint64]uint32{}}
	if err := r.mapBlocks(n); err != nil {
		return err
	}
	super, err := r.block(0)
	if err != nil {
		return err
	}
	start, err := r.readSuper(super)
	if err != nil || start == 0 {
		return err
	}
	r.at, r.left = start, r.last-r.first
	for {
		more, err := r.step()
		if err != nil {
			return err
		}
		if !more {
			break
		}
	}
	for block, entry := range r.logged {
		if by, ok := r.revoked[block]; !ok || int32(entry.sequence-by) > 0 {
			fs.overlay.numbers = append(fs.overlay.numbers, block)
		}
	}
	slices.Sort(fs.overlay.numbers)
	fs.overlay.logged = r.logged
	return nil
}

// mapBlocks collects where the journal's blocks are.
func (r *replay) mapBlocks(n *inode) error {
	if n.kind != File {
		return damaged("the journal, inode %d, is no file", n.number)
	}
	c, err := r.fs.extents(n)
	if err != nil {
		return err
	}
	for {
		e, ok, err := c.next()
		if err != nil || !ok {
			return err
		}
		if r.extents = append(r.extents, e); len(r.extents) > maxJournalExtents {
			return damaged("the journal is in more than %d pieces", maxJournalExtents)
		}
	}
}

// physical is where a block of the journal is.
func (r *replay) physical(n uint32) (uint64, error) {
	i, found := slices.BinarySearchFunc(r.extents, uint64(n), func(e extent, n uint64) int {
		switch {
		case e.logical+e.count <= n:
			return -1
		case e.logical > n:
			return 1
		}
		return 0
	})
	if !found || r.extents[i].hole {
		return 0, damaged("the journal has no block %d", n)
	}
	return r.extents[i].physical + uint64(n) - r.extents[i].logical, nil
}

func (r *replay) block(n uint32) ([]byte, error) {
	physical, err := r.physical(n)
	if err != nil {
		return nil, err
	}
	b := make([]byte, r.fs.blockSize)
	return b, r.fs.readBlocks(b, physical)
}

// readSuper checks the journal's superblock. start is 0 if nothing has to be replayed.
func (r *replay) readSuper(b []byte) (start uint32, err error) {
	if be.Uint32(b) != journalMagic || be.Uint32(b[4:]) != blockSuperV2 {
		return 0, damaged("the journal has no superblock of version 2")
	}
	r.features = be.Uint32(b[40:])
	if unknown := r.features &^ journalKnown; unknown != 0 {
		return 0, fault.Conflictf("the journal has features that are not supported: %#x (0x20 is fast_commit)", unknown)
	}
	r.first, r.last, r.sequence, start = be.Uint32(b[20:]), be.Uint32(b[16:]), be.Uint32(b[24:]), be.Uint32(b[28:])
	if int64(be.Uint32(b[12:])) != r.fs.blockSize || r.first == 0 || r.last <= r.first || r.last > maxJournalBlocks {
		return 0, damaged("the journal has blocks %d to %d of %d bytes", r.first, r.last, be.Uint32(b[12:]))
	}
	if start != 0 && (start < r.first || start >= r.last) {
		return 0, damaged("the journal starts at block %d of %d", start, r.last)
	}
	r.seed = crc(^uint32(0), b[48:64])
	return start, nil
}

// crc is CRC32C as the kernel computes it: without inversion at either end.
func crc(seed uint32, p []byte) uint32 { return ^crc32.Update(^seed, castagnoli, p) }

func (r *replay) checksums() bool { return r.features&(journalCsumV2|journalCsumV3) != 0 }

// advance gives the number of the present block and goes to the next; ok is false if the whole log was read.
func (r *replay) advance() (n uint32, ok bool) {
	if r.left == 0 {
		return 0, false
	}
	n = r.at
	r.left--
	if r.at++; r.at == r.last {
		r.at = r.first
	}
	return n, true
}

// step reads one block of administration. more is false where the log ends.
func (r *replay) step() (more bool, err error) {
	n, ok := r.advance()
	if !ok {
		return false, nil
	}
	b, err := r.block(n)
	if err != nil {
		return false, err
	}
	if be.Uint32(b) != journalMagic || be.Uint32(b[8:]) != r.sequence {
		return false, nil
	}
	switch be.Uint32(b[4:]) {
	case blockDescriptor:
		return r.descriptor(b)
	case blockRevoke:
		return r.revoke(b)
	case blockCommit:
		return r.commit(b), nil
	}
	return false, nil
}

// tailValid checks the checksum at the end of descriptor and revoke blocks.
func (r *replay) tailValid(b []byte) bool {
	if !r.checksums() {
		return true
	}
	end := len(b) - 4
	return be.Uint32(b[end:]) == crc(r.seed, append(bytes.Clone(b[:end]), 0, 0, 0, 0))
}

func (r *replay) descriptor(b []byte) (more bool, err error) {
	if !r.tailValid(b) {
		return false, nil
	}
	end := len(b)
	if r.checksums() {
		end -= 4
	}
	for at := 12; at+r.tagSize() <= end; {
		block, flags := r.tag(b[at:])
		at += r.tagSize()
		if flags&tagSameUUID == 0 {
			at += 16
		}
		n, ok := r.advance()
		if !ok {
			return false, nil
		}
		physical, err := r.physical(n)
		if err != nil {
			return false, err
		}
		if block >= uint64(r.fs.diskSize/r.fs.blockSize) { // not r.fs.blocks: it may have just grown
			return false, damaged("the journal holds block %d, beyond the end of the disk", block)
		}
		r.pending[block] = logged{physical: physical, escaped: flags&tagEscaped != 0, sequence: r.sequence}
		if flags&tagLast != 0 {
			break
		}
	}
	return true, nil
}

// tagSize is the size of what describes one block.
func (r *replay) tagSize() int {
	size := 8
	if r.features&journalCsumV3 != 0 {
		return 16
	}
	if r.features&journalCsumV2 != 0 {
		size += 2
	}
	if r.features&journal64Bit != 0 {
		size += 4
	}
	return size
}

func (r *replay) tag(b []byte) (block uint64, flags uint32) {
	block = uint64(be.Uint32(b))
	if r.features&journalCsumV3 != 0 {
		flags = be.Uint32(b[4:])
	} else {
		flags = uint32(be.Uint16(b[6:]))
	}
	if r.features&journal64Bit != 0 {
		block |= uint64(be.Uint32(b[8:])) << 32
	}
	return block, flags
}

func (r *replay) revoke(b []byte) (more bool, err error) {
	end, size := int64(be.Uint32(b[12:])), int64(4)
	if r.features&journal64Bit != 0 {
		size = 8
	}
	if !r.tailValid(b) || end > int64(len(b)) {
		return false, nil
	}
	for at := int64(16); at+size <= end; at += size {
		if size == 8 {
			r.revoking = append(r.revoking, be.Uint64(b[at:]))
		} else {
			r.revoking = append(r.revoking, uint64(be.Uint32(b[at:])))
		}
	}
	return true, nil
}

// commit makes what the transaction holds valid.
func (r *replay) commit(b []byte) (more bool) {
	if r.checksums() {
		clean := bytes.Clone(b)
		clear(clean[16:20])
		if be.Uint32(b[16:]) != crc(r.seed, clean) {
			return false
		}
	}
	for block, entry := range r.pending {
		r.logged[block] = entry
	}
	for _, block := range r.revoking {
		r.revoked[block] = r.sequence
	}
	clear(r.pending)
	r.revoking = r.revoking[:0]
	r.sequence++
	return true
}
