package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/ref"
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
	return group(cmd, a.repoTagCreateCommand(), a.repoTagListCommand(), a.repoTagGetCommand(), a.repoTagUpdateCommand(),
		a.repoTagDeleteCommand(), a.repoTagHistoryCommand(), a.repoTagRollbackCommand(), a.repoTagProtectCommand(),
		a.repoTagUnprotectCommand())
}

// repoTagArguments makes a command whose first argument is the repository, which may be given with --repo instead. n is the
// number of arguments with the repository; more says that further ones may follow.
func repoTagArguments(cmd *cobra.Command, n int, more bool, run func(ctx context.Context, repo string, args []string) error) *cobra.Command {
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

func (a *App) repoTagCreateCommand() *cobra.Command {
	var format formatFlags
	var description string
	cmd := repoTagArguments(&cobra.Command{
		Use: "create <repo> <tag> <commit>", Short: "Let a new tag point at a commit",
		Long:              "Let a new tag point at a commit. A tag that exists is a conflict (exit code 4); 'update' moves it.",
		Example:           `  vers repo tag create my-app latest 5f0c1a2b -d "Seeded 2026-04-20"`,
		ValidArgsFunction: a.completeRepoTagCommit,
	}, 3, false, func(ctx context.Context, repo string, args []string) error {
		return a.repoTagCreate(ctx, repo, args[0], args[1], description, format)
	})
	cmd.Flags().StringVarP(&description, "description", "d", "", "what it is")
	format.add(cmd)
	return cmd
}

func (a *App) repoTagCreate(ctx context.Context, repo, tag, commit, description string, format formatFlags) error {
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
	if err != nil {
		return err
	}
	if made.TagName == "" {
		made.TagName = tag
	}
	return a.show(mode, tag, made, a.say("✓ Tag created → %s:%s", repo, tag))
}

func (a *App) repoTagListCommand() *cobra.Command {
	var format formatFlags
	var pages pageFlags
	cmd := repoTagArguments(&cobra.Command{
		Use: "list <repo|org/repo>", Aliases: []string{"ls"}, Short: "List the tags of a repository, also a public one",
		Example:           "  vers repo tag list my-app\n  vers repo tag list acme/python",
		ValidArgsFunction: a.completeRepos,
	}, 1, false, func(ctx context.Context, repo string, _ []string) error {
		return a.repoTagList(ctx, repo, format, pages)
	})
	format.addQuiet(cmd, "print names only")
	pages.add(cmd)
	return cmd
}

func (a *App) repoTagList(ctx context.Context, repo string, format formatFlags, pages pageFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "listing the tags")
	defer cancel()
	all, err := a.repoTags(ctx, client, repo)
	if err != nil {
		return err
	}
	return listing[api.RepoTag]{
		name:    func(t api.RepoTag) string { return t.TagName },
		heading: "Repository: " + repo,
		header:  []string{"TAG", "COMMIT", "CREATED", "DESCRIPTION"},
		row: func(t api.RepoTag) []string {
			return []string{t.TagName, t.CommitID, when(t.CreatedAt), text(t.Description)}
		},
		empty: fmt.Sprintf("No tags in repository '%s'. Create one with 'vers repo tag create %s <tag> <commit>'.", repo, repo),
	}.print(a, mode, pages, all)
}

// repoTags lists the tags of an own repository, or of a public one given as org/name.
func (a *App) repoTags(ctx context.Context, client *api.Client, repo string) ([]api.RepoTag, error) {
	if org, name, ok := ref.Foreign(repo); ok {
		tags, err := client.PublicRepoTags(ctx, org, name)
		return tags, missingPublic(err, org, name)
	}
	tags, err := client.RepoTags(ctx, repo)
	return tags, missingRepo(err, repo)
}

func (a *App) repoTagGetCommand() *cobra.Command {
	var format formatFlags
	cmd := repoTagArguments(&cobra.Command{
		Use: "get <repo|org/repo> <tag>", Short: "Show a tag, also of a public repository",
		Example:           "  vers repo tag get my-app latest --format json | jq -r .commit_id",
		ValidArgsFunction: a.completeRepoTags,
	}, 2, false, func(ctx context.Context, repo string, args []string) error {
		return a.repoTagGet(ctx, repo, args[0], format)
	})
	format.addQuiet(cmd, "print the commit's id only")
	return cmd
}

func missingTag(err error, repo, tag string) error {
	if !api.IsNotFound(err) {
		return err
	}
	return rewordf(err, "tag '%s:%s' not found; 'vers repo tag list %s' shows the tags", repo, tag, repo)
}

