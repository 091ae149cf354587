package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/ref"
	"vers/internal/fault"
)

func (a *App) domainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "domain", Aliases: []string{"domains"}, Short: "Host names that lead to VMs",
		Long: `A domain is a host name that leads to a port of a VM, through the server's gateway; its DNS record must
name the gateway. It is private, unless --public opens it: a request needs an API key of the organisation
(Authorization: Bearer …), or the signed link of 'vers open'. A domain ends with its VM.`,
		Example: `  vers domain create app.example.org dev --port 3000
  vers open dev --domain app.example.org
  vers domain create www.example.org dev --public
  vers domain list`,
	}
	return group(cmd, a.domainCreateCommand(), a.domainListCommand(), a.domainDeleteCommand())
}

func (a *App) domainCreateCommand() *cobra.Command {
	var format formatFlags
	var req api.DomainRequest
	cmd := &cobra.Command{
		Use: "create <domain> [vm|alias]", Aliases: []string{"add"}, Short: "Let a host name lead to a VM (default: HEAD)",
		Example: "  vers domain create app.example.org dev --port 3000",
		Args:    arguments(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Domain = args[0]
			return a.domainCreate(cmd.Context(), req, optional(args[1:]), format)
		},
	}
	cmd.Flags().IntVarP(&req.Port, "port", "p", 80, "port of the VM")
	cmd.Flags().BoolVar(&req.Public, "public", false, "open to everybody, without a key")
	format.add(cmd)
	return cmd
}

func (a *App) domainCreate(ctx context.Context, req api.DomainRequest, vm string, format formatFlags) error {
	if req.Port < 1 || req.Port > 65535 {
		return fault.Invalidf("invalid port %d: use a number from 1 to 65535", req.Port)
	}
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	t, err := a.target(ctx, vm)
	if err != nil {
		return err
	}
	req.VMID = t.ID
	ctx, cancel := limit(ctx, listLimit, "making the domain")
	defer cancel()
	d, err := client.CreateDomain(ctx, req)
	if err != nil {
		return t.missing(err)
	}
	return a.show(mode, d.Domain, d, func() {
		a.usedHead(t)
		a.say("✓ %s leads to port %d of VM %s (%s)", d.Domain, d.Port, t.describe(), access(d))()
	})
}

func access(d api.Domain) string {
	if d.Public {
		return "public"
	}
	return "private"
}

func (a *App) domainListCommand() *cobra.Command {
	var format formatFlags
	var pages pageFlags
	cmd := &cobra.Command{
		Use: "list [vm|alias]", Aliases: []string{"ls"}, Short: "List the domains of the organisation, or of one VM",
		Example: "  vers domain list",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			mode, client, err := a.begin(format)
			if err != nil {
				return err
			}
			t := target{}
			if len(args) > 0 {
				if t, err = a.target(cmd.Context(), args[0]); err != nil {
					return err
				}
			}
			ctx, cancel := limit(cmd.Context(), listLimit, "listing the domains")
			defer cancel()
			all, err := client.Domains(ctx, t.ID)
			if err != nil {
				return t.missing(err)
			}
			return listing[api.Domain]{
				name:   func(d api.Domain) string { return d.Domain },
				header: []string{"DOMAIN", "VM", "PORT", "ACCESS", "CREATED"},
				row: func(d api.Domain) []string {
					return []string{d.Domain, d.VMID, strconv.Itoa(d.Port), access(d), when(d.CreatedAt)}
				},
				empty: "No domains.",
			}.print(a, mode, pages, all)
		},
		ValidArgsFunction: a.completeVMs,
	}
	format.addQuiet(cmd, "print names only")
	pages.add(cmd)
	return cmd
}

func (a *App) domainDeleteCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "delete <domain>...", Aliases: []string{"rm", "remove"}, Short: "Take host names from their VMs, named by domain or id",
		Example: "  vers domain delete app.example.org",
		Args:    arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			mode, client, err := a.begin(format)
			if err != nil {
				return err
			}
			ctx, cancel := limit(cmd.Context(), listLimit, "deleting the domain")
			defer cancel()
			all, err := client.Domains(ctx, "")
			if err != nil {
				return err
			}
			return eachResult(a, mode, args, func(name string) (map[string]string, string, error) {
				d, err := findDomain(all, name)
				if err == nil {
					err = client.DeleteDomain(ctx, d.DomainID)
				}
				return map[string]string{"domain_id": d.DomainID, "domain": d.Domain}, fmt.Sprintf("✓ Domain '%s' deleted", d.Domain), err
			})
		},
	}
	format.add(cmd)
	return cmd
}

func findDomain(all []api.Domain, name string) (api.Domain, error) {
	id, isID := ref.ID(name)
	for _, d := range all {
		if d.Domain == strings.TrimSuffix(strings.ToLower(name), ".") || isID && d.DomainID == id {
			return d, nil
		}
	}
	return api.Domain{}, fault.NotFoundf("domain '%s' not found; 'vers domain list' shows them", name)
}
