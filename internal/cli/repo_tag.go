package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/fault"
	"vers/internal/ident"
)

func (a *App) repoTagCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "tag", Aliases: []string{"tags"}, Short: "Tags of a repository: names that point at commits",
		Example: `  vers repo tag create my-app latest 5f0c1a2b -d "Seeded 2026-04-20"
  vers repo tag update my-app latest --commit 77aa01bc
  vers repo tag get my-app latest --format json | jq -r .commit_id`,
	}
	return group(cmd, a.tagCreateCommand(), a.tagListCommand(), a.tagGetCommand(), a.tagUpdateCommand(), a.tagDeleteCommand())
}

// tagCommand makes a command whose first argument is the repository, which may be given with --repo instead. n is the
// number of arguments with the repository; more says that further ones may follow.
func tagCommand(cmd *cobra.Command, n int, more bool, run func(ctx context.Context, repo string, args []string) error) *cobra.Command {
	var repo string
	cmd.Flags().StringVar(&repo, "repo", "", "the repository, instead of the first argument")
	cmd.Args = arguments(func(cmd *cobra.Command, args []string) error {
		want := n
		if cmd.Flags().Changed("repo") {
			want--
		}
		if more {
			return cobra.MinimumNArgs(want)(cmd, args)
		}
		return cobra.ExactArgs(want)(cmd, args)
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !cmd.Flags().Changed("repo") {
			repo, args = args[0], args[1:]
		}
		return run(cmd.Context(), repo, args)
	}
	return cmd
}

func (a *App) tagCreateCommand() *cobra.Command {
	var format formatFlags
	var description string
	cmd := tagCommand(&cobra.Command{
		Use: "create <repo> <tag> <commit>", Short: "Let a new tag point at a commit",
		Long:              "Let a new tag point at a commit. A tag that exists is a conflict (exit code 4); 'update' moves it.",
		ValidArgsFunction: a.completeRepoTagCommit,
	}, 3, false, func(ctx context.Context, repo string, args []string) error {
		return a.tagCreate(ctx, repo, args[0], args[1], description, format)
	})
	cmd.Flags().StringVarP(&description, "description", "d", "", "what it is")
	format.add(cmd)
	return cmd
}

func (a *App) tagCreate(ctx context.Context, repo, tag, commit, description string, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	if err := checkRepoName(repo); err != nil {
		return err
	}
	if !ident.ValidName(tag, ident.TagName) {
		return fault.Invalidf("invalid tag name '%s': use 1 to 128 letters, digits, '-', '_' or '.'", tag)
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	id, err := a.commitTarget(ctx, commit)
	if err != nil {
		return err
	}
	req := api.RepoTagRequest{TagName: tag, CommitID: id}
	if description != "" {
		req.Description = &description
	}
	ctx, cancel := limit(ctx, listLimit, "creating the tag")
	defer cancel()
	made, err := client.CreateRepoTag(ctx, repo, req)
	switch {
	case err != nil:
		return err
	case mode == modeJSON:
		if made.TagName == "" {
			made.TagName = tag
		}
		return printJSON(a.Streams.Out, made)
	}
	fmt.Fprintf(a.Streams.Out, "✓ Tag created → %s:%s\n", repo, tag)
	return nil
}

func (a *App) tagListCommand() *cobra.Command {
	var format formatFlags
	var pages pageFlags
	cmd := tagCommand(&cobra.Command{
		Use: "list <repo>", Aliases: []string{"ls"}, Short: "List the tags of a repository",
		ValidArgsFunction: a.completeRepos,
	}, 1, false, func(ctx context.Context, repo string, _ []string) error {
		return a.tagList(ctx, repo, format, pages)
	})
	format.addQuiet(cmd, "print names only")
	pages.add(cmd)
	return cmd
}

func (a *App) tagList(ctx context.Context, repo string, format formatFlags, pages pageFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "listing the tags")
	defer cancel()
	all, err := client.RepoTags(ctx, repo)
	if err != nil {
		return missingRepo(err, repo)
	}
	items, forJSON, hint, err := cut(pages, all)
	if err != nil {
		return err
	}
	switch mode {
	case modeJSON:
		return printJSON(a.Streams.Out, forJSON)
	case modeQuiet:
		for _, t := range items {
			fmt.Fprintln(a.Streams.Out, t.TagName)
		}
	default:
		if len(all) == 0 {
			fmt.Fprintf(a.Streams.Out, "No tags in repository '%s'. Create one with 'vers repo tag create %s <tag> <commit>'.\n", repo, repo)
			return nil
		}
		fmt.Fprintf(a.Streams.Out, "Repository: %s\n\n", repo)
		rows := make([][]string, 0, len(items))
		for _, t := range items {
			rows = append(rows, []string{t.TagName, t.CommitID, when(t.CreatedAt), text(t.Description)})
		}
		a.Streams.table([]string{"TAG", "COMMIT", "CREATED", "DESCRIPTION"}, rows)
	}
	if hint != "" {
		a.Streams.note("%s", hint)
	}
	return nil
}

func (a *App) tagGetCommand() *cobra.Command {
	var format formatFlags
	cmd := tagCommand(&cobra.Command{
		Use: "get <repo> <tag>", Short: "Show a tag",
		ValidArgsFunction: a.completeRepoTags,
	}, 2, false, func(ctx context.Context, repo string, args []string) error {
		return a.tagGet(ctx, repo, args[0], format)
	})
	format.add(cmd)
	return cmd
}

func missingTag(err error, repo, tag string) error {
	if !api.IsNotFound(err) {
		return err
	}
	return rewordf(err, "tag '%s:%s' not found; 'vers repo tag list %s' shows the tags", repo, tag, repo)
}

func (a *App) tagGet(ctx context.Context, repo, tag string, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "reading the tag")
	defer cancel()
	t, err := client.RepoTag(ctx, repo, tag)
	switch {
	case err != nil:
		return missingTag(err, repo, tag)
	case mode == modeJSON:
		return printJSON(a.Streams.Out, t)
	}
	a.fields([][2]string{
		{"Tag", t.TagName}, {"ID", t.TagID}, {"Reference", t.Reference}, {"Commit", t.CommitID},
		{"Created", when(t.CreatedAt)}, {"Updated", when(t.UpdatedAt)}, {"Description", text(t.Description)},
	})
	return nil
}

