package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mountPoint is a file system of the kernel's.
type mountPoint struct {
	kind, target string
	flags        uintptr
	data         string
}

const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mountEarly mounts what the first process needs itself. They move to the new root later.
func mountEarly() error {
	for _, m := range []mountPoint{
		{"proc", "/proc", quiet, ""},
		{"sysfs", "/sys", quiet, ""},
		{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		err := unix.Mount(m.kind, m.target, m.kind, m.flags, m.data)
		if err != nil && !errors.Is(err, unix.EBUSY) { // EBUSY: the kernel has mounted devtmpfs
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

// mountLate completes the file systems of a running machine.
func mountLate() error {
	for _, dir := range []string{"/dev/pts", "/dev/shm", "/dev/mqueue", "/run/lock"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, m := range []mountPoint{
		{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"mqueue", "/dev/mqueue", quiet, ""},
		{"cgroup2", "/sys/fs/cgroup", quiet, "nsdelegate"},
	} {
		if err := unix.Mount(m.kind, m.target, m.kind, m.flags, m.data); err != nil {
			if m.kind == "devpts" {
				return fmt.Errorf("mount %s: %w", m.target, err)
			}
			complain("mount "+m.target, err) // a kernel may lack it; the rest works
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, "/dev/"+name); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// switchRoot makes the disk the root of this process, frees the initramfs and takes the mounts along.
func switchRoot() error {
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp", "root"} {
		mode := fs.FileMode(0o755)
		if dir == "root" {
			mode = 0o700
		}
		if err := os.Mkdir(filepath.Join(newRoot, dir), mode); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(newRoot, "tmp"), fs.ModeSticky|0o777); err != nil {
		complain("open /tmp to everybody", err)
	}
	for _, dir := range []string{"/dev", "/sys", "/run", "/proc"} {
		if err := unix.Mount(dir, newRoot+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s to the new root: %w", dir, err)
		}
	}
	freeInitramfs()
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the new root to /: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	return os.Chdir("/")
}

// freeInitramfs deletes its files: they are memory. The running program stays, through its open mapping.
func freeInitramfs() {
	var root unix.Stat_t
	if unix.Lstat("/", &root) != nil {
		return
	}
	_ = filepath.WalkDir("/", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil // what cannot be read stays
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil {
			return nil
		}
		if st.Dev != root.Dev {
			return fs.SkipDir // the disk, or a mount
		}
		if entry.Type().IsRegular() {
			_ = os.Remove(path)
		}
		return nil
	})
}

const (
	resolverFile = "/etc/resolv.conf"
	gateway      = "10.77.0.1"
)

// writeResolver points the image at the network's DNS, unless it names a server of its own. A link whose target is not
// there yet, as with systemd-resolved, is replaced: the target would name a server that this network does not have.
func writeResolver(root string) error {
	path := filepath.Join(root, resolverFile)
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if namesServer(string(data)) {
			return nil
		}
	} else if err == nil {
		if target, err := os.Readlink(path); err == nil && linkNamesServer(root, target) {
			return nil
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte("nameserver "+gateway+"\n"), 0o644)
}

// linkNamesServer follows one step of a link inside root.
func linkNamesServer(root, target string) bool {
	if !filepath.IsAbs(target) {
		target = filepath.Join("/etc", target)
	}
	path := filepath.Join(root, target)
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
		return false
	}
	data, err := os.ReadFile(path)
	return err == nil && namesServer(string(data))
}

func namesServer(text string) bool {
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "nameserver" {
			return true
		}
	}
	return false
}
