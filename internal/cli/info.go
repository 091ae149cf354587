package cli

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/local"
)

func (a *App) infoCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "info [vm|alias]", Aliases: []string{"get"}, Short: "Show all about a VM",
		Example: "  vers info\n  vers info dev --format json | jq -r .ip",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.info(cmd.Context(), optional(args), format)
		},
		ValidArgsFunction: a.completeVMs,
	}
	format.addQuiet(cmd, "print the id only")
	return cmd
}

// infoResult is the JSON output of info.
type infoResult struct {
	api.VMMetadata
	Alias *string `json:"alias"`
}

func (a *App) info(ctx context.Context, typed string, format formatFlags) error {
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
	meta, err := client.Metadata(ctx, t.ID)
	if err != nil {
		return t.missing(err)
	}
	aliases, err := a.aliases().All()
	if err != nil {
		return err
	}
	r := infoResult{VMMetadata: meta}
	if names := local.Names(aliases, meta.VMID); len(names) > 0 {
		r.Alias = &names[0]
	}
	if r.Labels == nil {
		r.Labels = map[string]string{}
	}
	slept, woken := "", ""
	if r.SleptAt != nil {
		slept = when(*r.SleptAt)
	}
	if r.WokenAt != nil {
		woken = when(*r.WokenAt)
	}
	deleted := ""
	if r.DeletedAt != nil {
		deleted = when(*r.DeletedAt)
	}
	network := [][2]string{{"Egress", r.Egress}}
	if r.Internal {
		network = append(network, [2]string{"Internal network", "yes"})
	}
	if r.Traffic != nil {
		network = append(network, trafficFields(*r.Traffic)...)
	}
	return a.show(mode, r.VMID, r, a.fields(append([][2]string{
		{"VM ID", r.VMID}, {"Alias", text(r.Alias)}, {"State", r.State}, {"Reason", r.Reason}, {"IP", r.IP},
		{"Owner", r.OwnerID}, {"Created", when(r.CreatedAt)}, {"Deleted", deleted},
		{"Parent commit", text(r.ParentCommitID)}, {"Grandparent VM", text(r.GrandparentVM)},
		{"Memory", mib(r.MemSizeMiB)}, {"vCPUs", number(r.VCPUCount)}, {"Disk", mib(r.FSSizeMiB)},
		{"Sleeps after", sleepsAfter(meta)}, {"Fell asleep", slept}, {"Woke", woken}, {"Is deleted", expires(r.ExpiresAt, "")},
		{"Image", r.ImageName}, {"Kernel", r.KernelName},
	}, network...)))
}

func mib(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10) + " MiB"
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}
