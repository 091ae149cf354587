package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/fault"
)

// waitFlags are --wait and its own limit.
type waitFlags struct {
	wait    bool
	timeout time.Duration
}

func (w *waitFlags) add(cmd *cobra.Command, help string) {
	cmd.Flags().BoolVar(&w.wait, "wait", false, help)
	cmd.Flags().DurationVar(&w.timeout, "wait-timeout", 5*time.Minute, "give up --wait after this time")
}

// waitRunning returns when commands can run in the VM. It asks often at first, since restores take milliseconds.
func (a *App) waitRunning(ctx context.Context, client *api.Client, id string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout,
		rewordf(context.DeadlineExceeded, "VM '%s' was not ready after %v (--wait-timeout); it is still there, see 'vers info %s'", id, timeout, id))
	defer cancel()
	stop := a.Streams.progress("Waiting for VM '%s'", id)
	defer stop()
	for delay := 100 * time.Millisecond; ; delay = min(delay*3/2, time.Second) {
		vm, err := client.VM(ctx, id)
		if err != nil {
			return err
		}
		switch vm.State {
		case api.StateRunning:
			return nil
		case api.StateBooting:
		default:
			return notRunning(vm)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(delay):
		}
	}
}

func notRunning(vm api.VM) error {
	if vm.Reason != "" {
		return fault.Conflictf("VM '%s' is %s: %s", vm.VMID, vm.State, vm.Reason)
	}
	return fault.Conflictf("VM '%s' is %s", vm.VMID, vm.State)
}

// started does what run and run-commit have in common once there is a VM: HEAD, alias, waiting.
func (a *App) started(ctx context.Context, client *api.Client, command, id, alias string, w waitFlags) error {
	if err := a.moveHead(id); err != nil {
		return err
	}
	if alias != "" {
		if err := a.setAlias(ctx, alias, id); err != nil {
			return err
		}
	}
	if w.wait {
		if err := a.waitJob(ctx, client, command, id, w.timeout); err != nil {
			return fmt.Errorf("waiting for VM '%s': %w", id, err)
		}
	}
	return nil
}
