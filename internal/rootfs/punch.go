package rootfs

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// punch gives back the blocks of the image that were reserved and not written, such as an empty journal: as holes they
// cost nothing, and need not be copied or hashed. Where the host's file system cannot, they stay.
func punch(image *os.File) error {
	info, err := image.Stat()
	if err != nil {
		return err
	}
	for at := int64(0); at < info.Size(); {
		data, err := unix.Seek(int(image.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing but holes follows
			data, err = info.Size(), nil
		}
		if err == nil && data > at {
			err = unix.Fallocate(int(image.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, data-at)
		}
		if err == nil && data < info.Size() {
			at, err = unix.Seek(int(image.Fd()), data, unix.SEEK_HOLE)
		} else {
			at = data
		}
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}
