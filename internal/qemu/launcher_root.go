package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"vers/internal/mounts"
)

// systemTrees is what QEMU needs of the system: its program, libraries, firmware.
var systemTrees = []string{"/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/etc/ld.so.cache"}

// rootBuilder puts together the small root directory that QEMU sees. It works in the launcher's own mount namespace.
type rootBuilder struct {
	at    string // where the new root is mounted until it becomes "/"
	old   mounts.Root
	trees []tree
}

// tree is a detached copy of a mount, waiting for its place.
type tree struct {
	path     string // its place, the same as outside
	fd       int
	dir      bool
	writable bool
}

// buildRoot makes a new root with only plan's files and moves the process into it.
func buildRoot(plan launchPlan) error {
	// Mounts made here must not travel to the host, nor the host's to here.
	root, err := mounts.MakePrivate()
	if err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	b := rootBuilder{at: plan.Dir, old: root}
	links := map[string]string{}
	for _, path := range systemTrees {
		if target, err := os.Readlink(path); err == nil {
			links[path] = target
		} else if err := b.take(path, false); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	for _, path := range plan.Trees {
		if err := b.take(path, false); err != nil {
			return err
		}
	}
	for _, path := range append(plan.Writable, plan.Dir) {
		if err := b.take(path, true); err != nil {
			return err
		}
	}
	devices := []string{"/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"}
	if plan.KVM {
		devices = append(devices, "/dev/kvm")
	}
	for _, path := range devices {
		if err := b.take(path, true); err != nil {
			return err
		}
	}
	// From here the old tree is hidden below the new root; everything needed of it is held by a descriptor.
	if err := unix.Mount("vers", b.at, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=1m,nr_inodes=1024"); err != nil {
		return fmt.Errorf("mount the new root: %w", err)
	}
	for path, target := range links {
		if err := os.Symlink(target, b.at+path); err != nil {
			return fmt.Errorf("build the new root: %w", err)
		}
	}
	if err := b.place(plan.Confinement == confinedAsRoot); err != nil {
		return err
	}
	return b.enter(plan.Dir)
}

// take makes a detached copy of the mount at path. A path below one taken already is left alone, unless it adds the
// right to write.
func (b *rootBuilder) take(path string, writable bool) error {
	path = filepath.Clean(path)
	for _, t := range b.trees {
		if within(path, t.path) && (t.writable || !writable) {
			return nil
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("show %s to QEMU: %w", path, err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("show %s to QEMU: copy its mount: %w", path, err)
	}
	b.trees = append(b.trees, tree{path: path, fd: fd, dir: info.IsDir(), writable: writable})
	return nil
}

func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// place attaches the copies. Sorted by need: trees were taken in an order in which no later one hides an earlier one
// that is still wanted, except a directory above another; those go first.
func (b *rootBuilder) place(asRoot bool) error {
	for placed := make([]bool, len(b.trees)); ; {
		next := -1
		for i, t := range b.trees {
			if !placed[i] && (next < 0 || len(t.path) < len(b.trees[next].path)) {
				next = i
			}
		}
		if next < 0 {
			return nil
		}
		placed[next] = true
		if err := b.attach(b.trees[next], asRoot); err != nil {
			return err
		}
	}
}

func (b *rootBuilder) attach(t tree, asRoot bool) error {
	target := b.at + t.path
	if asRoot && t.path == "/dev/kvm" {
		// Of its own user, QEMU may not open the host's node; it gets one that only it can see.
		if err := ownNode(t.path, target); err == nil {
			return nil
		} // a container may forbid mknod: use the host's node, and its permissions
	}
	if _, err := os.Lstat(target); errors.Is(err, os.ErrNotExist) {
		if err := makePlace(target, t.dir); err != nil {
			return fmt.Errorf("show %s to QEMU: make a place for it: %w", t.path, err)
		}
	}
	if err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("show %s to QEMU: attach it: %w", t.path, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID}
	if !t.writable {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if !within(t.path, "/dev") {
		attr.Attr_set |= unix.MOUNT_ATTR_NODEV
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("show %s to QEMU: restrict it: %w", t.path, err)
	}
	return nil
}

func makePlace(target string, dir bool) error {
	if dir {
		return os.MkdirAll(target, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
	if err != nil {
		return err
	}
	return f.Close()
}

func ownNode(device, target string) error {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if err := unix.Mknod(target, unix.S_IFCHR|0o666, int(st.Rdev)); err != nil {
		return err
	}
	return os.Chmod(target, 0o666)
}

// enter makes the new root "/", lets go of the old one and goes to dir.
func (b *rootBuilder) enter(dir string) error {
	if err := b.old.Replace(b.at); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make the new root read-only: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("enter %s: %w", dir, err)
	}
	return nil
}