func (a *App) tagUpdateCommand() *cobra.Command {
	var format formatFlags
	var commit, description string
	var cmd *cobra.Command
	cmd = tagCommand(&cobra.Command{
		Use: "update <repo> <tag>", Short: "Move a tag, change its description, or both",
		Example: `  vers repo tag update my-app latest --commit 77aa01bc -d "main @ 1a2b3c4d"
  vers repo tag update my-app latest -d ""      # no description any more`,
		ValidArgsFunction: a.completeRepoTags,
	}, 2, false, func(ctx context.Context, repo string, args []string) error {
		var update api.RepoTagUpdate
		if cmd.Flags().Changed("commit") {
			update.CommitID = &commit
		}
		if cmd.Flags().Changed("description") {
			update.Description = api.Text(description)
			if description == "" {
				update.Description = api.Null()
			}
		}
		return a.tagUpdate(ctx, repo, args[0], update, format)
	})
	cmd.Flags().StringVar(&commit, "commit", "", "commit to point at")
	cmd.Flags().StringVarP(&description, "description", "d", "", "new description; empty removes it")
	_ = cmd.RegisterFlagCompletionFunc("commit", a.completeCommits)
	format.add(cmd)
	return cmd
}

func (a *App) tagUpdate(ctx context.Context, repo, tag string, update api.RepoTagUpdate, format formatFlags) error {
	mode, err := format.mode()
	switch {
	case err != nil:
		return err
	case update.CommitID == nil && !update.Description.Set:
		return fault.Invalidf("nothing to update: give --commit, --description, or both")
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	if update.CommitID != nil {
		id, err := a.commitTarget(ctx, *update.CommitID)
		if err != nil {
			return err
		}
		update.CommitID = &id
	}
	ctx, cancel := limit(ctx, listLimit, "updating the tag")
	defer cancel()
	if err := client.UpdateRepoTag(ctx, repo, tag, update); err != nil {
		return err
	}
	if mode == modeJSON {
		t, err := client.RepoTag(ctx, repo, tag)
		return errors.Join(err, printJSON(a.Streams.Out, t))
	}
	fmt.Fprintf(a.Streams.Out, "✓ Tag '%s' in '%s' updated\n", tag, repo)
	return nil
}

// tagDone is the JSON output for a deleted tag.
type tagDone struct {
	Reference string `json:"reference"`
}

func (a *App) tagDeleteCommand() *cobra.Command {
	var format formatFlags
	cmd := tagCommand(&cobra.Command{
		Use: "delete <repo> <tag>...", Aliases: []string{"rm"}, Short: "Delete tags; the commits stay",
		ValidArgsFunction: a.completeRepoTags,
	}, 2, true, func(ctx context.Context, repo string, tags []string) error {
		return a.tagDelete(ctx, repo, tags, format)
	})
	format.add(cmd)
	return cmd
}

func (a *App) tagDelete(ctx context.Context, repo string, tags []string, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	done := []tagDone{}
	err = a.each(tags, func(tag string) error {
		limited, cancel := limit(ctx, listLimit, "deleting the tag")
		defer cancel()
		if err := client.DeleteRepoTag(limited, repo, tag); err != nil {
			return missingTag(err, repo, tag)
		}
		done = append(done, tagDone{repo + ":" + tag})
		if mode == modeText {
			fmt.Fprintf(a.Streams.Out, "✓ Tag '%s:%s' deleted\n", repo, tag)
		}
		return nil
	})
	if mode == modeJSON {
		return errors.Join(err, printJSON(a.Streams.Out, done))
	}
	return err
}
