package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"vers/api"
)

func (a *App) repoTagHistoryCommand() *cobra.Command {
	var format formatFlags
	var pages pageFlags
	cmd := repoTagArguments(&cobra.Command{
		Use: "history <repo> <tag>", Short: "Show who moved a tag when, newest first",
		Long: `Show what happened to a tag: made, moved, rolled back, deleted; when, from which commit to which, and with
which API key. The history outlives the tag, as long as there is the repository.`,
		Example: `  vers repo tag history my-app latest
  vers repo tag history my-app latest --format json | jq -r '.[].to_commit_id'`,
		ValidArgsFunction: a.completeRepoTags,
	}, 2, false, func(ctx context.Context, repo string, args []string) error {
		return a.repoTagHistory(ctx, repo, args[0], format, pages)
	})
	format.addQuiet(cmd, "print the commits only")
	pages.add(cmd)
	return cmd
}

func (a *App) repoTagHistory(ctx context.Context, repo, tag string, format formatFlags, pages pageFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "reading the history")
	defer cancel()
	history, err := client.RepoTagHistory(ctx, repo, tag)
	if err != nil {
		return missingTag(err, repo, tag)
	}
	return listing[api.TagEvent]{
		name:    func(e api.TagEvent) string { return text(e.ToCommitID) },
		heading: "Reference: " + history.Reference,
		header:  []string{"ENTRY", "AT", "ACTION", "COMMIT", "BY", "DESCRIPTION"},
		row: func(e api.TagEvent) []string {
			return []string{strconv.FormatInt(e.EntryID, 10), when(e.At), e.Action, eventCommit(e), e.KeyName, text(e.Description)}
		},
		empty: fmt.Sprintf("Nothing is known about the tag '%s'.", history.Reference),
	}.print(a, mode, pages, history.Entries)
}

// eventCommit is the commit that an entry is about.
func eventCommit(e api.TagEvent) string {
	switch {
	case e.ToCommitID == nil:
		return "-"
	case !e.Available:
		return *e.ToCommitID + " (deleted)"
	}
	return *e.ToCommitID
}

func (a *App) repoTagRollbackCommand() *cobra.Command {
	var format formatFlags
	var entry int64
	var expected string
	var cmd *cobra.Command
	cmd = repoTagArguments(&cobra.Command{
		Use: "rollback <repo> <tag>", Short: "Move a tag back to the commit it had before",
		Long: `Move a tag back to the commit it had before its last move; again, and it is the one before that. --entry
goes to where an entry of 'vers repo tag history' left it.`,
		Example: `  vers repo tag rollback my-app latest
  vers repo tag rollback my-app latest --entry 17`,
		ValidArgsFunction: a.completeRepoTags,
	}, 2, false, func(ctx context.Context, repo string, args []string) error {
		var req api.TagRollbackRequest
		if cmd.Flags().Changed("entry") {
			req.EntryID = &entry
		}
		return a.repoTagRollback(ctx, repo, args[0], req, expected, format)
	})
	cmd.Flags().Int64Var(&entry, "entry", 0, "number of the entry to go back to")
	addExpect(cmd, &expected)
	format.addQuiet(cmd, "print the commit only")
	return cmd
}

func (a *App) repoTagRollback(ctx context.Context, repo, tag string, req api.TagRollbackRequest, expected string, format formatFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	if expected != "" {
		if expected, err = a.commitTarget(ctx, expected); err != nil {
			return err
		}
		req.ExpectedCommitID = &expected
	}
	ctx, cancel := limit(ctx, listLimit, "rolling back the tag")
	defer cancel()
	done, err := client.RollBackRepoTag(ctx, repo, tag, req)
	if err != nil {
		return err
	}
	return a.show(mode, done.CommitID, done, func() {
		fmt.Fprintf(a.Streams.Out, "✓ Tag '%s' rolled back\n", done.Reference)
		a.fields([][2]string{{"Commit", done.CommitID}, {"Before", done.FromCommitID}})()
	})
}
