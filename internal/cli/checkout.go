package cli

import (
	"context"

	"github.com/spf13/cobra"

	"vers/internal/cli/local"
	"vers/internal/fault"
)

func (a *App) checkoutCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "checkout [vm|alias]", Short: "Move HEAD to a VM",
		Long:    "Let HEAD name another VM, after asking the server whether it exists. Without an argument, show HEAD.",
		Example: "  vers checkout dev\n  vers checkout",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.checkout(cmd.Context(), optional(args), format)
		},
		ValidArgsFunction: a.completeVMs,
	}
	format.add(cmd)
	return cmd
}

// headResult is the JSON output of head and checkout.
type headResult struct {
	Head string `json:"head"`
}

func (a *App) checkout(ctx context.Context, typed string, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	if typed == "" {
		id, err := a.currentHead()
		if err != nil {
			return err
		}
		return a.show(mode, id, headResult{id}, a.say("Current HEAD: %s", id))
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	t, err := a.target(ctx, typed)
	if err != nil {
		return err
	}
	stop := a.Streams.progress("Verifying VM '%s'", typed)
	limited, cancel := limit(ctx, checkLimit, "verifying the VM")
	defer cancel()
	vm, err := client.VM(limited, t.ID)
	stop()
	if err != nil {
		return t.missing(err)
	}
	if err := a.folder().SetHead(vm.VMID); err != nil {
		return err
	}
	return a.show(mode, vm.VMID, headResult{vm.VMID}, a.say("Switched to VM '%s'", vm.VMID))
}

func (a *App) headCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "head", Short: "Print the VM that HEAD names",
		Long:    "Print the id of the VM that HEAD names and nothing else, for scripts. Exit code 3 when HEAD is not set.",
		Example: "  vers exec \"$(vers head)\" uptime",
		Args:    arguments(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			mode, err := format.mode()
			if err != nil {
				return err
			}
			id, err := a.currentHead()
			if err != nil {
				return err
			}
			return a.show(mode, id, headResult{id}, a.say("%s", id))
		},
	}
	format.add(cmd)
	return cmd
}

// currentHead gives the id that HEAD holds; not found if there is none.
func (a *App) currentHead() (string, error) {
	id, state, err := a.folder().Head()
	switch {
	case err != nil:
		return "", err
	case state == local.NoProject:
		return "", fault.NotFoundf("there is no HEAD in this folder; start a VM with 'vers run' or choose one with 'vers checkout <vm>'")
	case state == local.Empty:
		return "", fault.NotFoundf("HEAD is empty; start a VM with 'vers run' or choose one with 'vers checkout <vm>'")
	}
	return id, nil
}
