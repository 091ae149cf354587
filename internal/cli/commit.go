package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/ref"
	"vers/internal/fault"
	"vers/internal/ident"
)

type commitOptions struct {
	vm                string
	name, description string
	tags              []string
	keepPaused        bool
	format            formatFlags
}

const commitLong = `Take a commit of a VM (default: HEAD): an immutable snapshot of memory, processes, CPU state and disk. The
VM stands still for some milliseconds and runs on, unless --keep-paused is given.

An argument that is the name of a subcommand runs that; 'vers commit create <vm>' is never mistaken.`

const commitExample = `  vers commit
  vers commit my-app-seed --name seeded
  vers commit --tag my-app:latest
  vers commit "$BUILD_LABEL" --format json | jq -r .commit_id`

func (a *App) commitCommand() *cobra.Command {
	cmd := a.commitCreate("commit [vm|alias]", "Keep the state of a VM")
	cmd.AddCommand(a.commitCreate("create [vm|alias]", "Keep the state of a VM"), a.commitListCommand(), a.commitHistoryCommand(),
		a.commitDeleteCommand(), a.commitPublishCommand(true), a.commitPublishCommand(false))
	return cmd
}

// commitCreate makes the command, which exists under two names.
func (a *App) commitCreate(use, short string) *cobra.Command {
	var o commitOptions
	cmd := &cobra.Command{
		Use: use, Short: short, Long: commitLong, Example: commitExample,
		Args: arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.vm = optional(args)
			return a.commit(cmd.Context(), o)
		},
		ValidArgsFunction: a.completeVMs,
	}
	f := cmd.Flags()
	f.StringVarP(&o.name, "name", "n", "", "name of the commit")
	f.StringVarP(&o.description, "description", "d", "", "description of the commit")
	f.StringSliceVarP(&o.tags, "tag", "t", nil, "let repo:tag point at the commit; the repository is made if missing (repeatable)")
	f.StringSliceVar(&o.tags, "tags", nil, "same as --tag")
	_ = f.MarkHidden("tags")
	f.BoolVar(&o.keepPaused, "keep-paused", false, "leave the VM paused")
	o.format.add(cmd)
	return cmd
}

// commitResult is the JSON output of commit.
type commitResult struct {
	CommitID    string      `json:"commit_id"`
	VMID        string      `json:"vm_id"`
	UsedHead    bool        `json:"used_head"`
	Name        string      `json:"name"`
	Description string      `json:"description"`
	Tags        []string    `json:"tags"`
	Timing      *api.Timing `json:"timing,omitempty"`
}

