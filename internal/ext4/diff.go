package ext4

import (
	"context"
	"strings"

	"vers/internal/fault"
)

// Change is what happened to a path.
type Change string

// The changes.
const (
	Added   Change = "added"
	Removed Change = "removed"
	Changed Change = "changed"
)

// Node describes a file.
type Node struct {
	Kind   Kind
	Size   int64  // bytes; of files and symbolic links, else 0
	Mode   uint32 // permissions with set-id and sticky bits
	UID    uint32
	GID    uint32
	Target string // of a symbolic link
	Device string // of a device node, "major:minor"
}

// Entry is one path that differs.
type Entry struct {
	Path     string // absolute; bytes as they are on disk
	Change   Change
	From, To *Node    // nil if the path is not there
	What     []string // of changed: type, content, target, device, mode, owner, xattrs
}

// Totals counts all entries.
type Totals struct {
	Added, Removed, Changed  int64
	BytesAdded, BytesRemoved int64 // sizes of files: of added and removed ones, and growth and shrinking of changed ones
}

// Options of Diff.
type Options struct {
	// Below names a file or directory, absolute: only it and what is below it is compared. "" and "/": everything.
	Below string
	// Same reports whether a part of both disks, in bytes, has the same content. It may answer false when it does not know,
	// which costs time only.
	Same func(offset, length int64) bool
}

const (
	maxPath    = 16 << 10 // bytes; Linux itself opens at most 4096 at a time
	maxCompare = 1 << 20  // hard links of which results are kept
)

// Diff calls yield for every path that differs from one file system to another, directories before what is in them, names
// in the order of their bytes. Times do not count: a file that was written with the same content is not changed. An error
// of yield ends it.
func Diff(ctx context.Context, from, to *FS, o Options, yield func(Entry) error) (Totals, error) {
	d := &differ{ctx: ctx, from: from, to: to, Options: o, yield: yield, compared: map[[2]uint32]bool{},
		seen: [2]map[uint32]bool{{}, {}}}
	d.Below = strings.TrimRight(d.Below, "/")
	if from.blockSize != to.blockSize {
		return d.totals, fault.Conflictf("blocks of %d and of %d bytes: the file systems cannot be compared", from.blockSize, to.blockSize)
	}
	if d.Same == nil {
		d.Same = func(int64, int64) bool { return false }
	}
	a, b, err := d.pair(rootInode, rootInode)
	if err != nil {
		return d.totals, err
	}
	if a.kind != Directory || b.kind != Directory {
		return d.totals, damaged("its root is no directory")
	}
	if err := d.entry("/", a, b); err != nil {
		return d.totals, err
	}
	return d.totals, d.directory("", a, b)
}

type differ struct {
	Options
	ctx      context.Context
	from, to *FS
	yield    func(Entry) error
	totals   Totals
	held     int                // names in memory
	seen     [2]map[uint32]bool // directories, which have one name only
	compared map[[2]uint32]bool // content of hard links
	buffers  [2][]byte          // for contents
}

// sameBlocks reports whether blocks of both file systems have the same content, as far as that is known without reading.
func (d *differ) sameBlocks(first, count uint64) bool {
	if len(d.from.overlay.within(first, count)) > 0 || len(d.to.overlay.within(first, count)) > 0 {
		return false
	}
	return d.Same(int64(first)*d.from.blockSize, int64(count)*d.from.blockSize)
}

// pair reads the inodes of one path; 0 gives nil. One inode for both, the same pointer, says that the record is the same.
func (d *differ) pair(x, y uint32) (a, b *inode, err error) {
	if x != 0 {
		if a, err = d.from.inode(x); err != nil {
			return nil, nil, err
		}
	}
	if x == y && x != 0 {
		blockA, offsetA, err := d.from.locate(x)
		if err != nil {
			return nil, nil, err
		}
		blockB, offsetB, err := d.to.locate(y)
		if err != nil {
			return nil, nil, err
		}
		if blockA == blockB && offsetA == offsetB && d.from.inodeSize == d.to.inodeSize && d.sameBlocks(blockA, 1) {
			return a, a, nil
		}
	}
	if y != 0 {
		b, err = d.to.inode(y)
	}
	return a, b, err
}

// directory compares what is in a directory; a or b is nil if it is on one side only.
func (d *differ) directory(path string, a, b *inode) error {
	if err := d.ctx.Err(); err != nil {
		return err
	}
	if len(path) > maxPath {
		return fault.Conflictf("a path is longer than %d bytes, which is the limit", maxPath)
	}
	for side, n := range []*inode{a, b} {
		if n == nil {
			continue
		}
		if d.seen[side][n.number] {
			return damaged("directory %d has two places, one at %q", n.number, path)
		}
		d.seen[side][n.number] = true
	}
	x, y, err := d.listings(a, b)
	if err != nil {
		return err
	}
	defer func(held int) { d.held = held }(d.held)
	d.held += len(x) + len(y)
	for len(x) > 0 || len(y) > 0 {
		var next string
		var left, right uint32
		if len(y) == 0 || len(x) > 0 && x[0].name <= y[0].name {
			next = x[0].name
		} else {
			next = y[0].name
		}
		if len(x) > 0 && x[0].name == next {
			left, x = x[0].inode, x[1:]
		}
		if len(y) > 0 && y[0].name == next {
			right, y = y[0].inode, y[1:]
		}
		if err := d.path(path+"/"+next, left, right); err != nil {
			return err
		}
	}
	return nil
}

