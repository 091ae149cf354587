package ext4

import "bytes"

const chunkBytes = 256 << 10

// sameData reports whether nothing that the inode, which both sides have, points at has changed, without reading it.
func (d *differ) sameData(n *inode) (bool, error) {
	c, err := d.from.extents(n)
	if err != nil {
		return false, err
	}
	c.same = d.sameBlocks
	for {
		e, ok, err := c.next()
		if err != nil || !ok {
			return err == nil && !c.stale, err
		}
		if !e.hole && !d.sameBlocks(e.physical, e.count) {
			return false, nil
		}
	}
}

// sameContent compares two files, as little of them as possible.
func (d *differ) sameContent(a, b *inode) (same bool, err error) {
	if a.size != b.size {
		return false, nil
	}
	if a == b {
		if same, err := d.sameData(a); err != nil || same {
			return same, err
		}
	}
	key := [2]uint32{a.number, b.number}
	if same, ok := d.compared[key]; ok {
		return same, nil
	}
	if same, err = d.compare(a, b); err == nil && a.links > 1 && len(d.compared) < maxCompare {
		d.compared[key] = same
	}
	return same, err
}

// run is a part of a file that is in one piece, or a hole.
type run struct {
	count    uint64
	physical uint64 // 0: zeroes
}

// runs walks through a file without leaving out its holes.
type runs struct {
	fs     *FS
	cursor *cursor
	at     uint64 // blocks of the file that were given
	end    uint64
	next   extent
	have   bool
	now    run
}

func (fs *FS) runs(n *inode) (*runs, error) {
	c, err := fs.extents(n)
	return &runs{fs: fs, cursor: c, end: uint64((n.size + fs.blockSize - 1) / fs.blockSize)}, err
}

// fill makes r.now the run at the present place, which has at least one block unless the file ends.
func (r *runs) fill() (err error) {
	if r.now.count > 0 || r.at >= r.end {
		return nil
	}
	if !r.have {
		if r.next, r.have, err = r.cursor.next(); err != nil {
			return err
		}
		if !r.have {
			r.next, r.have = extent{logical: r.end}, true
		}
	}
	switch {
	case r.next.logical > r.at:
		r.now = run{count: min(r.next.logical, r.end) - r.at}
	default:
		r.now = run{count: min(r.next.count, r.end-r.at), physical: r.next.physical}
		if r.next.hole {
			r.now.physical = 0
		}
		r.have = false
	}
	return nil
}

func (r *runs) take(count uint64) {
	r.at += count
	if r.now.count -= count; r.now.physical != 0 {
		r.now.physical += count
	}
}

// read fills p from the present place.
func (r *runs) read(p []byte) error {
	if r.now.physical == 0 {
		clear(p)
		return nil
	}
	if err := r.fs.spend(int64(len(p))); err != nil {
		return err
	}
	return r.fs.readBlocks(p, r.now.physical)
}

func (d *differ) compare(a, b *inode) (bool, error) {
	x, err := d.from.runs(a)
	if err != nil {
		return false, err
	}
	y, err := d.to.runs(b)
	if err != nil {
		return false, err
	}
	if d.buffers[0] == nil {
		d.buffers = [2][]byte{make([]byte, chunkBytes), make([]byte, chunkBytes)}
	}
	left, right := d.buffers[0], d.buffers[1]
	for x.at < x.end {
		if err := d.ctx.Err(); err != nil {
			return false, err
		}
		if err := x.fill(); err != nil {
			return false, err
		}
		if err := y.fill(); err != nil {
			return false, err
		}
		count := min(x.now.count, y.now.count)
		if x.now.physical == y.now.physical && (x.now.physical == 0 || d.sameBlocks(x.now.physical, count)) {
			x.take(count)
			y.take(count)
			continue
		}
		count = min(count, uint64(chunkBytes/d.from.blockSize))
		length := min(int64(count)*d.from.blockSize, a.size-int64(x.at)*d.from.blockSize)
		if err := x.read(left[:int64(count)*d.from.blockSize]); err != nil {
			return false, err
		}
		if err := y.read(right[:int64(count)*d.from.blockSize]); err != nil {
			return false, err
		}
		if !bytes.Equal(left[:length], right[:length]) {
			return false, nil
		}
		x.take(count)
		y.take(count)
	}
	return true, nil
}
