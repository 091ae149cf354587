package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"vers/internal/fault"
)

// DefaultDiskBytes is the size of the default image: the smallest disk a VM can have. Larger disks are overlays on it,
// and the guest grows its file system into them while it runs.
const DefaultDiskBytes = 1 << 30

// ext4Features are spelled out, so that the file system does not depend on the host's mke2fs.conf. resize_inode keeps
// room for the group descriptors of a file system 1000 times as large, so growing moves nothing.
const ext4Features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super," +
	"large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

// loopUnavailable is how mountScript says that mounting failed, not what came after it.
const loopUnavailable = 42

// extractFunction is shell: extract ARCHIVE DIR keeps everything tar can keep, and gives a root file system the
// directories that the agent mounts on, whatever the archive has there. Nodes in /dev are left out: devtmpfs covers
// them in the guest, and making them needs root.
const extractFunction = `set -eu
extract() {
  tar --extract --file "$1" --directory "$2" --exclude='./dev/*' --xattrs --xattrs-include='*' --acls --numeric-owner --same-owner --preserve-permissions
  cd "$2"
  mkdir -p dev proc sys run tmp
  chmod 0755 . dev run
  chmod 0555 proc sys
  chmod 1777 tmp
  cd /
}
`

// mountScript mounts the image $1 on $2 and extracts the archive $3. When the mount goes,
// the loop device goes with it.
const mountScript = extractFunction + `mount -o loop,noatime -t ext4 "$1" "$2" || exit 42
trap 'umount "$2"' EXIT
extract "$3" "$2"
trap - EXIT
umount "$2"`

// treeScript extracts the archive $2 into the empty directory $3 and makes the file system $1 from it. The other
// arguments are mke2fs's.
const treeScript = extractFunction + `image=$1 archive=$2 tree=$3; shift 3
extract "$archive" "$tree"
mke2fs "$@" -d "$tree" "$image"
rm -rf "$tree"`

// tarToExt4 writes the content of a trusted tar archive as an ext4 file system of size bytes into the new sparse file
// path. With root and loop devices the file is mounted and filled, which keeps everything; otherwise mke2fs copies an
// extracted tree, which cuts times to whole seconds. On error path does not exist.
func tarToExt4(ctx context.Context, archive, path string, size int64, progress io.Writer) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(path)
		}
	}()
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	if err := fillExt4(ctx, archive, path, progress); err != nil {
		return err
	}
	// The journal and inode tables are zeroes on disk; as holes they cost nothing, and need not be copied or hashed.
	if _, err := run(ctx, exec.CommandContext(ctx, "fallocate", "-d", path)); err != nil {
		say(progress, "note: the image keeps some blocks of zeroes: %v", err)
	}
	return syncFile(path)
}

func fillExt4(ctx context.Context, archive, path string, progress io.Writer) error {
	reason := "not root"
	if os.Geteuid() == 0 {
		err := fillByMount(ctx, archive, path)
		if err == nil || ctx.Err() != nil {
			return err
		}
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != loopUnavailable {
			return err
		}
		reason = "no loop device"
	}
	say(progress, "%s: making the file system with mke2fs -d (slower, times in whole seconds)", reason)
	return fillByTree(ctx, archive, path)
}

// mke2fsArgs are the options of every file system we make, without its path.
func mke2fsArgs() []string {
	return []string{
		"-q", "-F", "-t", "ext4", "-O", ext4Features, "-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-J", "size=16",
		// Tables are initialised now: a guest that did it later would write to its disk for nothing.
		"-E", "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard", "-L", "root",
	}
}

func fillByMount(ctx context.Context, archive, path string) error {
	if _, err := run(ctx, exec.CommandContext(ctx, "mke2fs", append(mke2fsArgs(), path)...)); err != nil {
		return err
	}
	mountPoint, err := os.MkdirTemp("", "vers-mnt-")
	if err != nil {
		return err
	}
	defer os.Remove(mountPoint) // never RemoveAll: should it still be mounted, its content must stay
	return runPrivate(ctx, func() *exec.Cmd {
		return exec.CommandContext(ctx, "/bin/sh", "-c", mountScript, "sh", path, mountPoint, archive)
	})
}

// fillByTree needs no loop device, and without root only a user namespace with a range of subordinate ids, so that
// files can belong to other users than root.
func fillByTree(ctx context.Context, archive, path string) error {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".tree-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	tree := filepath.Join(dir, "tree")
	args := append([]string{"/bin/sh", "-c", treeScript, "sh", path, archive, tree}, mke2fsArgs()...)
	if os.Geteuid() != 0 {
		args = append([]string{"unshare", "--user", "--map-root-user", "--map-auto", "--"}, args...)
	}
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	killGroup(cmd)
	_, err = run(ctx, cmd)
	return withoutRoot(err)
}

// withoutRoot adds what to do to the error of a step that is only sure to work with root.
func withoutRoot(err error) error {
	if err == nil || os.Geteuid() == 0 || fault.Is(err, fault.Unavailable) {
		return err
	}
	return fault.Unavailablef("making an image without root needs user namespaces and the Debian package uidmap; "+
		"or have root run 'versd prepare' on this data directory once: %w", err)
}

// runPrivate runs a command in a mount namespace of its own if it can: its mounts then end with it, however it ends.
// Without root, and below a chroot whose / is no mount point, it cannot; then the command itself must undo its mounts.
func runPrivate(ctx context.Context, command func() *exec.Cmd) error {
	cmd := command()
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	killGroup(cmd)
	_, err := run(ctx, cmd)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) { // it was not started
		cmd = command()
		killGroup(cmd)
		_, err = run(ctx, cmd)
	}
	return err
}

// killGroup puts a command into its own process group and ends the whole group when its context ends.
func killGroup(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.Cancel = func() error {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
}

// usedBytes says how much of a file's blocks are allocated.
func usedBytes(path string) (int64, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Blocks * 512, nil
}
