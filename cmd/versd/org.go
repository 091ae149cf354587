package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"vers/internal/catalog"
	"vers/internal/daemon"
)

func orgCommand(o *options) *cobra.Command {
	return group("org", "Organisations: who shares VMs, commits and repositories",
		orgCreateCommand(o), orgListCommand(o), orgDeleteCommand(o), orgQuotaCommand(o), orgEgressCommand(o))
}

// orgJSON is an organisation in JSON output.
type orgJSON struct {
	OrgID       string    `json:"org_id"`
	Name        string    `json:"name"`
	CreatedAt   time.Time `json:"created_at"`
	VMs         int64     `json:"vms"`
	Commits     int64     `json:"commits"`
	StoredBytes int64     `json:"stored_bytes"`
}

func orgCreateCommand(o *options) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "create NAME",
		Short:   "Make an organisation; it has no keys yet",
		Example: "  versd org create acme\n  versd key create --org acme --name ci --expires 90d",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.withAccounts(cmd, func(a *daemon.Accounts) error {
				var org catalog.Organisation
				err := a.Record("org create", args[0], catalog.Organisation{Name: args[0]}, func() (_ map[string]string, err error) {
					org, err = a.CreateOrganisation(cmd.Context(), args[0])
					return map[string]string{"org_id": org.ID}, err
				})
				if err != nil {
					return err
				}
				if asJSON {
					return writeJSON(cmd.OutOrStdout(), orgJSON{OrgID: org.ID, Name: org.Name, CreatedAt: org.CreatedAt.UTC()})
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "Organisation '%s' created. Make a key for it: versd key create --org %s\n", org.Name, org.Name)
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func orgListCommand(o *options) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "All organisations, with what they have",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.withAccounts(cmd, func(a *daemon.Accounts) error {
				orgs, err := a.Organisations(cmd.Context())
				if err != nil {
					return err
				}
				shown := make([]orgJSON, len(orgs))
				rows := [][]string{{"NAME", "VMS", "COMMITS", "STORED", "CREATED", "ID"}}
				for i, org := range orgs {
					j := orgJSON{OrgID: org.ID, Name: org.Name, CreatedAt: org.CreatedAt.UTC()}
					if j.VMs, j.Commits, j.StoredBytes, err = a.Holdings(cmd.Context(), org.ID); err != nil {
						return err
					}
					shown[i] = j
					rows = append(rows, []string{j.Name, strconv.FormatInt(j.VMs, 10), strconv.FormatInt(j.Commits, 10),
						fmt.Sprintf("%d MiB", j.StoredBytes>>20), showTime(&j.CreatedAt, ""), j.OrgID})
				}
				if asJSON {
					return writeJSON(cmd.OutOrStdout(), shown)
				}
				return writeTable(cmd.OutOrStdout(), rows)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func orgDeleteCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete an organisation that has no VMs, commits and repositories; its keys end",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.withAccounts(cmd, func(a *daemon.Accounts) error {
				org, err := a.OrganisationByName(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				err = a.Record("org delete", org.Name, org, func() (map[string]string, error) {
					return nil, a.DeleteOrganisation(cmd.Context(), org.ID)
				})
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "Organisation '%s' deleted\n", org.Name)
				return err
			})
		},
	}
}

// quotaFlag is one quota on the command line.
type quotaFlag struct {
	name, what string
	value      **int64
	parse      func(string) (int64, error)
	show       func(int64) string
}

func quotaFlags(q *catalog.Quotas) []quotaFlag {
	count := func(n int64) string { return strconv.FormatInt(n, 10) }
	return []quotaFlag{
		{"vms", "VMs", &q.VMs, parseCount, count},
		{"vcpus", "vCPUs", &q.VCPUs, parseCount, count},
		{"memory", "memory", &q.MemoryMiB, parseMiB, showMiB},
		{"storage", "disk space of commits", &q.StorageMiB, parseMiB, showMiB},
	}
}

func orgQuotaCommand(o *options) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "quota NAME",
		Short: "Show or set what an organisation may use at a time",
		Long: `Without flags the quotas in force are shown. Each flag takes a number, "none" for no limit, or "default" for what the
configuration says under [quota]. A quota below what is used refuses more and ends nothing.`,
		Example: "  versd org quota acme --vms 20 --memory 32GiB --storage 500GiB\n  versd org quota acme --vms default",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.withAccounts(cmd, func(a *daemon.Accounts) error {
				org, err := a.OrganisationByName(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if err := setQuotas(cmd, a, org); err != nil {
					return err
				}
				return showQuotas(cmd, a, org, asJSON)
			})
		},
	}
	for _, f := range quotaFlags(&catalog.Quotas{}) {
		cmd.Flags().String(f.name, "", "limit of "+f.what)
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// setQuotas changes the quotas whose flags are given.
func setQuotas(cmd *cobra.Command, a *daemon.Accounts, org catalog.Organisation) error {
	q, err := a.OwnQuotas(cmd.Context(), org.ID)
	if err != nil {
		return err
	}
	set := map[string]string{}
	for _, f := range quotaFlags(&q) {
		if !cmd.Flags().Changed(f.name) {
			continue
		}
		text := cmd.Flag(f.name).Value.String()
		switch text {
		case "default":
			*f.value = nil
		case "none":
			none := int64(catalog.Unlimited)
			*f.value = &none
		default:
			n, err := f.parse(text)
			if err != nil {
				return fmt.Errorf("--%s: %w, or \"none\", or \"default\"", f.name, err)
			}
			*f.value = &n
		}
		set[f.name] = text
	}
	if len(set) == 0 {
		return nil
	}
	return a.Record("org quota", org.Name, org, func() (map[string]string, error) {
		return set, a.SetQuotas(cmd.Context(), org.ID, q)
	})
}

func showQuotas(cmd *cobra.Command, a *daemon.Accounts, org catalog.Organisation, asJSON bool) error {
	q, err := a.Quotas(cmd.Context(), org.ID)
	if err != nil {
		return err
	}
	own, err := a.OwnQuotas(cmd.Context(), org.ID)
	if err != nil {
		return err
	}
	if asJSON {
		return writeJSON(cmd.OutOrStdout(), struct {
			Name       string `json:"name"`
			VMs        *int64 `json:"vms"`
			VCPUs      *int64 `json:"vcpus"`
			MemoryMiB  *int64 `json:"memory_mib"`
			StorageMiB *int64 `json:"storage_mib"`
		}{org.Name, q.VMs, q.VCPUs, q.MemoryMiB, q.StorageMiB})
	}
	rows := [][]string{{"QUOTA", "LIMIT", "SET BY"}}
	ownFlags := quotaFlags(&own)
	for i, f := range quotaFlags(&q) {
		limit, by := "none", "versd org quota"
		if *f.value != nil {
			limit = f.show(**f.value)
		}
		if *ownFlags[i].value == nil {
			by = "configuration"
		}
		rows = append(rows, []string{f.what, limit, by})
	}
	return writeTable(cmd.OutOrStdout(), rows)
}
