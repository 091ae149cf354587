package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vers/internal/audit"
	"vers/internal/daemon"
)

func auditCommand(o *options) *cobra.Command {
	var since, organisation string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "audit",
		Short:   "Who did what to which object with which result, oldest first",
		Example: "  versd audit --since 24h --org acme\n  versd audit --json | jq 'select(.result != \"ok\")'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.load(cmd)
			if err != nil {
				return err
			}
			filter := audit.Filter{Org: organisation}
			if since != "" {
				if filter.Since, err = parseWhen(since, time.Now(), -1); err != nil {
					return fmt.Errorf("--since: %w", err)
				}
			}
			lines := json.NewEncoder(cmd.OutOrStdout())
			return daemon.Audit(c, filter, func(e audit.Entry) error {
				if asJSON {
					return lines.Encode(e)
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), auditLine(e))
				return err
			})
		},
	}
	cmd.Flags().StringVar(&since, "since", "", "only what came after: a duration (24h, 7d), a date or a time")
	cmd.Flags().StringVar(&organisation, "org", "", "only this organisation, by name or id")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per line")
	return cmd
}

func auditLine(e audit.Entry) string {
	who := cmp.Or(e.Actor, e.Key)
	if e.Org != "" {
		who += " of " + e.Org
	}
	line := fmt.Sprintf("%s  %s  %s  %s: %s", e.Time.Local().Format("2006-01-02 15:04:05"), who, e.Action, e.Object, e.Result)
	var made []string
	for _, name := range slices.Sorted(maps.Keys(e.Made)) {
		made = append(made, name+"="+e.Made[name])
	}
	if len(made) > 0 {
		line += "  (" + strings.Join(made, ", ") + ")"
	}
	return line
}