func (a *App) commit(ctx context.Context, o commitOptions) error {
	mode, err := o.format.mode()
	if err != nil {
		return err
	}
	tags, err := commitTags(o.tags)
	if err != nil {
		return err
	}
	if o.name != "" && !ident.ValidName(o.name, ident.CommitName) {
		return fault.Invalidf("invalid commit name '%s': use 1 to %d letters, digits, '-', '_' or '.'", o.name, ident.CommitName)
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	t, err := a.target(ctx, o.vm)
	if err != nil {
		return err
	}
	var req api.CommitRequest
	if o.name != "" {
		req.Name = &o.name
	}
	if o.description != "" {
		req.Description = &o.description
	}
	stop := a.Streams.progress("Creating commit for VM '%s'", t.ID)
	limited, cancel := limit(ctx, commitLimit, "the commit")
	made, err := client.Commit(limited, t.ID, req, o.keepPaused)
	cancel()
	stop()
	if err != nil {
		return t.missing(err)
	}
	result := commitResult{
		CommitID: made.CommitID, VMID: t.ID, UsedHead: t.IsHead, Name: made.Name, Description: o.description,
		Tags: []string{}, Timing: made.Timing,
	}
	for _, tag := range tags {
		if err := a.pointTag(ctx, client, tag, made.CommitID); err != nil {
			return fmt.Errorf("commit %s was made, but tag %s was not set: %w", made.CommitID, tag, err)
		}
		result.Tags = append(result.Tags, tag.String())
	}
	if mode == modeJSON {
		return printJSON(a.Streams.Out, result)
	}
	a.printCommit(result, o.name != "")
	return nil
}

func (a *App) printCommit(r commitResult, named bool) {
	out := a.Streams.Out
	if r.UsedHead {
		fmt.Fprintf(out, "Using current HEAD VM: %s\n", r.VMID)
	}
	fmt.Fprintf(out, "✓ Commit %s created\n", r.CommitID)
	fmt.Fprintf(out, "VM: %s\n", r.VMID)
	fmt.Fprintf(out, "Commit ID: %s\n", r.CommitID)
	if named {
		fmt.Fprintf(out, "Name: %s\n", r.Name)
	}
	if r.Description != "" {
		fmt.Fprintf(out, "Description: %s\n", r.Description)
	}
	if len(r.Tags) > 0 {
		fmt.Fprintf(out, "Tags: %s\n", strings.Join(r.Tags, ", "))
	}
}

// commitTags checks the tags before anything is done.
func commitTags(typed []string) ([]ref.Reference, error) {
	var tags []ref.Reference
	for _, t := range typed {
		tag, ok := ref.ParseReference(t)
		if !ok {
			return nil, fault.Invalidf("'%s' is not a tag: --tag expects repo:tag, for example my-app:latest", t)
		}
		tags = append(tags, tag)
	}
	return tags, nil
}

// pointTag makes the tag or moves it, with its repository if that is missing.
func (a *App) pointTag(ctx context.Context, client *api.Client, tag ref.Reference, commitID string) error {
	ctx, cancel := limit(ctx, listLimit, "tagging")
	defer cancel()
	err := client.UpdateRepoTag(ctx, tag.Repo, tag.Tag, api.RepoTagUpdate{CommitID: &commitID})
	if !api.IsNotFound(err) {
		return err
	}
	if _, err := client.Repository(ctx, tag.Repo); api.IsNotFound(err) {
		if _, err := client.CreateRepository(ctx, api.RepositoryRequest{Name: tag.Repo}); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	_, err = client.CreateRepoTag(ctx, tag.Repo, api.RepoTagRequest{TagName: tag.Tag, CommitID: commitID})
	return err
}

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
	mode, err := format.mode()
	if err != nil {
		return err
	}
	client, err := a.api()
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
	items, forJSON, hint, err := cut(pages, all)
	if err != nil {
		return err
	}
	out := a.Streams.Out
	switch mode {
	case modeJSON:
		return printJSON(out, forJSON)
	case modeQuiet:
		for _, c := range items {
			fmt.Fprintln(out, c.CommitID)
		}
	default:
		if len(all) == 0 {
			fmt.Fprintln(out, "No commits found. Make one with 'vers commit'.")
			return nil
		}
		fmt.Fprintf(out, "%s %d\n\n", heading, len(all))
		rows := make([][]string, 0, len(items))
		for _, c := range items {
			rows = append(rows, []string{c.CommitID, c.Name, yesNo(c.IsPublic), whenText(c.CreatedAt)})
		}
		a.Streams.table([]string{"COMMIT ID", "NAME", "PUBLIC", "CREATED"}, rows)
	}
	if hint != "" {
		a.Streams.note("%s", hint)
	}
	return nil
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

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
	format.add(cmd)
	return cmd
}

// historyEntry has the id under both names that clients know.
type historyEntry struct {
	CommitID string `json:"commit_id"`
	api.CommitEntity
}

func (a *App) commitHistory(ctx context.Context, typed string, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	client, err := a.api()
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
	if mode == modeJSON {
		entries := []historyEntry{}
		for _, c := range history {
			entries = append(entries, historyEntry{c.ID, c})
		}
		return printJSON(a.Streams.Out, entries)
	}
	for i, c := range history {
		line := fmt.Sprintf("● %s  %s", c.ID, whenText(c.CreatedAt))
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
			return a.eachCommit(cmd.Context(), args, format, "✓ Commit %s deleted\n", func(ctx context.Context, client *api.Client, id string) error {
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
	use, short, line := "publish <commit>", "Let everybody read and restore a commit", "✓ Commit %s is now public\n"
	if !public {
		use, short, line = "unpublish <commit>", "Make a commit private again", "✓ Commit %s is now private\n"
	}
	cmd := &cobra.Command{
		Use: use, Short: short, Args: arguments(cobra.ExactArgs(1)),
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
	mode, err := format.mode()
	if err != nil {
		return err
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	done := []commitDone{}
	err = a.each(typed, func(spec string) error {
		id, err := a.commitTarget(ctx, spec)
		if err != nil {
			return err
		}
		limited, cancel := limit(ctx, listLimit, "the request")
		defer cancel()
		if err := act(limited, client, id); err != nil {
			return missingCommit(err, spec)
		}
		done = append(done, commitDone{id})
		if mode == modeText {
			fmt.Fprintf(a.Streams.Out, line, id)
		}
		return nil
	})
	if mode == modeJSON {
		return errors.Join(err, printJSON(a.Streams.Out, done))
	}
	return err
}

// each does something for every name and goes on after failures. Each is reported; the result carries the code of
// the first, without a message if there was more than one name.
func (a *App) each(names []string, act func(name string) error) error {
	var first error
	for _, name := range slices.Compact(slices.Clone(names)) {
		err := act(name)
		if err == nil {
			continue
		}
		if len(names) == 1 {
			return err
		}
		var signalled *signalError
		if errors.As(err, &signalled) {
			return err
		}
		a.printError(err)
		if first == nil {
			first = &statusError{exitCode(err)}
		}
	}
	return first
}