// listings reads both sides' names, once if the directory is the same.
func (d *differ) listings(a, b *inode) (x, y []name, err error) {
	if a != nil {
		if x, err = d.from.names(a, maxNames-d.held); err != nil {
			return nil, nil, err
		}
	}
	if a != nil && a == b {
		if same, err := d.sameData(a); err != nil || same {
			return x, x, err
		}
	}
	if b != nil {
		y, err = d.to.names(b, maxNames-d.held-len(x))
	}
	return x, y, err
}

// path compares what one path is on both sides.
func (d *differ) path(path string, x, y uint32) error {
	inside := d.Below == "" || path == d.Below || strings.HasPrefix(path, d.Below+"/")
	if !inside && !strings.HasPrefix(d.Below, path+"/") {
		return nil
	}
	a, b, err := d.pair(x, y)
	if err != nil {
		return err
	}
	if err := d.entry(path, a, b); err != nil {
		return err
	}
	if a != nil && a.kind != Directory {
		a = nil
	}
	if b != nil && b.kind != Directory {
		b = nil
	}
	if a == nil && b == nil {
		return nil
	}
	return d.directory(path, a, b)
}

// entry yields a path if it differs.
func (d *differ) entry(path string, a, b *inode) error {
	if d.Below != "" && path != d.Below && !strings.HasPrefix(path, d.Below+"/") {
		return nil
	}
	e := Entry{Path: path}
	var err error
	switch {
	case b == nil:
		e.Change = Removed
		d.totals.Removed++
	case a == nil:
		e.Change = Added
		d.totals.Added++
	default:
		e.Change = Changed
		if e.What, err = d.what(a, b); err != nil || len(e.What) == 0 {
			return err
		}
		d.totals.Changed++
	}
	if e.From, err = d.from.node(a); err != nil {
		return err
	}
	if e.To, err = d.to.node(b); err != nil {
		return err
	}
	d.count(e)
	return d.yield(e)
}

func (d *differ) count(e Entry) {
	var before, after int64
	if e.From != nil && e.From.Kind == File {
		before = e.From.Size
	}
	if e.To != nil && e.To.Kind == File {
		after = e.To.Size
	}
	// Sizes that a crafted file system claims may sum up to anything.
	const most = 1 << 62
	d.totals.BytesAdded = min(d.totals.BytesAdded+max(after-before, 0), most)
	d.totals.BytesRemoved = min(d.totals.BytesRemoved+max(before-after, 0), most)
}

func (fs *FS) node(n *inode) (*Node, error) {
	if n == nil {
		return nil, nil
	}
	node := &Node{Kind: n.kind, Mode: n.mode, UID: n.uid, GID: n.gid}
	var err error
	switch n.kind {
	case File:
		node.Size = n.size
	case Symlink:
		node.Size = n.size
		node.Target, err = fs.target(n)
	case Character, Block:
		node.Device = n.device()
	}
	return node, err
}

// what lists in what two files differ.
func (d *differ) what(a, b *inode) (what []string, err error) {
	add := func(differs bool, kind string) {
		if differs {
			what = append(what, kind)
		}
	}
	if a.kind != b.kind {
		add(true, "type")
	} else {
		switch a.kind {
		case File:
			same, err := d.sameContent(a, b)
			if err != nil {
				return nil, err
			}
			add(!same, "content")
		case Symlink:
			same, err := d.sameTarget(a, b)
			if err != nil {
				return nil, err
			}
			add(!same, "target")
		case Character, Block:
			add(a.device() != b.device(), "device")
		}
	}
	add(a.mode != b.mode, "mode")
	add(a.uid != b.uid || a.gid != b.gid, "owner")
	same, err := d.sameXattrs(a, b)
	add(!same, "xattrs")
	return what, err
}

func (d *differ) sameTarget(a, b *inode) (bool, error) {
	if a == b && (a.flags&flagExtents == 0) {
		return true, nil
	}
	x, err := d.from.target(a)
	if err != nil {
		return false, err
	}
	y, err := d.to.target(b)
	return x == y, err
}

func (d *differ) sameXattrs(a, b *inode) (bool, error) {
	if string(a.inner) == string(b.inner) && a.acl == b.acl && (a.acl == 0 || d.sameBlocks(a.acl, 1)) {
		return true, nil
	}
	x, err := d.from.xattrs(a)
	if err != nil {
		return false, err
	}
	y, err := d.to.xattrs(b)
	return x == y, err
}
