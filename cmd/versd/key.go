package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"vers/internal/catalog"
	"vers/internal/daemon"
	"vers/internal/registry"
)

func keyCommand(o *options) *cobra.Command {
	return group("key", "API keys", keyCreateCommand(o), keyListCommand(o), keyRevokeCommand(o))
}

// keyJSON is an API key in JSON output. APIKey is set only when the key is made.
type keyJSON struct {
	KeyID      string     `json:"key_id"`
	Org        string     `json:"org"`
	Name       string     `json:"name"`
	IsLocal    bool       `json:"is_local"`
	IsAdmin    bool       `json:"is_admin"`
	CreatedAt  time.Time  `json:"created_at"`
	ExpiresAt  *time.Time `json:"expires_at"`
	RevokedAt  *time.Time `json:"revoked_at"`
	LastUsedAt *time.Time `json:"last_used_at"`
	APIKey     string     `json:"api_key,omitempty"`
}

func showKey(k catalog.Key, org string) keyJSON {
	return keyJSON{KeyID: k.ID, Org: org, Name: k.Name, IsLocal: k.IsLocal, IsAdmin: k.IsAdmin, CreatedAt: k.CreatedAt.UTC(),
		ExpiresAt: k.ExpiresAt, RevokedAt: k.RevokedAt, LastUsedAt: k.LastUsedAt}
}

func keyCreateCommand(o *options) *cobra.Command {
	var organisation, name, expires string
	var admin, quiet, asJSON bool
	cmd := &cobra.Command{
		Use:     "create",
		Short:   "Make an API key; it is shown once",
		Example: "  versd key create --org acme --name ci --expires 90d\n  versd key create --admin --name prometheus -q",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var options []registry.KeyOption
			if expires != "" {
				at, err := parseWhen(expires, time.Now(), +1)
				if err != nil {
					return fmt.Errorf("--expires: %w", err)
				}
				options = append(options, registry.Expires(at))
			}
			if admin {
				options = append(options, registry.Admin())
			}
			return o.withAccounts(cmd, func(a *daemon.Accounts) error {
				org, err := a.OrganisationByName(cmd.Context(), organisation)
				if err != nil {
					return err
				}
				var key catalog.Key
				var secret string
				err = a.Record("key create", name, org, func() (_ map[string]string, err error) {
					key, secret, err = a.CreateKey(cmd.Context(), org.ID, name, options...)
					return map[string]string{"key_id": key.ID}, err
				})
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				if asJSON {
					shown := showKey(key, org.Name)
					shown.APIKey = secret
					return writeJSON(out, shown)
				}
				if !quiet {
					fmt.Fprintf(out, "Key '%s' of organisation '%s', shown only now:\n", name, org.Name)
				}
				_, err = fmt.Fprintln(out, secret)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&organisation, "org", "", "organisation (default: the first one)")
	cmd.Flags().StringVar(&name, "name", "key", "name of the key")
	cmd.Flags().StringVar(&expires, "expires", "", "when the key ends: a duration (90d, 12h), a date or a time (default: never)")
	cmd.Flags().BoolVar(&admin, "admin", false, "the key may also read what concerns the whole server, such as /metrics")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print the key only")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// organisations gives the named one, or all.
func organisations(cmd *cobra.Command, a *daemon.Accounts, name string) ([]catalog.Organisation, error) {
	if name == "" {
		return a.Organisations(cmd.Context())
	}
	org, err := a.OrganisationByName(cmd.Context(), name)
	return []catalog.Organisation{org}, err
}

func keyListCommand(o *options) *cobra.Command {
	var organisation string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "API keys of one or all organisations",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.withAccounts(cmd, func(a *daemon.Accounts) error {
				orgs, err := organisations(cmd, a, organisation)
				if err != nil {
					return err
				}
				shown := []keyJSON{}
				rows := [][]string{{"ORG", "NAME", "STATE", "LAST USED", "EXPIRES", "ID"}}
				for _, org := range orgs {
					keys, err := a.Keys(cmd.Context(), org.ID)
					if err != nil {
						return err
					}
					for _, key := range keys {
						shown = append(shown, showKey(key, org.Name))
						rows = append(rows, []string{org.Name, key.Name, keyState(key, time.Now()), showTime(key.LastUsedAt, "-"),
							showTime(key.ExpiresAt, "never"), key.ID})
					}
				}
				if asJSON {
					return writeJSON(cmd.OutOrStdout(), shown)
				}
				return writeTable(cmd.OutOrStdout(), rows)
			})
		},
	}
	cmd.Flags().StringVar(&organisation, "org", "", "organisation (default: all)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func keyState(k catalog.Key, now time.Time) string {
	switch {
	case k.RevokedAt != nil:
		return "revoked"
	case k.ExpiresAt != nil && !now.Before(*k.ExpiresAt):
		return "expired"
	case k.IsLocal:
		return "local socket"
	case k.IsAdmin:
		return "usable, admin"
	}
	return "usable"
}

func keyRevokeCommand(o *options) *cobra.Command {
	var organisation string
	cmd := &cobra.Command{
		Use:   "revoke ID|NAME",
		Short: "End the life of an API key, at once",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.withAccounts(cmd, func(a *daemon.Accounts) error {
				org, err := a.OrganisationByName(cmd.Context(), organisation)
				if err != nil {
					return err
				}
				key, err := a.FindKey(cmd.Context(), org.ID, args[0])
				if err != nil {
					return fmt.Errorf("%w in organisation '%s'", err, org.Name)
				}
				err = a.Record("key revoke", key.ID, org, func() (map[string]string, error) {
					return nil, a.RevokeKey(cmd.Context(), org.ID, key.ID)
				})
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "Key '%s' (%s) of organisation '%s' revoked\n", key.Name, key.ID, org.Name)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&organisation, "org", "", "organisation (default: the first one)")
	return cmd
}
