package cli

import (
	"context"

	"github.com/spf13/cobra"

	"vers/internal/cli/local"
)

func (a *App) renameCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "rename [vm|alias] <new-alias>", Short: "Give a VM another alias",
		Long: `Give a VM (default: HEAD) another alias on this machine. The alias by which the VM is named is dropped; named
by its id or as HEAD, its only alias is.`,
		Example: "  vers rename dev old-dev\n  vers rename web        # HEAD",
		Args:    arguments(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			vm := ""
			if len(args) == 2 {
				vm = args[0]
			}
			return a.rename(cmd.Context(), vm, args[len(args)-1], format)
		},
		ValidArgsFunction: a.completeVMs,
	}
	format.add(cmd)
	return cmd
}

// renameResult is the JSON output of rename.
type renameResult struct {
	VMID     string `json:"vm_id"`
	Alias    string `json:"alias"`
	Previous string `json:"previous,omitempty"`
}

func (a *App) rename(ctx context.Context, vm, name string, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	if err := newAlias(name); err != nil {
		return err
	}
	t, err := a.target(ctx, vm)
	if err != nil {
		return err
	}
	previous := t.Alias
	if previous == "" {
		all, err := a.aliases().All()
		if err != nil {
			return err
		}
		if names := local.Names(all, t.ID); len(names) == 1 {
			previous = names[0]
		}
	}
	if err := a.setAlias(ctx, name, t.ID); err != nil {
		return err
	}
	if previous != "" && previous != name {
		if _, err := a.aliases().Remove(ctx, previous); err != nil {
			return err
		}
	}
	return a.show(mode, name, renameResult{t.ID, name, previous}, func() {
		a.usedHead(t)
		a.say("%s -> %s", name, t.ID)()
	})
}
