package rootfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"

	"vers/internal/fault"
)

// ext4Features are spelled out, so that the file system does not depend on the host's mke2fs.conf. resize_inode keeps
// room for the group descriptors of a file system 1000 times as large, so growing moves nothing. With metadata_csum_seed
// the UUID can be set when the content is known.
const ext4Features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super," +
	"large_file,huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed"

const (
	ext4Journal       = 16 << 20 // bytes
	ext4InodeRatio    = 16384    // bytes of the file system for each inode
	ext4InodeSize     = 256
	ext4Smallest      = 48 << 20 // mke2fs wants a file system more than twice as large as its journal
	ext4Label         = "root"
	ext4Seed          = "f4f95e36-7d5c-4f5b-9a43-3f1f0c4a9a07" // of the hashes of names: fixed, so that equal trees are laid out alike
	ext4Reserved      = 4096                                   // blocks that the kernel holds back for maps of files, at most
	ext4ReservedShare = 50                                     // and at most this part of the file system
)

// ext4Options are what MkfsArgs may hold: whether a value follows. Those that name files are not among them.
var ext4Options = map[string]bool{
	"-b": true, "-I": true, "-i": true, "-N": true, "-m": true, "-O": true, "-E": true, "-J": true, "-G": true, "-g": true,
	"-C": true, "-L": true, "-U": true, "-e": true, "-r": true, "-T": true, "-o": true, "-M": true, "-v": false, "-q": false, "-D": false,
}

// writeExt4 makes an ext4 file system of an archive in the empty file image.
func writeExt4(ctx context.Context, job *job) error {
	need, s, err := job.open(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	inodes, err := formatExt4(ctx, job, need)
	if err != nil {
		return err
	}
	err = errNoMount
	if !job.unprivileged {
		err = useMount(ctx, job.image, "ext4", "", func(root int) error { return job.fill(ctx, s, root) })
	}
	if errors.Is(err, errNoMount) { // nothing of the archive has been read yet
		err = fillExt4ByTree(ctx, job, s, inodes)
	}
	if err != nil {
		return err
	}
	return labelExt4(ctx, job)
}

// formatExt4 makes an empty file system: of the size that was asked for, or the smallest in which the content and the
// headroom fit. It gives how many inodes were asked for, 0 for the usual.
func formatExt4(ctx context.Context, job *job, need content) (inodes int64, err error) {
	size := job.options.SizeBytes
	room := need.blocks*blockSize + job.options.HeadroomBytes
	if size == 0 {
		size = max(ext4Smallest, roundUp(room+room/50+need.inodes*ext4InodeSize+ext4Journal+4<<20, 1<<20))
	}
	if size < ext4Smallest {
		return 0, fault.Invalidf("%d bytes are too few for ext4: at least %d MiB", size, ext4Smallest>>20)
	}
	for {
		if need.inodes > size/ext4InodeRatio*9/10 {
			inodes = need.inodes*11/10 + job.options.HeadroomBytes/ext4InodeRatio
		}
		if err := job.resize(size); err != nil {
			return 0, err
		}
		if err := mke2fs(ctx, job, inodes, ""); err != nil {
			return 0, err
		}
		if job.options.SizeBytes != 0 {
			return inodes, nil
		}
		free, err := ext4Free(job.image)
		if err != nil {
			return 0, err
		}
		// What the kernel holds back for maps of files is no room for data.
		missing := room + min(ext4Reserved*blockSize, size/ext4ReservedShare) - free
		if missing <= 0 {
			return inodes, nil
		}
		size = roundUp(size+missing+missing/20, 1<<20)
	}
}

func mke2fs(ctx context.Context, job *job, inodes int64, tree string) error {
	o := job.options
	uuid := o.UUID
	if uuid == "" {
		uuid = ext4Seed
	}
	args := []string{
		"-q", "-F", "-t", "ext4", "-O", ext4Features, "-b", strconv.Itoa(blockSize), "-I", strconv.Itoa(ext4InodeSize), "-m", "0",
		"-J", "size=" + strconv.Itoa(ext4Journal>>20), "-L", o.Label, "-U", uuid,
		// Tables are initialised now: a guest that did it later would write to its disk for nothing. They are holes here.
		"-E", "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,hash_seed=" + ext4Seed,
	}
	if inodes > 0 {
		args = append(args, "-N", strconv.FormatInt(inodes, 10))
	} else {
		args = append(args, "-i", strconv.Itoa(ext4InodeRatio))
	}
	if tree != "" {
		args = append(args, "-d", tree)
	}
	return job.mkfs(ctx, "mke2fs", "e2fsprogs", append(append(args, o.MkfsArgs...), job.image.Name())...)
}

// ext4Free reads from the superblock how many bytes are free.
func ext4Free(image *os.File) (int64, error) {
	b := make([]byte, 1024)
	if _, err := image.ReadAt(b, 1024); err != nil {
		return 0, fmt.Errorf("read the superblock: %w", err)
	}
	le := binary.LittleEndian
	free := int64(le.Uint32(b[0x0C:])) | int64(le.Uint32(b[0x158:]))<<32
	return free << (10 + le.Uint32(b[0x18:])), nil
}

// labelExt4 gives the file system the UUID that its content has. The image must not be mounted.
func labelExt4(ctx context.Context, job *job) error {
	if job.options.UUID != "" {
		return nil
	}
	return job.mkfs(ctx, "tune2fs", "e2fsprogs", "-U", job.uuid(), job.image.Name())
}
