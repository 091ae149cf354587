package ext4

import (
	"bytes"
	"fmt"
	"sort"
)

// Kind of a file.
type Kind string

// The kinds.
const (
	File      Kind = "file"
	Directory Kind = "directory"
	Symlink   Kind = "symlink"
	Fifo      Kind = "fifo"
	Character Kind = "character device"
	Block     Kind = "block device"
	Socket    Kind = "socket"
)

var kinds = map[uint16]Kind{1: Fifo, 2: Character, 4: Directory, 6: Block, 8: File, 10: Symlink, 12: Socket}

const (
	flagExtents = 0x80000
	flagInline  = 0x10000000
	flagEAInode = 0x200000
	maxTarget   = 4096
	xattrMagic  = 0xEA020000
)

// inode is a file without its name.
type inode struct {
	number uint32
	kind   Kind
	mode   uint32 // permissions, with set-id and sticky bits
	uid    uint32
	gid    uint32
	size   int64
	links  uint16
	flags  uint32
	data   [60]byte // extent tree, short target of a symlink, or device number
	acl    uint64   // block with extended attributes; 0: none
	inner  []byte   // the inode's own room for extended attributes
}

// locate gives block and offset of an inode.
func (fs *FS) locate(number uint32) (uint64, int64, error) {
	if number == 0 || number > fs.inodes {
		return 0, 0, damaged("there is no inode %d", number)
	}
	group, index := uint64(number-1)/uint64(fs.inodesPerGroup), int64((number-1)%fs.inodesPerGroup)
	at := int64(group) * fs.descSize
	b, err := fs.block(fs.firstBlock + 1 + uint64(at/fs.blockSize))
	if err != nil {
		return 0, 0, err
	}
	desc := b[at%fs.blockSize:][:fs.descSize]
	table := uint64(le.Uint32(desc[0x8:]))
	if fs.descSize >= 64 {
		table |= uint64(le.Uint32(desc[0x28:])) << 32
	}
	if table == 0 || table >= fs.blocks {
		return 0, 0, damaged("the inode table of group %d is at block %d of %d", group, table, fs.blocks)
	}
	offset := index * fs.inodeSize
	return table + uint64(offset/fs.blockSize), offset % fs.blockSize, nil
}

func (fs *FS) inode(number uint32) (*inode, error) {
	block, offset, err := fs.locate(number)
	if err != nil {
		return nil, err
	}
	table, err := fs.block(block)
	if err != nil {
		return nil, err
	}
	b := table[offset : offset+fs.inodeSize]
	mode := le.Uint16(b[0:])
	n := &inode{
		number: number, kind: kinds[mode>>12], mode: uint32(mode & 0o7777), links: le.Uint16(b[0x1A:]), flags: le.Uint32(b[0x20:]),
		uid: uint32(le.Uint16(b[0x2:])) | uint32(le.Uint16(b[0x78:]))<<16, gid: uint32(le.Uint16(b[0x18:])) | uint32(le.Uint16(b[0x7A:]))<<16,
		size: int64(le.Uint32(b[0x4:])) | int64(le.Uint32(b[0x6C:]))<<32,
		acl:  uint64(le.Uint32(b[0x68:])) | uint64(le.Uint16(b[0x76:]))<<32,
	}
	copy(n.data[:], b[0x28:])
	if n.kind == "" {
		return nil, damaged("inode %d has the unknown type %d", number, mode>>12)
	}
	if n.size < 0 || n.size > maxFileSize {
		return nil, damaged("inode %d has a size of %d bytes", number, uint64(n.size))
	}
	if n.flags&(flagInline|flagEAInode) != 0 {
		return nil, damaged("inode %d uses a feature that the file system does not have (flags %#x)", number, n.flags)
	}
	if fs.inodeSize > minInodeSize {
		if start := minInodeSize + int64(le.Uint16(b[0x80:])); start <= fs.inodeSize {
			n.inner = bytes.Clone(b[start:])
		}
	}
	return n, nil
}

// target is where a symbolic link points.
func (fs *FS) target(n *inode) (string, error) {
	switch {
	case n.size > maxTarget || n.size > fs.blockSize:
		return "", damaged("symbolic link %d is %d bytes long", n.number, n.size)
	case n.size < int64(len(n.data)) && n.flags&flagExtents == 0:
		return string(n.data[:n.size]), nil
	}
	c, err := fs.extents(n)
	if err != nil {
		return "", err
	}
	e, ok, err := c.next()
	if err != nil {
		return "", err
	}
	if !ok || e.logical != 0 || e.hole {
		return "", damaged("symbolic link %d has no content", n.number)
	}
	b, err := fs.block(e.physical)
	if err != nil {
		return "", err
	}
	return string(b[:n.size]), nil
}

// device gives the numbers of a device node as "major:minor".
func (n *inode) device() string {
	if old := le.Uint32(n.data[0:]); old != 0 {
		return fmt.Sprintf("%d:%d", old>>8&0xff, old&0xff)
	}
	d := le.Uint32(n.data[4:])
	return fmt.Sprintf("%d:%d", d>>8&0xfff, d&0xff|d>>12&0xfff00)
}

// xattrs gives all extended attributes in a form that is equal for equal attributes.
func (fs *FS) xattrs(n *inode) (string, error) {
	var all []string
	if len(n.inner) > 4 && le.Uint32(n.inner) == xattrMagic {
		if err := appendXattrs(&all, n.inner[4:], n.inner[4:]); err != nil {
			return "", damaged("extended attributes of inode %d: %v", n.number, err)
		}
	}
	if n.acl != 0 {
		b, err := fs.block(n.acl)
		if err != nil {
			return "", err
		}
		if le.Uint32(b) != xattrMagic {
			return "", damaged("extended attributes of inode %d: block %d holds none", n.number, n.acl)
		}
		if err := appendXattrs(&all, b[32:], b); err != nil {
			return "", damaged("extended attributes of inode %d: %v", n.number, err)
		}
	}
	sort.Strings(all)
	return fmt.Sprintf("%q", all), nil
}

// appendXattrs reads a list of entries, whose values are in room.
func appendXattrs(all *[]string, list, room []byte) error {
	for len(list) >= 16 && le.Uint32(list) != 0 {
		nameLength, index := int(list[0]), list[1]
		offset, size := uint64(le.Uint16(list[2:])), uint64(le.Uint32(list[8:]))
		if 16+nameLength > len(list) || le.Uint32(list[4:]) != 0 || size > 0 && (offset > uint64(len(room)) || size > uint64(len(room))-offset) {
			return fmt.Errorf("an entry with a name of %d and a value of %d bytes does not fit", nameLength, size)
		}
		value := room[:0]
		if size > 0 {
			value = room[offset : offset+size]
		}
		*all = append(*all, fmt.Sprintf("%d.%s=%s", index, list[16:16+nameLength], value))
		list = list[min((16+nameLength+3)&^3, len(list)):]
	}
	return nil
}
