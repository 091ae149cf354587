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
	mode, client, err := a.begin(format)
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
	if mode == modeText {
		a.printHead()
	}
	return listing[vmStatus]{
		name:   func(vm vmStatus) string { return vm.VMID },
		header: []string{"VM ID", "STATE", "CREATED", "ALIAS"},
		row:    func(vm vmStatus) []string { return []string{vm.VMID, vm.State, when(vm.CreatedAt), text(vm.Alias)} },
		empty:  "No VMs found.",
	}.print(a, mode, pages, all)
}

// printHead shows HEAD above the list of VMs.
func (a *App) printHead() {
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
}

func (a *App) statusOne(ctx context.Context, typed string, format formatFlags) error {
	mode, client, err := a.begin(format)
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
	return a.show(mode, s.VMID, s, a.fields([][2]string{
		{"VM ID", s.VMID}, {"Alias", text(s.Alias)}, {"State", s.State}, {"Reason", s.Reason},
		{"Owner", s.OwnerID}, {"Created", when(s.CreatedAt)}, {"Is deleted", expires(s.ExpiresAt, "")},
	}))
}
