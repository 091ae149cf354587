package ext4

const (
	extentMagic    = 0xF30A
	maxExtentDepth = 5
	unwrittenBias  = 32768
)

// extent is a run of blocks of a file. Blocks in no extent are zero.
type extent struct {
	logical, count uint64
	physical       uint64
	hole           bool // reserved, but never written: zero
}

// cursor walks through a file's extents in ascending order, one block of the tree for each level in memory. The keys of the
// tree must ascend and each node must begin where its parent says, so that no node is visited twice.
type cursor struct {
	fs    *FS
	inode uint32
	stack []node
	end   uint64 // of the last extent

	same  func(first, count uint64) bool // not nil: the walk ends at a node of which this is not known
	stale bool                           // it has ended so
}

type node struct {
	data           []byte
	depth          int
	index, entries int
	limit          uint64 // first logical block after it
}

func (fs *FS) extents(n *inode) (*cursor, error) {
	if n.flags&flagExtents == 0 {
		if n.size == 0 || n.data == [60]byte{} {
			return &cursor{fs: fs, inode: n.number}, nil
		}
		return nil, damaged("inode %d maps its blocks as ext3 does, which is not supported", n.number)
	}
	c := &cursor{fs: fs, inode: n.number}
	return c, c.push(n.data[:], -1, 0, 1<<32)
}

// push checks a node of the tree and makes it the present one. depth -1: any.
func (c *cursor) push(data []byte, depth int, first, limit uint64) error {
	entries, actual := int(le.Uint16(data[2:])), int(le.Uint16(data[6:]))
	switch {
	case le.Uint16(data) != extentMagic, actual > maxExtentDepth, depth >= 0 && actual != depth:
		return damaged("inode %d: a node of the extent tree is none (depth %d)", c.inode, actual)
	case entries > (len(data)-12)/12, depth >= 0 && entries == 0, entries == 0 && actual > 0:
		return damaged("inode %d: a node of the extent tree has %d entries", c.inode, entries)
	case depth >= 0 && uint64(le.Uint32(data[12:])) < first:
		return damaged("inode %d: a node of the extent tree begins at block %d, its parent says %d", c.inode, le.Uint32(data[12:]), first)
	}
	c.stack = append(c.stack, node{data: data, depth: actual, entries: entries, limit: limit})
	return nil
}

// next gives the next extent; ok is false at the end.
func (c *cursor) next() (e extent, ok bool, err error) {
	for len(c.stack) > 0 {
		top := &c.stack[len(c.stack)-1]
		if top.index == top.entries {
			c.stack = c.stack[:len(c.stack)-1]
			continue
		}
		entry := top.data[12+12*top.index:]
		top.index++
		if top.depth == 0 {
			e, err := c.leaf(entry, top.limit)
			return e, err == nil, err
		}
		key, limit := uint64(le.Uint32(entry)), top.limit
		if top.index < top.entries {
			limit = uint64(le.Uint32(entry[12:]))
		}
		if key < c.end || limit <= key || limit > top.limit {
			return extent{}, false, damaged("inode %d: the keys of the extent tree do not ascend at block %d", c.inode, key)
		}
		child := uint64(le.Uint32(entry[4:])) | uint64(le.Uint16(entry[8:]))<<32
		if c.same != nil && !c.same(child, 1) {
			c.stale = true
			return extent{}, false, nil
		}
		block, err := c.fs.block(child)
		if err != nil {
			return extent{}, false, err
		}
		if err := c.push(block, top.depth-1, key, limit); err != nil {
			return extent{}, false, err
		}
	}
	return extent{}, false, nil
}

func (c *cursor) leaf(entry []byte, limit uint64) (extent, error) {
	e := extent{
		logical: uint64(le.Uint32(entry)), count: uint64(le.Uint16(entry[4:])),
		physical: uint64(le.Uint32(entry[8:])) | uint64(le.Uint16(entry[6:]))<<32,
	}
	if e.count > unwrittenBias {
		e.hole, e.count = true, e.count-unwrittenBias
	}
	if e.count == 0 || e.logical < c.end || e.logical+e.count > limit || e.physical == 0 || e.physical >= c.fs.blocks || e.count > c.fs.blocks-e.physical {
		return e, damaged("inode %d: the extent of %d blocks from %d on, at block %d, is not possible", c.inode, e.count, e.logical, e.physical)
	}
	c.end = e.logical + e.count
	return e, nil
}
