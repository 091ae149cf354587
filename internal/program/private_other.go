//go:build !linux

package program

import (
	"context"
	"os/exec"
)

// Private runs a command; mount namespaces are Linux's.
func Private(ctx context.Context, command func() *exec.Cmd) error {
	cmd := command()
	KillGroup(cmd)
	_, err := Run(ctx, cmd)
	return err
}
