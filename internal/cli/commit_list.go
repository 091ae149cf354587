package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"vers/api"
)

func (a *App) commitListCommand() *cobra.Command {
	var format formatFlags
	var pages pageFlags
	var public bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List commits, newest first",
		Example: "  vers commit list\n  vers commit list -q | head -1\n  vers commit list --public --format json",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.commitList(cmd.Context(), format, pages, public)
		},
	}
	cmd.Flags().BoolVar(&public, "public", false, "public commits of all organisations")
	format.addQuiet(cmd, "print ids only")
	pages.add(cmd)
	return cmd
}

func (a *App) commitList(ctx context.Context, format formatFlags, pages pageFlags, public bool) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "listing the commits")
	defer cancel()
	list, heading := client.Commits, "Commits:"
	if public {
		list, heading = client.PublicCommits, "Public commits:"
	}
	all, err := list(ctx)
	if err != nil {
		return err
	}
	return listing[api.CommitInfo]{
		name:    func(c api.CommitInfo) string { return c.CommitID },
		heading: fmt.Sprintf("%s %d", heading, len(all)),
		header:  []string{"COMMIT ID", "NAME", "PUBLIC", "CREATED"},
		row: func(c api.CommitInfo) []string {
			return []string{c.CommitID, c.Name, yesNo(c.IsPublic), whenText(c.CreatedAt)}
		},
		empty: "No commits found. Make one with 'vers commit'.",
	}.print(a, mode, pages, all)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// missingCommit rewords a 404 so that it names what was typed.
func missingCommit(err error, typed string) error {
	if !api.IsNotFound(err) {
		return err
	}
	return rewordf(err, "commit '%s' not found; 'vers commit list' shows the commits", typed)
}

func (a *App) commitDeleteCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "delete <commit>...", Aliases: []string{"rm"}, Short: "Delete commits that no VM and no tag needs",
		Example: "  vers commit delete 5f0c1a2b",
		Args:    arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.eachCommit(cmd.Context(), args, format, "✓ Commit %s deleted", func(ctx context.Context, client *api.Client, id string) error {
				return client.DeleteCommit(ctx, id)
			})
		},
		ValidArgsFunction: a.completeCommits,
	}
	format.add(cmd)
	return cmd
}

func (a *App) commitPublishCommand(public bool) *cobra.Command {
	var format formatFlags
	use, short, line := "publish <commit>", "Let everybody list and restore a commit", "✓ Commit %s is now public"
	if !public {
		use, short, line = "unpublish <commit>", "Make a commit private again", "✓ Commit %s is now private"
	}
	cmd := &cobra.Command{
		Use: use, Short: short, Example: "  vers commit " + use[:strings.Index(use, " ")] + " 5f0c1a2b",
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.eachCommit(cmd.Context(), args, format, line, func(ctx context.Context, client *api.Client, id string) error {
				_, err := client.UpdateCommit(ctx, id, api.CommitUpdate{IsPublic: public})
				return err
			})
		},
		ValidArgsFunction: a.completeCommits,
	}
	format.add(cmd)
	return cmd
}

// commitDone is the JSON output of the commands on commits.
type commitDone struct {
	CommitID string `json:"commit_id"`
}

// eachCommit acts on every commit, reports each failure and ends with the first one's code.
func (a *App) eachCommit(ctx context.Context, typed []string, format formatFlags, line string,
	act func(context.Context, *api.Client, string) error,
) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	return eachResult(a, mode, typed, func(spec string) (commitDone, string, error) {
		id, err := a.commitTarget(ctx, spec)
		if err != nil {
			return commitDone{}, "", err
		}
		limited, cancel := limit(ctx, listLimit, "the request")
		defer cancel()
		return commitDone{id}, fmt.Sprintf(line, id), missingCommit(act(limited, client, id), spec)
	})
}
