package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/fault"
)

// stateResult is the JSON output of pause and resume.
type stateResult struct {
	VMID  string `json:"vm_id"`
	State string `json:"state"` // Paused or Running
}

func (a *App) pauseCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "pause [vm|alias]", Short: "Stop the CPUs of a VM; memory is kept",
		Example: "  vers pause dev",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.setState(cmd.Context(), optional(args), "Paused", waitFlags{}, format)
		},
		ValidArgsFunction: a.completeVMs,
	}
	format.add(cmd)
	return cmd
}

func (a *App) resumeCommand() *cobra.Command {
	var format formatFlags
	var wait waitFlags
	cmd := &cobra.Command{
		Use: "resume [vm|alias]", Short: "Let a paused VM run on, or wake one that sleeps",
		Example: "  vers resume dev",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.setState(cmd.Context(), optional(args), "Running", wait, format)
		},
		ValidArgsFunction: a.completeVMs,
	}
	wait.add(cmd, "return when commands can run in the VM")
	format.add(cmd)
	return cmd
}

func (a *App) setState(ctx context.Context, typed, state string, wait waitFlags, format formatFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	t, err := a.target(ctx, typed)
	if err != nil {
		return err
	}
	change, past, limitOf := client.Pause, "paused", listLimit
	if state == "Running" {
		change, past, limitOf = client.Resume, "resumed", startLimit
	}
	limited, cancel := limit(ctx, limitOf, "changing the state")
	defer cancel()
	if err := change(limited, t.ID); err != nil {
		return t.missing(err)
	}
	if wait.wait {
		if err := a.waitJob(ctx, client, "resume", t.ID, wait.timeout); err != nil {
			return err
		}
	}
	return a.show(mode, t.ID, stateResult{t.ID, state}, func() {
		a.usedHead(t)
		fmt.Fprintf(a.Streams.Out, "✓ VM '%s' %s\n", t.ID, past)
		fmt.Fprintf(a.Streams.Out, "State: %s\n", state)
	})
}

// usedHead tells in text output that HEAD was meant.
func (a *App) usedHead(t target) {
	if t.IsHead {
		fmt.Fprintf(a.Streams.Out, "Using current HEAD VM: %s\n", t.ID)
	}
}

func (a *App) resizeCommand() *cobra.Command {
	var format formatFlags
	var size int64
	cmd := &cobra.Command{
		Use: "resize [vm|alias] --size MIB", Short: "Grow the disk of a VM",
		Long: `Grow the root disk of a VM and the file system on it to --size MiB, while it runs. Disks never shrink, so
the size must be above the present one.`,
		Example: "  vers resize dev --size 4096",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("size") {
				return usagef("--size is required: the new size of the disk in MiB")
			}
			return a.resize(cmd.Context(), optional(args), size, format)
		},
		ValidArgsFunction: a.completeVMs,
	}
	cmd.Flags().Int64Var(&size, "size", 0, "new size in MiB")
	format.add(cmd)
	return cmd
}

// resizeResult is the JSON output of resize.
type resizeResult struct {
	VMID      string `json:"vm_id"`
	FSSizeMiB int64  `json:"fs_size_mib"`
}

func (a *App) resize(ctx context.Context, typed string, size int64, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	if size <= 0 {
		return fault.Invalidf("Invalid filesystem size (must be positive)")
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	t, err := a.target(ctx, typed)
	if err != nil {
		return err
	}
	err = func() error {
		defer a.Streams.progress("Resizing the disk of VM '%s'", t.ID)()
		ctx, cancel := limit(ctx, listLimit, "resizing")
		defer cancel()
		return client.Resize(ctx, t.ID, size)
	}()
	switch {
	case api.IsNotFound(err):
		return t.missing(err)
	case err != nil:
		return err
	}
	return a.show(mode, t.ID, resizeResult{t.ID, size}, func() {
		a.usedHead(t)
		fmt.Fprintf(a.Streams.Out, "✓ Disk of VM '%s' resized to %d MiB\n", t.ID, size)
	})
}
