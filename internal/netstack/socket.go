package netstack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
)

// directory is the VM's directory, held open: the sockets in it are named through /proc/self/fd, because a UNIX
// socket address has room for 108 bytes only and a data directory may be deeper than that.
type directory struct {
	file *os.File
	path string
}

func openDirectory(path string) (*directory, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the VM's directory %s: %w", path, err)
	}
	return &directory{file: os.NewFile(uintptr(fd), path), path: path}, nil
}

func (d *directory) fd() int { return int(d.file.Fd()) }

func procPath(fd int, name string) string {
	return filepath.Join(fmt.Sprintf("/proc/self/fd/%d", fd), name)
}

// receiver is our end of a network: a bound datagram socket into which QEMU puts frames.
type receiver struct {
	file    *os.File
	dir     *directory
	name    string
	dev     uint64 // identity of the socket file that we made
	inode   uint64
	unnamed atomic.Bool
}

// bindReceiver makes the socket name in dir. It is ready, with its owner and mode, before it appears under its name,
// and replaces one that is left from a versd which ended without closing it: QEMU sends its next frame to ours.
func bindReceiver(dir *directory, name string, uid, gid int) (_ *receiver, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("socket %s: %w", filepath.Join(dir.path, name), err)
		}
	}()
	var old unix.Stat_t
	if err := unix.Fstatat(dir.fd(), name, &old, unix.AT_SYMLINK_NOFOLLOW); err == nil && old.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, fault.Conflictf("something that is no socket has its place; remove it")
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	file := os.NewFile(uintptr(fd), name)
	defer func() {
		if err != nil {
			_ = file.Close()
		}
	}()
	// Before bind, so that the file is never open to others, whatever the umask is.
	if err := unix.Fchmod(fd, 0o600); err != nil {
		return nil, fmt.Errorf("set mode: %w", err)
	}
	temporary := fmt.Sprintf(".%s.%d", name, os.Getpid())
	if err := unix.Unlinkat(dir.fd(), temporary, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("remove the remains of an earlier start: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: procPath(dir.fd(), temporary)}); err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	r := &receiver{file: file, dir: dir, name: name}
	if err := r.publish(temporary, uid, gid); err != nil {
		_ = unix.Unlinkat(dir.fd(), temporary, 0)
		return nil, err
	}
	return r, nil
}

// publish gives the socket file its owner and its name. The directory belongs to the QEMU process, which may be in
// the guest's hands: the owner is changed through a descriptor that is known to be a socket and no symbolic link.
func (r *receiver) publish(temporary string, uid, gid int) error {
	path, err := unix.Openat(r.dir.fd(), temporary, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer unix.Close(path)
	var stat unix.Stat_t
	if err := unix.Fstat(path, &stat); err != nil {
		return fmt.Errorf("look at it: %w", err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFSOCK || int(stat.Uid) != os.Geteuid() {
		return fault.Conflictf("somebody else replaced it while it was being made")
	}
	r.dev, r.inode = stat.Dev, stat.Ino
	if uid != 0 || gid != 0 {
		if err := unix.Fchownat(path, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
			return fmt.Errorf("give it to user %d: %w", uid, err)
		}
	}
	if err := unix.Renameat(r.dir.fd(), temporary, r.dir.fd(), r.name); err != nil {
		return fmt.Errorf("rename: %w", err)
	}
	return nil
}

// close ends reads and removes the socket file, unless another versd has put its own there meanwhile.
func (r *receiver) close() {
	if r.unnamed.Swap(true) {
		return
	}
	var stat unix.Stat_t
	err := unix.Fstatat(r.dir.fd(), r.name, &stat, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && stat.Dev == r.dev && stat.Ino == r.inode {
		_ = unix.Unlinkat(r.dir.fd(), r.name, 0)
	}
	_ = r.file.Close()
}

// sender is the way to QEMU's end. The socket is a connected one of its own: a connected socket waits for room in
// the peer's queue (a paused VM takes nothing), and needs no path look-up per frame. It is not the receiving socket,
// since a connected socket would refuse frames from a QEMU that was started anew.
type sender struct {
	file *os.File
	raw  interface {
		Control(func(fd uintptr)) error
	}
	dir       *directory
	name      string
	uid       int // owner that QEMU's socket must have; 0: any
	connected atomic.Bool
}

func newSender(dir *directory, name string, uid int) (*sender, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("create a socket to %s: %w", name, err)
	}
	// A wish: the kernel caps it at net.core.wmem_max. Frames in QEMU's queue count against the sender's buffer.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
	s := &sender{file: os.NewFile(uintptr(fd), name), dir: dir, name: name, uid: uid}
	if s.raw, err = s.file.SyscallConn(); err != nil {
		_ = s.file.Close()
		return nil, fmt.Errorf("create a socket to %s: %w", name, err)
	}
	return s, nil
}

// connect finds QEMU's socket. A symbolic link or a file of another user is not followed: it could lead our frames,
// with our rights, into another VM's network.
func (s *sender) connect() error {
	path, err := unix.Openat(s.dir.fd(), s.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(path)
	var stat unix.Stat_t
	if err := unix.Fstat(path, &stat); err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFSOCK || (s.uid != 0 && int(stat.Uid) != s.uid) {
		return fmt.Errorf("%s is not a socket of user %d", s.name, s.uid)
	}
	var result error
	err = s.raw.Control(func(fd uintptr) {
		result = unix.Connect(int(fd), &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d", path)})
	})
	if err == nil {
		err = result
	}
	s.connected.Store(err == nil)
	return err
}

// send delivers a frame, waiting for room in QEMU's queue. Any other failure means that the frame is lost, as on a
// cable that is not plugged in; nobody needs to hear of it.
func (s *sender) send(frame []byte) bool {
	for range 2 {
		if !s.connected.Load() && s.connect() != nil {
			return false
		}
		_, err := s.file.Write(frame)
		if err == nil {
			return true
		}
		if errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EMSGSIZE) {
			return false
		}
		// QEMU ended (ECONNREFUSED) or was never there (ENOTCONN): look for a new one, once.
		s.connected.Store(false)
	}
	return false
}

// trySend is send for those who must not wait.
func (s *sender) trySend(frame []byte) {
	if !s.connected.Load() && s.connect() != nil {
		return
	}
	var err error
	if s.raw.Control(func(fd uintptr) { err = unix.Send(int(fd), frame, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) }) != nil {
		return
	}
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		s.connected.Store(false)
	}
}

func (s *sender) close() { _ = s.file.Close() }
