package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/ref"
	"vers/internal/fault"
)

func (a *App) keysCommand() *cobra.Command {
	return group(&cobra.Command{
		Use: "keys", Aliases: []string{"key"}, Short: "API keys of the organisation, and SSH keys that log in to its VMs",
		Long: `API keys of the organisation. The server keeps only hashes: a key is shown once, when it is made.

'add' lets an SSH public key log in to all VMs of the organisation, through the server's SSH port; 'remove'
takes that right from it, at once.`,
		Example: `  vers keys create ci --expires-in 90d
  vers keys list
  vers keys revoke ci
  vers key add ~/.ssh/id_ed25519.pub
  vers key list --ssh`,
	}, a.keysListCommand(), a.keysCreateCommand(), a.keysRevokeCommand(), a.keysAddCommand(), a.keysRemoveCommand())
}

func keyState(k api.Key) string {
	switch {
	case k.RevokedAt != nil:
		return "revoked"
	case k.ExpiresAt != nil && k.ExpiresAt.Before(time.Now()):
		return "expired"
	}
	return "active"
}

func whenOr(t *time.Time, none string) string {
	if t == nil {
		return none
	}
	return when(*t)
}

func (a *App) keysListCommand() *cobra.Command {
	var format formatFlags
	var pages pageFlags
	var ssh bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the API keys, revoked ones too, or the SSH keys",
		Example: "  vers keys list\n  vers keys list --ssh",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			mode, client, err := a.begin(format)
			if err != nil {
				return err
			}
			ctx, cancel := limit(cmd.Context(), listLimit, "listing the keys")
			defer cancel()
			if ssh {
				return a.listSSHKeys(ctx, client, mode, pages)
			}
			all, err := client.Keys(ctx)
			if err != nil {
				return err
			}
			return listing[api.Key]{
				name:   func(k api.Key) string { return k.KeyID },
				header: []string{"KEY ID", "STATE", "CREATED", "EXPIRES", "LAST USED", "NAME"},
				row: func(k api.Key) []string {
					return []string{k.KeyID, keyState(k), when(k.CreatedAt), whenOr(k.ExpiresAt, "never"), whenOr(k.LastUsedAt, "never"), k.Name}
				},
				empty: "No API keys.",
			}.print(a, mode, pages, all)
		},
	}
	cmd.Flags().BoolVar(&ssh, "ssh", false, "SSH keys instead of API keys")
	format.addQuiet(cmd, "print ids only")
	pages.add(cmd)
	return cmd
}

func (a *App) keysCreateCommand() *cobra.Command {
	var format formatFlags
	var expiresIn string
	cmd := &cobra.Command{
		Use: "create <name>", Short: "Make an API key; it is shown only now",
		Example: "  vers keys create ci --expires-in 90d\n  KEY=$(vers keys create ci -q)",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.keysCreate(cmd.Context(), args[0], expiresIn, format)
		},
	}
	cmd.Flags().StringVar(&expiresIn, "expires-in", "", "end of the key from now on, for example 12h or 90d (default: never)")
	format.addQuiet(cmd, "print the key only")
	return cmd
}

func (a *App) keysCreate(ctx context.Context, name, expiresIn string, format formatFlags) error {
	req := api.KeyRequest{Name: name}
	if expiresIn != "" {
		age, err := days(expiresIn)
		if err != nil {
			return err
		}
		end := time.Now().Add(age)
		req.ExpiresAt = &end
	}
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "making the key")
	defer cancel()
	made, err := client.CreateKey(ctx, req)
	if err != nil {
		return err
	}
	return a.show(mode, made.APIKey, made, func() {
		fmt.Fprintf(a.Streams.Out, "✓ Key '%s' created (%s)\n%s\n", clean(made.Name), made.KeyID, made.APIKey)
		a.Streams.note("It is not shown again.")
	})
}

func (a *App) keysRevokeCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "revoke <key>...", Aliases: []string{"delete", "rm"}, Short: "End the life of API keys, named by name or id",
		Example: "  vers keys revoke ci",
		Args:    arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			mode, client, err := a.begin(format)
			if err != nil {
				return err
			}
			ctx, cancel := limit(cmd.Context(), listLimit, "revoking the key")
			defer cancel()
			all, err := client.Keys(ctx)
			if err != nil {
				return err
			}
			return eachResult(a, mode, args, func(name string) (map[string]string, string, error) {
				key, err := findKey(all, name)
				if err == nil {
					err = client.RevokeKey(ctx, key.KeyID)
				}
				return map[string]string{"key_id": key.KeyID}, fmt.Sprintf("✓ Key '%s' revoked", clean(key.Name)), err
			})
		},
		ValidArgsFunction: a.completeKeys,
	}
	format.add(cmd)
	return cmd
}

// findKey finds a key that is not revoked by its id, the beginning of it, or its name.
func findKey(all []api.Key, name string) (api.Key, error) {
	prefix, isPrefix := ref.Prefix(name)
	var found []api.Key
	for _, k := range all {
		if k.RevokedAt == nil && (k.Name == name || isPrefix && len(ref.Match(prefix, []string{k.KeyID})) > 0) {
			found = append(found, k)
		}
	}
	switch len(found) {
	case 0:
		return api.Key{}, fault.NotFoundf("API key '%s' not found; 'vers keys list' shows them", name)
	case 1:
		return found[0], nil
	}
	if i := slices.IndexFunc(found, func(k api.Key) bool { return k.KeyID == name }); i >= 0 {
		return found[i], nil
	}
	return api.Key{}, fault.Invalidf("API key '%s' is ambiguous, %d keys match; name it by its id", name, len(found))
}

func (a *App) usageCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "usage", Short: "Show what the organisation uses, and what it may use",
		Example: "  vers usage\n  vers usage --format json | jq .vms",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			mode, client, err := a.begin(format)
			if err != nil {
				return err
			}
			ctx, cancel := limit(cmd.Context(), listLimit, "asking for the usage")
			defer cancel()
			u, err := client.Usage(ctx)
			if err != nil {
				return err
			}
			return a.show(mode, u.OrgName, u, func() {
				a.fields([][2]string{{"Organisation", u.OrgName}})()
				a.Streams.table([]string{"RESOURCE", "USED", "LIMIT"}, [][]string{
					amount("VMs", u.VMs, 1, ""), amount("vCPUs", u.VCPUs, 1, ""), amount("Memory", u.MemoryMiB, 1, " MiB"),
					amount("Storage", u.StorageBytes, 1<<20, " MiB"),
				})
			})
		},
	}
	format.add(cmd)
	return cmd
}

func amount(name string, a api.Amount, per int64, unit string) []string {
	limit := "none"
	if a.Limit != nil {
		limit = fmt.Sprintf("%d%s", *a.Limit/per, unit)
	}
	return []string{name, fmt.Sprintf("%d%s", a.Used/per, unit), limit}
}
