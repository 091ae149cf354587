package mounts

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// OwnRoot makes "/" a mount, where it is none, below a chroot: programs that change their root or remount it, such as
// container engines, need that. The working directory stays.
func (r Root) OwnRoot() error {
	if !r.chrooted {
		return nil
	}
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "root.")
	if err != nil {
		return err
	}
	if err := unix.Mount("/", dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return errors.Join(err, os.Remove(dir))
	}
	if err := unix.Mount("", dir, "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := r.Replace(dir); err != nil {
		return err
	}
	return errors.Join(os.Remove(dir), os.Chdir(here)) // the folder is under the mount, which is above now
}
