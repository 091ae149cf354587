package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/fault"
	"vers/internal/ident"
)

func (a *App) tagCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "tag", Aliases: []string{"tags"}, Short: "Name commits with plain tags, outside of repositories",
		Long: `A plain tag is a name for a commit that belongs to the organisation, not to a repository. Wherever a commit
is named it can stand. Tags of repositories have a history, can be protected, and can be shared; see
'vers repo'.`,
		Example: `  vers tag create golden 5f0c1a2b -d "Seeded 2026-04-20"
  vers run-commit golden
  vers tag list --format json | jq -r '.[].name'`,
	}
	return group(cmd, a.tagCreateCommand(), a.tagListCommand(), a.tagGetCommand(), a.tagUpdateCommand(), a.tagDeleteCommand())
}

// plainTag is a plain tag in JSON, with its name under both names that clients know.
type plainTag struct {
	Name string `json:"name"`
	api.Tag
}

func missingPlainTag(err error, tag string) error {
	if !api.IsNotFound(err) {
		return err
	}
	return rewordf(err, "tag '%s' not found; 'vers tag list' shows the tags", tag)
}

func (a *App) tagCreateCommand() *cobra.Command {
	var format formatFlags
	var description string
	cmd := &cobra.Command{
		Use: "create <tag> <commit>", Short: "Let a new tag point at a commit",
		Long:    "Let a new tag point at a commit. A tag that exists is a conflict (exit code 4); 'update' moves it.",
		Example: "  vers tag create golden 5f0c1a2b",
		Args:    arguments(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.tagCreate(cmd.Context(), args[0], args[1], description, format)
		},
		ValidArgsFunction: a.completeTagCommit,
	}
	cmd.Flags().StringVarP(&description, "description", "d", "", "what it is")
	format.add(cmd)
	return cmd
}

func (a *App) tagCreate(ctx context.Context, tag, commit, description string, format formatFlags) error {
	if !ident.ValidName(tag, ident.PlainTagName) {
		return fault.Invalidf("invalid tag name '%s': use 1 to %d letters, digits, '-', '_' or '.'", tag, ident.PlainTagName)
	}
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	id, err := a.commitTarget(ctx, commit)
	if err != nil {
		return err
	}
	req := api.TagRequest{TagName: tag, CommitID: id}
	if description != "" {
		req.Description = &description
	}
	ctx, cancel := limit(ctx, listLimit, "creating the tag")
	defer cancel()
	made, err := client.CreateTag(ctx, req)
	if err != nil {
		return err
	}
	return a.show(mode, tag, made, a.say("✓ Tag '%s' created → %s", tag, id))
}

func (a *App) tagListCommand() *cobra.Command {
	var format formatFlags
	var pages pageFlags
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the plain tags",
		Example: "  vers tag list",
		Args:    arguments(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.tagList(cmd.Context(), format, pages) },
	}
	format.addQuiet(cmd, "print names only")
	pages.add(cmd)
	return cmd
}

func (a *App) tagList(ctx context.Context, format formatFlags, pages pageFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "listing the tags")
	defer cancel()
	tags, err := client.Tags(ctx)
	if err != nil {
		return err
	}
	all := make([]plainTag, 0, len(tags))
	for _, t := range tags {
		all = append(all, plainTag{t.TagName, t})
	}
	return listing[plainTag]{
		name:   func(t plainTag) string { return t.Name },
		header: []string{"TAG", "COMMIT", "CREATED", "DESCRIPTION"},
		row: func(t plainTag) []string {
			return []string{t.Name, t.CommitID, when(t.CreatedAt), text(t.Description)}
		},
		empty: "No tags found. Create one with 'vers tag create <tag> <commit>'.",
	}.print(a, mode, pages, all)
}

func (a *App) tagGetCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "get <tag>", Short: "Show a plain tag",
		Example: "  vers tag get golden --format json | jq -r .commit_id",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.tagGet(cmd.Context(), args[0], format)
		},
		ValidArgsFunction: a.completeTags,
	}
	format.addQuiet(cmd, "print the commit's id only")
	return cmd
}

