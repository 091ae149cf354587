package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// errNoMount marks that this process cannot mount images: no privilege, no loop devices, or a kernel without that file
// system.
var errNoMount = errors.New("cannot mount images")

const (
	// attachAttempts bounds the race with other programs for a free loop device.
	attachAttempts = 64
	// unmountPatience is how long a file system may take to write what is in memory when it is unmounted.
	unmountPatience = 10 * time.Minute
)

// mounted is a file system that is mounted nowhere: it has no place in any mount namespace, only a descriptor, and so it
// is gone with the process, however that ends; so is its loop device.
type mounted struct {
	root int
	loop *os.File
}

// mountImage mounts a file through a loop device. errNoMount if that is impossible here.
func mountImage(image *os.File, fsType, data string) (*mounted, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w: not root", errNoMount)
	}
	loop, err := attach(image)
	if err != nil {
		return nil, fmt.Errorf("%w: loop device: %w", errNoMount, err)
	}
	root, err := mountDetached(loop.Name(), fsType, data)
	if err != nil {
		return nil, errors.Join(err, loop.Close())
	}
	return &mounted{root: root, loop: loop}, nil
}

// attach makes a file a block device, until the last descriptor of the device is closed.
func attach(image *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range attachAttempts {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		loop, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(image.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO}}
		copy(config.Info.File_name[:len(config.Info.File_name)-1], image.Name())
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody else was faster
			return nil, err
		}
	}
	return nil, fmt.Errorf("none was free in %d attempts: %w", attachAttempts, unix.EBUSY)
}

// mountDetached gives a descriptor of the root of a device's file system. data are its options, "name=value" or "name".
func mountDetached(device, fsType, data string) (int, error) {
	fs, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("%w: %s: %w", errNoMount, fsType, err)
	}
	defer unix.Close(fs)
	err = unix.FsconfigSetString(fs, "source", device)
	for option := range strings.SplitSeq(data, ",") {
		name, value, hasValue := strings.Cut(option, "=")
		switch {
		case err != nil || name == "":
		case hasValue:
			err = unix.FsconfigSetString(fs, name, value)
		default:
			err = unix.FsconfigSetFlag(fs, name)
		}
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENODEV) {
			return -1, fmt.Errorf("%w: %s: %w", errNoMount, fsType, err)
		}
		return -1, fmt.Errorf("mount %s: %w%s", fsType, err, kernelSays(fs))
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC,
		unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOATIME)
	if err != nil {
		return -1, fmt.Errorf("mount %s: %w", fsType, err)
	}
	return root, nil
}

// kernelSays reads what the kernel logged about a mount that failed.
func kernelSays(fs int) string {
	buffer := make([]byte, 1024)
	n, err := unix.Read(fs, buffer)
	if err != nil || n <= 2 {
		return ""
	}
	return ": " + strings.TrimSpace(string(buffer[2:n]))
}

// sync writes what is in memory to the image, and tells whether that worked.
func (m *mounted) sync() error {
	fd, err := unix.Openat(m.root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0) // root itself is only a place
	if err == nil {
		err = errors.Join(unix.Syncfs(fd), unix.Close(fd))
	}
	if err != nil {
		return fmt.Errorf("write the file system: %w", err)
	}
	return nil
}

// close unmounts, and comes back when the image is complete and nobody's. Programs that other parts of this process are
// just starting may hold the descriptor until they run.
func (m *mounted) close() error {
	unix.Close(m.root)
	deadline, pause := time.Now().Add(unmountPatience), time.Millisecond
	for {
		// A mounted device cannot be had exclusively.
		f, err := os.OpenFile(m.loop.Name(), os.O_RDWR|unix.O_EXCL, 0)
		if err == nil {
			return errors.Join(m.loop.Sync(), f.Close(), m.loop.Close())
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("unmount: %w", err), m.loop.Close())
		}
		time.Sleep(pause)
		pause = min(2*pause, 100*time.Millisecond)
	}
}

// useMount mounts an image, lets f fill it, and unmounts it whatever happens.
func useMount(ctx context.Context, image *os.File, fsType, data string, f func(root int) error) error {
	m, err := mountImage(image, fsType, data)
	if err != nil {
		return err
	}
	err = f(m.root)
	if err == nil {
		err = m.sync()
	}
	if err == nil {
		err = ctx.Err()
	}
	return errors.Join(err, m.close())
}
