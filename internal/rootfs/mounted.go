package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"

	"vers/internal/fault"
)

// Options of mkfs.btrfs and mkfs.xfs that MkfsArgs may hold.
var (
	btrfsOptions = map[string]bool{
		"-d": true, "-m": true, "-M": false, "--mixed": false, "--csum": true, "-n": true, "-s": true, "-O": true, "-R": true, "-K": false, "-q": false,
	}
	xfsOptions = map[string]bool{"-b": true, "-d": true, "-i": true, "-l": true, "-m": true, "-n": true, "-s": true, "-q": false, "-K": false}
)

const (
	btrfsSmallest = 128 << 20
	xfsSmallest   = 300 << 20 // mkfs.xfs makes no smaller ones
)

// writeBtrfs makes a btrfs file system by mounting it.
func writeBtrfs(ctx context.Context, j *job) error {
	// Data, its checksums, and metadata twice; what is not used is a hole.
	size := func(c content) int64 { return c.blocks*blockSize*11/10 + c.inodes*2048 + 256<<20 }
	return j.writeMounted(ctx, btrfsSmallest, size, "", func() error {
		// Its UUID is set later: the kernel takes two file systems with the same one for parts of one.
		return j.mkfs(ctx, "mkfs.btrfs", "btrfs-progs", append(append([]string{"-q", "-f", "-L", j.options.Label}, j.options.MkfsArgs...), j.image.Name())...)
	}, func(uuid string) error {
		return j.mkfs(ctx, "btrfstune", "btrfs-progs", "-f", "-U", uuid, j.image.Name())
	})
}

// writeXFS makes an XFS file system by mounting it.
func writeXFS(ctx context.Context, j *job) error {
	size := func(c content) int64 { return c.blocks*blockSize*11/10 + c.inodes*1024 + 300<<20 }
	return j.writeMounted(ctx, xfsSmallest, size, "nouuid", func() error {
		return j.mkfs(ctx, "mkfs.xfs", "xfsprogs", append(append([]string{"-q", "-f", "-L", j.options.Label}, j.options.MkfsArgs...), j.image.Name())...)
	}, func(uuid string) error {
		return j.mkfs(ctx, "xfs_db", "xfsprogs", "-x", "-f", "-p", "xfs_admin", "-c", "uuid "+uuid, j.image.Name())
	})
}

// writeMounted formats the image, fills it through a mount, and gives it its UUID.
func (j *job) writeMounted(ctx context.Context, smallest int64, auto func(content) int64, mount string, format func() error, label func(uuid string) error) error {
	if os.Geteuid() != 0 {
		return j.needsMount(fmt.Errorf("not root"))
	}
	need, s, err := j.open(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	size := j.options.SizeBytes
	if size == 0 {
		size = roundUp(auto(need)+j.options.HeadroomBytes*11/10, 1<<20)
	}
	if size < smallest {
		return fault.Invalidf("%d bytes are too few for %s: at least %d MiB", size, j.options.Type, smallest>>20)
	}
	if err := j.resize(size); err != nil {
		return err
	}
	if err := format(); err != nil {
		return err
	}
	err = useMount(ctx, j.image, string(j.options.Type), mount, func(root int) error { return j.fill(ctx, s, root) })
	if errors.Is(err, errNoMount) {
		return j.needsMount(err)
	}
	if err != nil {
		return err
	}
	uuid := j.options.UUID
	if uuid == "" {
		uuid = j.uuid()
	}
	return label(uuid)
}

func (j *job) needsMount(why error) error {
	return fault.Unavailablef("%s images are made by mounting them, which needs root, loop devices and a kernel with %s: use ext4, which needs none of these (%w)",
		j.options.Type, j.options.Type, why)
}