func (a *App) tagGet(ctx context.Context, tag string, format formatFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "reading the tag")
	defer cancel()
	t, err := client.Tag(ctx, tag)
	if err != nil {
		return missingPlainTag(err, tag)
	}
	return a.show(mode, t.CommitID, plainTag{t.TagName, t}, a.fields([][2]string{
		{"Tag", t.TagName}, {"ID", t.TagID}, {"Commit", t.CommitID},
		{"Created", when(t.CreatedAt)}, {"Updated", when(t.UpdatedAt)}, {"Description", text(t.Description)},
	}))
}

func (a *App) tagUpdateCommand() *cobra.Command {
	var format formatFlags
	var commit, description, expected string
	cmd := &cobra.Command{
		Use: "update <tag>", Short: "Move a plain tag, change its description, or both",
		Example: `  vers tag update golden --commit 77aa01bc
  vers tag update golden -d ""      # no description any more`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var update api.TagUpdate
			if cmd.Flags().Changed("commit") {
				update.CommitID = &commit
			}
			if expected != "" {
				update.ExpectedCommitID = &expected
			}
			update.Description = newDescription(cmd, description)
			return a.tagUpdate(cmd.Context(), args[0], update, format)
		},
		ValidArgsFunction: a.completeTags,
	}
	cmd.Flags().StringVar(&commit, "commit", "", "commit to point at")
	cmd.Flags().StringVarP(&description, "description", "d", "", "new description; empty removes it")
	_ = cmd.RegisterFlagCompletionFunc("commit", a.completeCommits)
	addExpect(cmd, &expected)
	format.add(cmd)
	return cmd
}

// newDescription reads --description: absent keeps, empty removes.
func newDescription(cmd *cobra.Command, description string) api.OptionalString {
	switch {
	case !cmd.Flags().Changed("description"):
		return api.OptionalString{}
	case description == "":
		return api.Null()
	}
	return api.Text(description)
}

func (a *App) tagUpdate(ctx context.Context, tag string, update api.TagUpdate, format formatFlags) error {
	if update.CommitID == nil && !update.Description.Set {
		return fault.Invalidf("nothing to update: give --commit, --description, or both")
	}
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	if err := a.resolveCommits(ctx, update.CommitID, update.ExpectedCommitID); err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "updating the tag")
	defer cancel()
	if err := client.UpdateTag(ctx, tag, update); err != nil {
		return missingPlainTag(err, tag)
	}
	var moved api.Tag
	if mode == modeJSON {
		if moved, err = client.Tag(ctx, tag); err != nil {
			return err
		}
	}
	return a.show(mode, tag, plainTag{moved.TagName, moved}, a.say("✓ Tag '%s' updated", tag))
}

// resolveCommits puts ids where commits were named in another way; nil ones are left out.
func (a *App) resolveCommits(ctx context.Context, specs ...*string) error {
	for _, spec := range specs {
		if spec == nil {
			continue
		}
		id, err := a.commitTarget(ctx, *spec)
		if err != nil {
			return err
		}
		*spec = id
	}
	return nil
}

func (a *App) tagDeleteCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "delete <tag>...", Aliases: []string{"rm"}, Short: "Delete plain tags; the commits stay",
		Example: "  vers tag delete golden",
		Args:    arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			mode, client, err := a.begin(format)
			if err != nil {
				return err
			}
			return eachResult(a, mode, args, func(tag string) (map[string]string, string, error) {
				limited, cancel := limit(cmd.Context(), listLimit, "deleting the tag")
				defer cancel()
				err := missingPlainTag(client.DeleteTag(limited, tag), tag)
				return map[string]string{"tag_name": tag}, fmt.Sprintf("✓ Tag '%s' deleted", tag), err
			})
		},
		ValidArgsFunction: a.completeTags,
	}
	format.add(cmd)
	return cmd
}
