package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/local"
)

func (a *App) statusCommand() *cobra.Command {
	var format formatFlags
	var pages pageFlags
	cmd := &cobra.Command{
		Use: "status [vm|alias]", Aliases: []string{"ps"}, Short: "List the VMs, or show one",
		Example: `  vers status
  vers status dev
  vers status --format json | jq -r '.[] | select(.state == "paused").vm_id'
  vers kill $(vers status -q)`,
		Args: arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return a.statusOne(cmd.Context(), args[0], format)
			}
			return a.statusAll(cmd.Context(), format, pages)
		},
		ValidArgsFunction: a.completeVMs,
	}
	format.addQuiet(cmd, "print ids only")
	pages.add(cmd)
	return cmd
}

// vmStatus is a VM in JSON.
type vmStatus struct {
	api.VM
	Alias *string `json:"alias"`
}

func withAlias(vm api.VM, aliases map[string]string) vmStatus {
	s := vmStatus{VM: vm}
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	if names := local.Names(aliases, vm.VMID); len(names) > 0 {
		s.Alias = &names[0]
	}
	return s
}

func (a *App) statusAll(ctx context.Context, format formatFlags, pages pageFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "listing the VMs")
	defer cancel()
	vms, err := client.VMs(ctx)
	if err != nil {
		return err
	}
	aliases, err := a.aliases().All()
	if err != nil {
		return err
	}
	all := make([]vmStatus, 0, len(vms))
	for _, vm := range vms {
		all = append(all, withAlias(vm, aliases))
	}
	items, forJSON, hint, err := cut(pages, all)
	if err != nil {
		return err
	}
	switch mode {
	case modeJSON:
		return printJSON(a.Streams.Out, forJSON)
	case modeQuiet:
		for _, vm := range items {
			fmt.Fprintln(a.Streams.Out, vm.VMID)
		}
	default:
		a.printStatus(items, len(all))
	}
	if hint != "" {
		a.Streams.note("%s", hint)
	}
	return nil
}

func (a *App) printStatus(items []vmStatus, total int) {
	out := a.Streams.Out
	id, state, err := a.folder().Head()
	switch {
	case err != nil:
		fmt.Fprintln(out, "HEAD: unreadable, set it with 'vers checkout <vm>'")
	case state == local.NoProject:
		fmt.Fprintln(out, "HEAD: none, this folder is not a vers repository (run 'vers init' or 'vers run')")
	case state == local.Empty:
		fmt.Fprintln(out, "HEAD: empty (start a VM with 'vers run')")
	default:
		fmt.Fprintf(out, "HEAD: %s\n", id)
	}
	fmt.Fprintln(out)
	if total == 0 {
		fmt.Fprintln(out, "No VMs found.")
		return
	}
	rows := make([][]string, 0, len(items))
	for _, vm := range items {
		rows = append(rows, []string{vm.VMID, vm.State, when(vm.CreatedAt), text(vm.Alias)})
	}
	a.Streams.table([]string{"VM ID", "STATE", "CREATED", "ALIAS"}, rows)
}

func (a *App) statusOne(ctx context.Context, typed string, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	t, err := a.target(ctx, typed)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "asking for the VM")
	defer cancel()
	vm, err := client.VM(ctx, t.ID)
	if err != nil {
		return t.missing(err)
	}
	aliases, err := a.aliases().All()
	if err != nil {
		return err
	}
	s := withAlias(vm, aliases)
	switch mode {
	case modeJSON:
		return printJSON(a.Streams.Out, s)
	case modeQuiet:
		fmt.Fprintln(a.Streams.Out, s.VMID)
		return nil
	}
	a.fields([][2]string{
		{"VM ID", s.VMID}, {"Alias", text(s.Alias)}, {"State", s.State}, {"Reason", s.Reason},
		{"Owner", s.OwnerID}, {"Created", when(s.CreatedAt)},
	})
	return nil
}

// fields prints lines "Name: value"; empty values are left out.
func (a *App) fields(pairs [][2]string) {
	for _, pair := range pairs {
		if pair[1] != "" {
			fmt.Fprintf(a.Streams.Out, "%s: %s\n", pair[0], clean(pair[1]))
		}
	}
}
