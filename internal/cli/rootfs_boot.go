//go:build linux

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"vers/api"
	"vers/internal/build/buildfs"
	"vers/internal/config"
	"vers/internal/fault"
	"vers/internal/ident"
)

// cleanupLimit bounds the removal of what a check made on the server.
const cleanupLimit = 2 * time.Minute

// checkInVM boots the content in a VM of the server, under a name of its own, and runs the script's checks there. Image and
// VM are removed in any case.
func (a *App) checkInVM(ctx context.Context, client *api.Client, checks buildfs.Checks, o api.UploadOptions, write func(io.Writer) error) (err error) {
	o.Name = "check-" + strings.ReplaceAll(ident.New(), "-", "")
	a.Streams.note("Checking in a VM")
	if err := a.upload(ctx, client, o, write); err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
		defer cancel()
		_, removeErr := client.DeleteImage(ctx, o.Name)
		err = errors.Join(err, removeErr)
	}()
	return a.bootImage(ctx, client, o.Name, checks.Commands)
}

// bootImage starts a VM of an image, waits until its agent answers, runs commands that must succeed, and removes the VM.
func (a *App) bootImage(ctx context.Context, client *api.Client, image string, commands []string) (err error) {
	made, err := client.Image(ctx, image)
	if err != nil {
		return err
	}
	size := max(made.SizeMiB, config.DefaultProject().Machine.FSSizeMiB)
	vm, err := client.NewRoot(ctx, api.NewRootRequest{VMConfig: api.VMConfig{ImageName: &image, FSSizeMiB: &size}}, true)
	if vm.VMID != "" {
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
			defer cancel()
			err = errors.Join(err, client.DeleteVM(ctx, vm.VMID))
		}()
	}
	if err != nil {
		return fmt.Errorf("boot %s: %w", image, err)
	}
	for i, line := range append([]string{"true"}, commands...) {
		output := &strings.Builder{}
		code, err := client.Run(ctx, vm.VMID, api.ExecRequest{Command: []string{"/bin/sh", "-c", line}}, output, output, a.debug)
		switch {
		case err != nil:
			return fmt.Errorf("check '%s' in the VM: %w", line, err)
		case code != 0 && i > 0:
			return fault.New(fault.Internal, "checks.commands[%d] (%s) failed in the VM: exit code %d\n%s", i-1, line, code, strings.TrimSpace(output.String()))
		case code != 0:
			return fault.New(fault.Internal, "the VM boots, but runs no commands: exit code %d\n%s", code, strings.TrimSpace(output.String()))
		}
	}
	return nil
}
