package rootfs

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// punch gives back the blocks of the image that hold only zeroes, and those that were reserved and not written: as holes
// they cost nothing, and need not be copied or hashed. Where the host's file system cannot, they stay.
func punch(ctx context.Context, image *os.File) error {
	info, err := image.Stat()
	if err != nil {
		return err
	}
	err = punchTo(ctx, image, info.Size())
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

func punchTo(ctx context.Context, image *os.File, size int64) error {
	buffer := make([]byte, bufferSize)
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		start, err := unix.Seek(int(image.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing but holes follows
			return punchHole(image, at, size)
		}
		if err != nil {
			return err
		}
		start = start / blockSize * blockSize
		if err := punchHole(image, at, start); err != nil {
			return err
		}
		p := buffer[:min(int64(len(buffer)), size-start)]
		if _, err := image.ReadAt(p, start); err != nil {
			return err
		}
		end := start
		_, err = dataRuns(p, func(off int, data []byte) error {
			from := end
			end = start + int64(off+len(data))
			return punchHole(image, from, start+int64(off))
		})
		if err != nil {
			return err
		}
		at = start + int64(len(p))
		if err := punchHole(image, end, at); err != nil {
			return err
		}
	}
	return nil
}

func punchHole(image *os.File, from, to int64) error {
	if from >= to {
		return nil
	}
	return unix.Fallocate(int(image.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from)
}
