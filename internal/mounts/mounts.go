// Package mounts changes what a process sees of the file system, also below a chroot, where "/" is no mount of its own. Its
// functions are for a process, or a thread with a file system context of its own, that is alone in its mount namespace.
package mounts

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Root is the root directory that a process had when it made its mounts private.
type Root struct {
	chrooted bool
}

// MakePrivate keeps mounts made here from travelling to the host, and the host's to here. That is a property of whole
// mounts; below a chroot "/" is none, and the namespace's own root has to be found.
func MakePrivate() (Root, error) {
	private := func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }
	if err := private(); !errors.Is(err, unix.EINVAL) {
		return Root{}, err
	}
	return Root{chrooted: true}, keepingDirectory("/", func() error {
		return errors.Join(leaveChroot(), private())
	}, func() error { return unix.Chroot(".") })
}

// Replace makes the mount at dir "/", lets go of everything else and changes into it.
func (r Root) Replace(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	if r.chrooted {
		if err := keepingDirectory(".", leaveChroot); err != nil {
			return err
		}
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	// The old root is now mounted over the new one.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// keepingDirectory opens dir, does the first thing, comes back into dir and does the rest.
func keepingDirectory(dir string, first func() error, rest ...func() error) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := first(); err != nil {
		return err
	}
	if err := unix.Fchdir(fd); err != nil {
		return err
	}
	for _, do := range rest {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

// leaveChroot makes the root of the mount namespace this process's root and working directory. A chroot is no jail for
// root: from outside of a new one, ".." leads all the way up.
func leaveChroot() error {
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Chroot("/usr"); err != nil {
		return err
	}
	for {
		var here, above unix.Stat_t
		if err := errors.Join(unix.Stat(".", &here), unix.Stat("..", &above)); err != nil {
			return err
		}
		if here.Dev == above.Dev && here.Ino == above.Ino {
			return unix.Chroot(".")
		}
		if err := unix.Chdir(".."); err != nil {
			return err
		}
	}
}
