package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"vers/api"
)

func (a *App) commitHistoryCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "history <commit>", Short: "Show a commit and its ancestors",
		Example: "  vers commit history 5f0c1a2b\n  vers commit history my-app:latest --format json | jq -r '.[].commit_id'",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.commitHistory(cmd.Context(), args[0], format)
		},
		ValidArgsFunction: a.completeCommits,
	}
	format.addQuiet(cmd, "print ids only")
	return cmd
}

// historyEntry has the id under both names that clients know.
type historyEntry struct {
	CommitID string `json:"commit_id"`
	api.CommitEntity
}

func (a *App) commitHistory(ctx context.Context, typed string, format formatFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	id, err := a.commitTarget(ctx, typed)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "reading the history")
	defer cancel()
	history, err := client.CommitHistory(ctx, id)
	if err != nil {
		return missingCommit(err, typed)
	}
	entries := []historyEntry{}
	for _, c := range history {
		entries = append(entries, historyEntry{c.ID, c})
	}
	if mode != modeText {
		return listing[historyEntry]{name: func(e historyEntry) string { return e.ID }}.print(a, mode, pageFlags{}, entries)
	}
	for i, c := range history {
		line := fmt.Sprintf("● %s  %s", a.Streams.colour(yellow, c.ID), whenText(c.CreatedAt))
		if c.Name != "" {
			line += "  " + clean(c.Name)
		}
		if c.Description != nil && *c.Description != "" {
			line += "  " + clean(*c.Description)
		}
		fmt.Fprintln(a.Streams.Out, line)
		if i < len(history)-1 {
			fmt.Fprintln(a.Streams.Out, "│")
		}
	}
	return nil
}
