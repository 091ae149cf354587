package ext4

import "vers/internal/fault"

// Numbers gives the inode numbers of what is in the directory with the given number, by name. RootInode is the root's.
func (fs *FS) Numbers(directory uint32) (map[string]uint32, error) {
	n, err := fs.inode(directory)
	if err != nil {
		return nil, err
	}
	if n.kind != Directory {
		return nil, fault.Conflictf("inode %d is no directory but a %s", directory, n.kind)
	}
	names, err := fs.names(n, maxNames)
	if err != nil {
		return nil, err
	}
	numbers := make(map[string]uint32, len(names))
	for _, name := range names {
		numbers[name.name] = name.inode
	}
	return numbers, nil
}

// RootInode is the number of the root directory's inode.
const RootInode = rootInode
