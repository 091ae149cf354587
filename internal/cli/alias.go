package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"vers/internal/fault"
)

func (a *App) aliasCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "alias [name]", Short: "Show the names of VMs on this machine",
		Long: `Aliases are names for VMs, kept in ~/.vers/aliases.json on this machine. run, run-commit and branch set
them. Without an argument all are listed; with a name the VM's id is printed.

The VM gets its alias as the label vers.alias too, for tools that ask the server: ssh <alias>@<server>,
<alias>.internal. Commands here go by the names on this machine alone.`,
		Example: `  vers alias
  vers alias dev
  vers alias set dev 2b4a1c2d
  vers alias rm dev`,
		Args: arguments(cobra.MaximumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.showAliases(optional(args), format)
		},
		ValidArgsFunction: a.completeAliases,
	}
	format.addQuiet(cmd, "print names only")
	cmd.AddCommand(a.aliasSetCommand(), a.aliasRemoveCommand())
	return cmd
}

// aliasResult is the JSON output about one alias.
type aliasResult struct {
	Name string `json:"name"`
	VMID string `json:"vm_id"`
}

func (a *App) showAliases(name string, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	all, err := a.aliases().All()
	if err != nil {
		return err
	}
	out := a.Streams.Out
	if name != "" {
		id, ok := all[name]
		if !ok {
			return fault.NotFoundf("alias '%s' not found; 'vers alias' lists them", name)
		}
		return a.show(mode, id, aliasResult{name, id}, a.say("%s", id))
	}
	names := slices.Sorted(maps.Keys(all))
	switch mode {
	case modeJSON:
		return printJSON(out, all)
	case modeQuiet:
		for _, name := range names {
			fmt.Fprintln(out, name)
		}
		return nil
	}
	if len(all) == 0 {
		fmt.Fprintln(out, "No aliases defined")
	}
	for _, name := range names {
		fmt.Fprintf(out, "%s -> %s\n", name, all[name])
	}
	return nil
}

func (a *App) aliasSetCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "set <name> <vm>", Short: "Let a name stand for a VM",
		Example: "  vers alias set dev 2b4a1c2d",
		Args:    arguments(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.setAliasCommand(cmd.Context(), args[0], args[1], format)
		},
		ValidArgsFunction: a.completeAliasSet,
	}
	format.add(cmd)
	return cmd
}

func (a *App) setAliasCommand(ctx context.Context, name, vm string, format formatFlags) error {
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
	if err := a.setAlias(ctx, name, t.ID); err != nil {
		return err
	}
	return a.show(mode, name, aliasResult{name, t.ID}, a.say("%s -> %s", name, t.ID))
}

func (a *App) aliasRemoveCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "rm <name>...", Aliases: []string{"remove", "delete"}, Short: "Forget aliases; the VMs stay",
		Example: "  vers alias rm dev smoke",
		Args:    arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			mode, err := format.mode()
			if err != nil {
				return err
			}
			return eachResult(a, mode, args, func(name string) (map[string]string, string, error) {
				found, err := a.aliases().Remove(cmd.Context(), name)
				if err == nil && !found {
					err = fault.NotFoundf("alias '%s' not found; 'vers alias' lists them", name)
				}
				return map[string]string{"name": name}, fmt.Sprintf("✓ Alias '%s' removed", name), err
			})
		},
		ValidArgsFunction: a.completeAliases,
	}
	format.add(cmd)
	return cmd
}
