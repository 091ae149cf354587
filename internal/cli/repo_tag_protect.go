package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"vers/api"
)

func (a *App) repoTagProtectCommand() *cobra.Command {
	var format formatFlags
	var keys []string
	cmd := repoTagArguments(&cobra.Command{
		Use: "protect <repo> <tag>", Short: "Let only some API keys move or delete a tag",
		Long: `Let only the named API keys move, roll back and delete a tag; without --key only the one you use now. The list
replaces an earlier one.`,
		Example: `  vers repo tag protect my-app stable
  vers repo tag protect my-app stable --key ci --key release`,
		ValidArgsFunction: a.completeRepoTags,
	}, 2, false, func(ctx context.Context, repo string, args []string) error {
		return a.repoTagProtect(ctx, repo, args[0], keys, format)
	})
	cmd.Flags().StringArrayVar(&keys, "key", nil, "name or id of an API key that may (repeatable)")
	format.add(cmd)
	return cmd
}

func (a *App) repoTagUnprotectCommand() *cobra.Command {
	var format formatFlags
	cmd := repoTagArguments(&cobra.Command{
		Use: "unprotect <repo> <tag>", Short: "Let everybody in the organisation move or delete a tag again",
		Example:           "  vers repo tag unprotect my-app stable",
		ValidArgsFunction: a.completeRepoTags,
	}, 2, false, func(ctx context.Context, repo string, args []string) error {
		mode, client, err := a.begin(format)
		if err != nil {
			return err
		}
		return a.setProtection(ctx, client, repo, args[0], nil, mode)
	})
	format.add(cmd)
	return cmd
}

func (a *App) repoTagProtect(ctx context.Context, repo, tag string, keys []string, format formatFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	if len(keys) == 0 {
		limited, cancel := limit(ctx, checkLimit, "asking who you are")
		defer cancel()
		who, err := client.Whoami(limited)
		if err != nil {
			return err
		}
		keys = []string{who.KeyID}
	}
	return a.setProtection(ctx, client, repo, tag, keys, mode)
}

func (a *App) setProtection(ctx context.Context, client *api.Client, repo, tag string, keys []string, mode mode) error {
	ctx, cancel := limit(ctx, listLimit, "protecting the tag")
	defer cancel()
	now, err := client.ProtectRepoTag(ctx, repo, tag, keys)
	if err != nil {
		return err
	}
	names := make([]string, 0, len(now.Keys))
	for _, key := range now.Keys {
		names = append(names, clean(key.KeyName))
	}
	line := a.say("✓ Tag '%s' is not protected: every key of the organisation may move it", now.Reference)
	if now.Protected {
		line = a.say("✓ Tag '%s' is protected: only %s may move or delete it", now.Reference, strings.Join(names, ", "))
	}
	return a.show(mode, now.Reference, now, line)
}
