package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/ref"
	"vers/internal/fault"
)

func (a *App) repoForkCommand() *cobra.Command {
	var format formatFlags
	var repoName, tagName string
	cmd := &cobra.Command{
		Use: "fork <org>/<repo>:<tag>", Short: "Copy a public tag into your organisation and start a VM from it",
		Long: `Start a VM from a tag of a public repository, commit it into your own organisation, and tag the commit. The
repository is made if you have none of that name. What you get is independent of the source from then on.

HEAD and aliases stay as they are; 'vers checkout <vm>' goes to the new VM.`,
		Example: `  vers repo fork acme/python:latest
  vers repo fork acme/python:latest --repo-name py-base --tag-name v1`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.repoFork(cmd.Context(), args[0], repoName, tagName, format)
		},
		ValidArgsFunction: a.completePublicTags,
	}
	cmd.Flags().StringVar(&repoName, "repo-name", "", "your repository (default: the source's name)")
	cmd.Flags().StringVar(&tagName, "tag-name", "", "your tag (default: the source's tag)")
	format.addQuiet(cmd, "print the VM's id only")
	return cmd
}

func (a *App) repoFork(ctx context.Context, source, repoName, tagName string, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	org, from, ok := ref.ParseForeign(source)
	if !ok {
		return fault.Invalidf("'%s' is no tag of a public repository: expected org/repo:tag, for example acme/python:latest", source)
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	req := api.ForkRequest{SourceOrg: org, SourceRepo: from.Repo, SourceTag: from.Tag}
	if repoName != "" {
		req.RepoName = &repoName
	}
	if tagName != "" {
		req.TagName = &tagName
	}
	stop := a.Streams.progress("Forking %s", source)
	limited, cancel := limit(ctx, commitLimit, "the fork")
	made, err := client.Fork(limited, req)
	cancel()
	stop()
	switch {
	case api.IsNotFound(err):
		return rewordf(err, "'%s' not found: there is no such tag, or its repository is private; 'vers repo list --public' shows what can be forked", source)
	case err != nil:
		return err
	}
	return a.show(mode, made.VMID, made, func() {
		fmt.Fprintf(a.Streams.Out, "✓ Forked → %s:%s\n", made.RepoName, made.TagName)
		fmt.Fprintf(a.Streams.Out, "  VM: vm-%s\n", made.VMID)
		fmt.Fprintf(a.Streams.Out, "  Commit: %s\n", made.CommitID)
	})
}