func (a *App) repoTagGet(ctx context.Context, repo, tag string, format formatFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "reading the tag")
	defer cancel()
	t, err := a.oneRepoTag(ctx, client, repo, tag)
	if err != nil {
		return missingTag(err, repo, tag)
	}
	protected := ""
	if t.Protected {
		protected = "yes"
	}
	return a.show(mode, t.CommitID, t, a.fields([][2]string{
		{"Tag", t.TagName}, {"ID", t.TagID}, {"Reference", t.Reference}, {"Commit", t.CommitID}, {"Protected", protected},
		{"Created", when(t.CreatedAt)}, {"Updated", when(t.UpdatedAt)}, {"Description", text(t.Description)},
	}))
}

func (a *App) oneRepoTag(ctx context.Context, client *api.Client, repo, tag string) (api.RepoTag, error) {
	if org, name, ok := ref.Foreign(repo); ok {
		return client.PublicRepoTag(ctx, org, name, tag)
	}
	return client.RepoTag(ctx, repo, tag)
}

func (a *App) repoTagUpdateCommand() *cobra.Command {
	var format formatFlags
	var commit, description, expected string
	var cmd *cobra.Command
	cmd = repoTagArguments(&cobra.Command{
		Use: "update <repo> <tag>", Short: "Move a tag, change its description, or both",
		Long: `Move a tag, change its description, or both. With --expect the tag is moved only if it points at that commit
now; else it is a conflict (exit code 4), and somebody else was quicker.`,
		Example: `  vers repo tag update my-app latest --commit 77aa01bc -d "main @ 1a2b3c4d"
  vers repo tag update my-app latest --commit 77aa01bc --expect 5f0c1a2b
  vers repo tag update my-app latest -d ""      # no description any more`,
		ValidArgsFunction: a.completeRepoTags,
	}, 2, false, func(ctx context.Context, repo string, args []string) error {
		var update api.RepoTagUpdate
		if cmd.Flags().Changed("commit") {
			update.CommitID = &commit
		}
		update.Description = newDescription(cmd, description)
		if expected != "" {
			update.ExpectedCommitID = &expected
		}
		return a.repoTagUpdate(ctx, repo, args[0], update, format)
	})
	cmd.Flags().StringVar(&commit, "commit", "", "commit to point at")
	cmd.Flags().StringVarP(&description, "description", "d", "", "new description; empty removes it")
	_ = cmd.RegisterFlagCompletionFunc("commit", a.completeCommits)
	addExpect(cmd, &expected)
	format.add(cmd)
	return cmd
}

func (a *App) repoTagUpdate(ctx context.Context, repo, tag string, update api.RepoTagUpdate, format formatFlags) error {
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
	if err := a.resolveCommits(ctx, update.CommitID, update.ExpectedCommitID); err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "updating the tag")
	defer cancel()
	if err := client.UpdateRepoTag(ctx, repo, tag, update); err != nil {
		return err
	}
	var moved api.RepoTag
	if mode == modeJSON {
		if moved, err = client.RepoTag(ctx, repo, tag); err != nil {
			return err
		}
	}
	return a.show(mode, tag, moved, a.say("✓ Tag '%s' in '%s' updated", tag, repo))
}

// addExpect adds the flag of changes that must not overwrite another one's.
func addExpect(cmd *cobra.Command, expected *string) {
	cmd.Flags().StringVar(expected, "expect", "", "commit that the tag must point at now, else nothing is changed")
}

// tagDone is the JSON output for a deleted tag.
type tagDone struct {
	Reference string `json:"reference"`
}

func (a *App) repoTagDeleteCommand() *cobra.Command {
	var format formatFlags
	var expected string
	cmd := repoTagArguments(&cobra.Command{
		Use: "delete <repo> <tag>...", Aliases: []string{"rm"}, Short: "Delete tags; the commits stay",
		Example:           "  vers repo tag delete my-app build-1 build-2\n  vers repo tag delete my-app latest --expect 5f0c1a2b",
		ValidArgsFunction: a.completeRepoTags,
	}, 2, true, func(ctx context.Context, repo string, tags []string) error {
		return a.repoTagDelete(ctx, repo, tags, expected, format)
	})
	addExpect(cmd, &expected)
	format.add(cmd)
	return cmd
}

func (a *App) repoTagDelete(ctx context.Context, repo string, tags []string, expected string, format formatFlags) error {
	if expected != "" && len(tags) > 1 {
		return fault.Invalidf("--expect is about one tag, but %d are named", len(tags))
	}
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	if expected != "" {
		if expected, err = a.commitTarget(ctx, expected); err != nil {
			return err
		}
	}
	return eachResult(a, mode, tags, func(tag string) (tagDone, string, error) {
		limited, cancel := limit(ctx, listLimit, "deleting the tag")
		defer cancel()
		err := missingTag(client.DeleteRepoTagAt(limited, repo, tag, expected), repo, tag)
		return tagDone{repo + ":" + tag}, fmt.Sprintf("✓ Tag '%s:%s' deleted", repo, tag), err
	})
}
