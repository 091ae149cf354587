package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"vers/internal/catalog"
	"vers/internal/daemon"
	"vers/internal/egress"
)

func orgEgressCommand(o *options) *cobra.Command {
	var asJSON, clear bool
	var set []string
	cmd := &cobra.Command{
		Use:   "egress NAME",
		Short: "Show or set what the VMs of an organisation may reach",
		Long: `Without flags the policy is shown. --set replaces it by parts with commas between them:

  none | internet | inherit     the mode; inherit is what [egress] in the configuration permits
  allow=RULE,RULE,...           permitted besides; without a mode nothing else is
  deny=RULE,RULE,...            refused, whatever is allowed
  bandwidth=10MiB               of each VM, bytes per second in each direction
  connections=50                that each VM may begin, per second

A rule is an address, a network or a name, with or without ports: 10.0.0.0/8:80,443, example.org:443, *.example.org.

The policy only narrows what [egress] permits, and VMs only narrow it. A running versd applies it within a second, and cuts
connections that are not permitted any more. docs/network.md has the order of decisions.`,
		Example: "  versd org egress acme --set none\n  versd org egress acme --set internet,deny=192.0.2.0/24 --set bandwidth=20MiB,connections=100\n  versd org egress acme --clear",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.withAccounts(cmd, func(a *daemon.Accounts) error {
				org, err := a.OrganisationByName(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if len(set) > 0 || clear {
					if err := setOrgEgress(cmd, a, org, set); err != nil {
						return err
					}
				}
				return showOrgEgress(cmd, a, org, asJSON)
			})
		},
	}
	cmd.Flags().StringArrayVar(&set, "set", nil, "the new policy (repeatable: the parts are joined)")
	cmd.Flags().BoolVar(&clear, "clear", false, "remove the policy: [egress] in the configuration alone holds")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.MarkFlagsMutuallyExclusive("set", "clear")
	return cmd
}

// setOrgEgress replaces the policy; no parts remove it.
func setOrgEgress(cmd *cobra.Command, a *daemon.Accounts, org catalog.Organisation, parts []string) error {
	var policy *egress.Policy
	shown := "cleared"
	if len(parts) > 0 {
		parsed, err := egress.Parse(parts...)
		if err != nil {
			return err
		}
		policy, shown = &parsed, parsed.String()
	}
	return a.Record("org egress", org.Name, org, func() (map[string]string, error) {
		return map[string]string{"egress": shown}, a.SetEgress(cmd.Context(), org.ID, policy)
	})
}

func showOrgEgress(cmd *cobra.Command, a *daemon.Accounts, org catalog.Organisation, asJSON bool) error {
	policy, err := a.Egress(cmd.Context(), org.ID)
	if err != nil {
		return err
	}
	if asJSON {
		return writeJSON(cmd.OutOrStdout(), struct {
			Name   string         `json:"name"`
			Egress *egress.Policy `json:"egress"`
		}{org.Name, policy})
	}
	text := "inherit (what [egress] in the configuration permits)"
	if policy != nil {
		text = policy.String()
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
	return err
}
