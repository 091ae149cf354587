package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
)

// Kernel is the System of a real guest.
type Kernel struct{}

// Requests of include/uapi/linux/random.h.
const (
	rndAddEntropy = 0x40085203
	rndReseedCRNG = 0x5207
)

// AddEntropy implements System.
func (Kernel) AddEntropy(entropy []byte) error {
	file, err := os.OpenFile("/dev/random", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	// struct rand_pool_info: bits credited, bytes, then the bytes.
	buf := make([]byte, 8, 8+len(entropy))
	binary.NativeEndian.PutUint32(buf[0:], uint32(len(entropy)*8))
	binary.NativeEndian.PutUint32(buf[4:], uint32(len(entropy)))
	buf = append(buf, entropy...)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), rndAddEntropy, uintptr(unsafe.Pointer(&buf[0]))); errno != 0 {
		return fmt.Errorf("add entropy: %w", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), rndReseedCRNG, 0); errno != 0 {
		return fmt.Errorf("reseed: %w", errno)
	}
	return nil
}

// SetClock implements System.
func (Kernel) SetClock(now time.Time) error {
	ts := unix.NsecToTimespec(now.UnixNano())
	return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
}

// SetHostname implements System.
func (Kernel) SetHostname(name string) error { return unix.Sethostname([]byte(name)) }

const (
	bootIDFile  = "/proc/sys/kernel/random/boot_id"
	ourBootFile = "/run/vers/boot_id"
)

// SetBootID implements System. A file of ours is mounted over the kernel's once; later ids are written into it, so that
// mount namespaces made meanwhile (services, containers) see them too.
func (Kernel) SetBootID(id string) error {
	if err := os.MkdirAll(filepath.Dir(ourBootFile), 0o755); err != nil {
		return err
	}
	if !sameFile(bootIDFile, ourBootFile) {
		if err := os.Remove(ourBootFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	file, err := os.OpenFile(ourBootFile, os.O_WRONLY|os.O_CREATE, 0o444)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	// Ids are of one length: a reader sees the old or the new one.
	if _, err := file.WriteAt([]byte(id+"\n"), 0); err != nil {
		return err
	}
	if sameFile(bootIDFile, ourBootFile) {
		return nil
	}
	return unix.Mount(ourBootFile, bootIDFile, "", unix.MS_BIND, "")
}

func sameFile(a, b string) bool {
	x, xerr := os.Stat(a)
	y, yerr := os.Stat(b)
	return xerr == nil && yerr == nil && os.SameFile(x, y)
}

// Sync implements System.
func (Kernel) Sync() { unix.Sync() }

// ext4ResizeFS is EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64).
const ext4ResizeFS = 0x40086610

// The kernel tells of a grown disk some time after the host has grown it.
const (
	growLimit = 10 * time.Second
	growPoll  = 10 * time.Millisecond
)

// GrowRoot implements System.
func (Kernel) GrowRoot(ctx context.Context, minBytes int64) error {
	ctx, cancel := context.WithTimeout(ctx, growLimit)
	defer cancel()
	tick := time.NewTicker(growPoll)
	defer tick.Stop()
	for {
		size, err := rootDiskSize()
		if err != nil {
			return fmt.Errorf("size of the root disk: %w", err)
		}
		if size >= minBytes {
			return GrowExt4("/", size)
		}
		select {
		case <-ctx.Done():
			return fault.Unavailablef("the guest sees a disk of %d bytes, after %v still not %d: grow it on the host first", size, growLimit, minBytes)
		case <-tick.C:
		}
	}
}

func rootDiskSize() (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat("/", &st); err != nil {
		return 0, err
	}
	return DiskSize(unix.Major(st.Dev), unix.Minor(st.Dev))
}

// DiskSize gives the bytes of a block device.
func DiskSize(major, minor uint32) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/size", major, minor))
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	return sectors * 512, err
}

// GrowExt4 grows the mounted ext4 file system at path to a disk of size bytes. One that is as large already stays.
func GrowExt4(path string, size int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return err
	}
	if st.Type != unix.EXT4_SUPER_MAGIC {
		return fault.Unavailablef("the root file system is no ext4 (magic %#x): only ext4 can be grown", st.Type)
	}
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	blocks := uint64(size) / uint64(st.Bsize)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), ext4ResizeFS, uintptr(unsafe.Pointer(&blocks)))
	if errno != 0 {
		return fmt.Errorf("grow the root file system to %d blocks: %w", blocks, errno)
	}
	return nil
}

// Time that processes get to end by themselves at power-off.
const (
	endGrace = 500 * time.Millisecond
	endPoll  = 10 * time.Millisecond
)

// PowerOff implements System.
func (k Kernel) PowerOff() error {
	unix.Sync()
	// All but the first process and ourselves.
	_ = unix.Kill(-1, unix.SIGTERM)
	_ = unix.Kill(-1, unix.SIGCONT)
	for end := time.Now().Add(endGrace); time.Now().Before(end) && userProcesses() > 0; {
		time.Sleep(endPoll)
	}
	_ = unix.Kill(-1, syscall.SIGKILL)
	unix.Sync()
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		// Something still holds files open for writing, an init of the image perhaps: make the kernel do it.
		_ = os.WriteFile("/proc/sysrq-trigger", []byte("u"), 0)
		unix.Sync()
	}
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// userProcesses counts the processes that are neither the kernel's, nor the first, nor ours.
func userProcesses() int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	count := 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		// Kernel threads and zombies have no command line.
		if line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline"); err == nil && len(line) > 0 {
			count++
		}
	}
	return count
}
