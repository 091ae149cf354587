package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"vers/api"
	"vers/internal/cli/session"
)

func (a *App) connectCommand() *cobra.Command {
	var host string
	cmd := &cobra.Command{
		Use: "connect [vm|alias]", Aliases: []string{"ssh"}, Short: "Open a shell in a VM",
		Long: `Open an interactive shell in a VM (default: HEAD), with a terminal of the size of yours. A paused VM is
resumed, a booting one waited for. The VM's SSH host key is verified. A lost connection is made again,
with a new shell.

Input may be a pipe: then the shell reads it to its end, without a terminal. The exit code is 0 when the
shell has ended, whatever its own status was; use 'vers exec' for the status of a command.`,
		Example: "  vers connect\n  vers connect dev\n  echo 'uname -a' | vers connect dev",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if host != "" {
				a.Streams.note("note: --host is ignored, the shell is reached through the server")
			}
			return a.connect(cmd.Context(), optional(args))
		},
		ValidArgsFunction: a.completeVMs,
	}
	cmd.Flags().StringVar(&host, "host", "", "ignored: the shell is reached through the server")
	_ = cmd.Flags().MarkHidden("host")
	return cmd
}

func (a *App) connect(ctx context.Context, typed string) error {
	client, err := a.api()
	if err != nil {
		return err
	}
	t, err := a.target(ctx, typed)
	if err != nil {
		return err
	}
	if err := a.wake(ctx, client, t); err != nil {
		return err
	}
	if a.Streams.InTTY {
		a.Streams.note("Connecting to VM %s", t.describe())
	}
	term := a.env("TERM")
	if term == "" {
		term = "xterm-256color"
	}
	shell := session.Shell{
		Dial: func(ctx context.Context) (*ssh.Client, error) {
			client, err := session.Dial(ctx, client, t.ID)
			return client, t.missing(err)
		},
		In: a.Streams.In, Out: a.Streams.Out, Err: a.Streams.Err,
		Notice:   func(text string) { a.Streams.note("%s", text) },
		Terminal: a.Streams.Terminal, Term: term, Delays: a.reconnectDelays,
	}
	return shell.Run(ctx)
}

// wake makes sure that the VM runs: it resumes a paused one and waits for a booting one. One that sleeps wakes by
// itself.
func (a *App) wake(ctx context.Context, client *api.Client, t target) error {
	limited, cancel := limit(ctx, listLimit, "asking for the VM")
	vm, err := client.VM(limited, t.ID)
	cancel()
	if err != nil {
		return t.missing(err)
	}
	switch vm.State {
	case api.StateRunning:
		return nil
	case api.StatePaused:
		a.Streams.note("VM %s is paused, resuming it", t.describe())
		limited, cancel := limit(ctx, startLimit, "resuming the VM")
		defer cancel()
		if err := client.Resume(limited, t.ID); err != nil {
			return t.missing(err)
		}
		return nil
	case api.StateSleeping:
		return nil // the connection wakes it
	case api.StateBooting:
		a.Streams.note("VM %s is booting, waiting for it", t.describe())
		return a.waitRunning(ctx, client, t.ID, 5*time.Minute)
	}
	return fmt.Errorf("cannot connect: %w", notRunning(vm))
}
