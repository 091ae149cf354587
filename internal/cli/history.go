package cli

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/ref"
)

func (a *App) historyCommand() *cobra.Command {
	var format formatFlags
	var pages pageFlags
	cmd := &cobra.Command{
		Use: "history [vm|alias|repo:tag]", Aliases: []string{"log"}, Short: "Show the commits of a VM, or the moves of a tag",
		Long: `Show the commits that were made of a VM (default: HEAD), newest first. With repo:tag, show where the tag
pointed and who moved it, newest first, with the commits. The ancestors of a commit are what
'vers commit history' shows.`,
		Example: "  vers log\n  vers log dev\n  vers log my-app:latest",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if r, ok := ref.ParseReference(optional(args)); ok {
				return a.tagLog(cmd.Context(), r, format, pages)
			}
			return a.history(cmd.Context(), optional(args), format, pages)
		},
		ValidArgsFunction: a.completeVMsAndReferences,
	}
	format.addQuiet(cmd, "print the commits' ids only")
	pages.add(cmd)
	return cmd
}

func (a *App) history(ctx context.Context, typed string, format formatFlags, pages pageFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	t, err := a.target(ctx, typed)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "reading the history")
	defer cancel()
	all, err := client.Commits(ctx)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(c api.CommitInfo) bool { return c.ParentVMID == nil || *c.ParentVMID != t.ID })
	if len(all) == 0 { // the commits of a VM outlive it
		if _, err := client.VM(ctx, t.ID); err != nil {
			return t.missing(err)
		}
	}
	if mode == modeText {
		a.usedHead(t)
	}
	return listing[api.CommitInfo]{
		name:   func(c api.CommitInfo) string { return c.CommitID },
		header: []string{"COMMIT ID", "CREATED", "NAME", "DESCRIPTION"},
		row: func(c api.CommitInfo) []string {
			return []string{c.CommitID, whenText(c.CreatedAt), c.Name, text(c.Description)}
		},
		empty: fmt.Sprintf("No commits of VM '%s'. Make one with 'vers commit %s'.", t.ID, t.Name),
	}.print(a, mode, pages, all)
}

// tagLogEntry is an entry of a tag's history with the commit that it is about, if that is still there.
type tagLogEntry struct {
	api.TagEvent
	Commit *api.CommitInfo `json:"commit"`
}

func (a *App) tagLog(ctx context.Context, r ref.Reference, format formatFlags, pages pageFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "reading the history")
	defer cancel()
	history, err := client.RepoTagHistory(ctx, r.Repo, r.Tag)
	if err != nil {
		return missingTag(err, r.Repo, r.Tag)
	}
	commits, err := client.Commits(ctx)
	if err != nil {
		return err
	}
	byID := map[string]*api.CommitInfo{}
	for i := range commits {
		byID[commits[i].CommitID] = &commits[i]
	}
	all := make([]tagLogEntry, 0, len(history.Entries))
	for _, e := range history.Entries {
		entry := tagLogEntry{TagEvent: e}
		if e.ToCommitID != nil {
			entry.Commit = byID[*e.ToCommitID]
		}
		all = append(all, entry)
	}
	if mode != modeText {
		return listing[tagLogEntry]{name: func(e tagLogEntry) string { return text(e.ToCommitID) }}.print(a, mode, pages, all)
	}
	shown, _, hint, err := cut(pages, all)
	if err != nil {
		return err
	}
	for i, e := range shown {
		a.printTagLogEntry(r, e, i == 0 && pages.offset == 0)
	}
	if hint != "" {
		a.Streams.note("%s", hint)
	}
	return nil
}

// tagActions are the actions of a tag's history in words.
var tagActions = map[string]string{
	api.TagCreate: "made", api.TagMove: "moved", api.TagRollback: "rolled back", api.TagDelete: "deleted",
}

// printTagLogEntry writes one entry as git log writes a commit.
func (a *App) printTagLogEntry(r ref.Reference, e tagLogEntry, newest bool) {
	out, s := a.Streams.Out, a.Streams
	mark := ""
	if newest && e.ToCommitID != nil {
		mark = " " + s.colour(green, "("+r.String()+")")
	}
	action := tagActions[e.Action]
	if action == "" {
		action = clean(e.Action)
	}
	fmt.Fprintf(out, "* %s  %s by %s  entry %d%s\n", when(e.At), action, clean(e.KeyName), e.EntryID, mark)
	switch {
	case e.ToCommitID == nil:
		fmt.Fprintln(out, "|")
		return
	case e.Commit == nil:
		fmt.Fprintf(out, "|   %s  (deleted)\n", s.colour(yellow, *e.ToCommitID))
	default:
		fmt.Fprintf(out, "|   %s  %s  %s\n", s.colour(yellow, *e.ToCommitID), whenText(e.Commit.CreatedAt), clean(e.Commit.Name))
	}
	if e.Description != nil && *e.Description != "" {
		fmt.Fprintf(out, "|   %s\n", clean(*e.Description))
	}
}
