package ext4

import (
	"bytes"
	"sort"

	"vers/internal/fault"
)

// maxNames bounds the names in memory: those of all directories on the way to the present one, of both file systems.
const maxNames = 2 << 20

type name struct {
	name  string
	inode uint32
}

// names reads a directory, sorted. Directories with a hash tree look to a reader like plain ones, their inner nodes like
// unused entries.
func (fs *FS) names(n *inode, room int) ([]name, error) {
	c, err := fs.extents(n)
	if err != nil {
		return nil, err
	}
	var all []name
	end := uint64((n.size + fs.blockSize - 1) / fs.blockSize)
	for {
		e, ok, err := c.next()
		if err != nil {
			return nil, err
		}
		if !ok || e.logical >= end {
			break
		}
		if e.hole {
			continue
		}
		for i := range min(e.count, end-e.logical) {
			b, err := fs.block(e.physical + i)
			if err != nil {
				return nil, err
			}
			if all, err = fs.appendNames(all, b, n.number); err != nil {
				return nil, err
			}
			if len(all) > room {
				return nil, fault.Conflictf("there are more than %d names on the way to one directory, inode %d, which is the limit", maxNames, n.number)
			}
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].name < all[j].name })
	for i := 1; i < len(all); i++ {
		if all[i].name == all[i-1].name {
			return nil, damaged("directory %d holds the name %q twice", n.number, all[i].name)
		}
	}
	return all, nil
}

func (fs *FS) appendNames(all []name, b []byte, directory uint32) ([]name, error) {
	for at := 0; at < len(b); {
		if len(b)-at < 8 {
			return nil, damaged("directory %d: an entry is cut off", directory)
		}
		number, size, length := le.Uint32(b[at:]), int(le.Uint16(b[at+4:])), int(b[at+6])
		if size < 8 || size%4 != 0 || size > len(b)-at || number != 0 && 8+length > size {
			return nil, damaged("directory %d: an entry of %d bytes with a name of %d is not possible", directory, size, length)
		}
		text := b[at+8 : at+8+min(length, size-8)]
		at += size
		if number == 0 || string(text) == "." || string(text) == ".." {
			continue
		}
		if len(text) == 0 || bytes.ContainsAny(text, "/\x00") {
			return nil, damaged("directory %d holds the name %q", directory, text)
		}
		all = append(all, name{string(text), number})
	}
	return all, nil
}
