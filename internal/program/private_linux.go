package program

import (
	"context"
	"errors"
	"os/exec"
	"syscall"
)

// Private runs a command in a mount namespace of its own if it can: its mounts then end with it, however it ends.
// Without root, and below a chroot whose / is no mount point, it cannot; then the command itself must undo its mounts.
func Private(ctx context.Context, command func() *exec.Cmd) error {
	cmd := command()
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	KillGroup(cmd)
	_, err := Run(ctx, cmd)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) { // it was not started
		cmd = command()
		KillGroup(cmd)
		_, err = Run(ctx, cmd)
	}
	return err
}
