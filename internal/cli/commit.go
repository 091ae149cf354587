package cli

import (
	"context"
	"fmt"
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
	f.StringSliceVarP(&o.tags, "tag", "t", nil, "let a tag or repo:tag point at the commit; a missing repository is made (repeatable)")
	f.StringSliceVar(&o.tags, "tags", nil, "same as --tag")
	_ = f.MarkHidden("tags")
	f.BoolVar(&o.keepPaused, "keep-paused", false, "leave the VM paused")
	o.format.addQuiet(cmd, "print the commit's id only")
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
	tags, err := newTags(o.tags)
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
	return a.show(mode, result.CommitID, result, func() { a.printCommit(result, o.name != "") })
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

// newTag is a tag that a commit is to get: of a repository, or a plain one if repo is empty.
type newTag ref.Reference

func (t newTag) String() string {
	if t.Repo == "" {
		return t.Tag
	}
	return ref.Reference(t).String()
}

// newTags checks the tags before anything is done.
func newTags(typed []string) ([]newTag, error) {
	var tags []newTag
	for _, t := range typed {
		if r, ok := ref.ParseReference(t); ok {
			tags = append(tags, newTag(r))
		} else if ident.ValidName(t, ident.PlainTagName) {
			tags = append(tags, newTag{Tag: t})
		} else {
			return nil, fault.Invalidf("'%s' is not a tag: --tag expects repo:tag, for example my-app:latest, or a plain tag", t)
		}
	}
	return tags, nil
}

// pointTag makes the tag or moves it, with its repository if that is missing.
func (a *App) pointTag(ctx context.Context, client *api.Client, tag newTag, commitID string) error {
	ctx, cancel := limit(ctx, listLimit, "tagging")
	defer cancel()
	if tag.Repo == "" {
		err := client.UpdateTag(ctx, tag.Tag, api.TagUpdate{CommitID: &commitID})
		if api.IsNotFound(err) {
			_, err = client.CreateTag(ctx, api.TagRequest{TagName: tag.Tag, CommitID: commitID})
		}
		return err
	}
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
