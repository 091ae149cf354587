package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/ref"
	"vers/internal/fault"
	"vers/internal/ident"
)

func (a *App) repoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "repo", Aliases: []string{"repository"}, Short: "Name commits repo:tag",
		Long: `A repository holds tags, and a tag points at a commit. Tags can be moved, commits never change. Repositories
are private to the organisation unless published.`,
		Example: `  vers repo create my-app -d "Pre-baked dev VMs"
  vers repo tag create my-app latest 5f0c1a2b
  vers run-commit my-app:latest --ref
  vers repo list --public
  vers repo fork acme/python:latest`,
	}
	return group(cmd, a.repoCreateCommand(), a.repoListCommand(), a.repoGetCommand(), a.repoDeleteCommand(),
		a.repoVisibilityCommand(), a.repoForkCommand(), a.repoTagCommand())
}

func checkRepoName(name string) error {
	if !ident.ValidName(name, ident.RepositoryName) {
		return fault.Invalidf("invalid repository name '%s': use 1 to 64 letters, digits, '-', '_' or '.'", name)
	}
	return nil
}

func missingRepo(err error, name string) error {
	if !api.IsNotFound(err) {
		return err
	}
	return rewordf(err, "repository '%s' not found; 'vers repo list' shows the repositories", name)
}

func (a *App) repoCreateCommand() *cobra.Command {
	var format formatFlags
	var description string
	cmd := &cobra.Command{
		Use: "create <name>", Short: "Make an empty private repository",
		Example: `  vers repo create my-app -d "Pre-baked dev VMs"`,
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.repoCreate(cmd.Context(), args[0], description, format)
		},
	}
	cmd.Flags().StringVarP(&description, "description", "d", "", "what it is for")
	format.add(cmd)
	return cmd
}

func (a *App) repoCreate(ctx context.Context, name, description string, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	if err := checkRepoName(name); err != nil {
		return err
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	req := api.RepositoryRequest{Name: name}
	if description != "" {
		req.Description = &description
	}
	ctx, cancel := limit(ctx, listLimit, "creating the repository")
	defer cancel()
	made, err := client.CreateRepository(ctx, req)
	if err != nil {
		return err
	}
	return a.show(mode, name, made, a.say("✓ Repository '%s' created (%s)", name, made.RepoID))
}

func (a *App) repoListCommand() *cobra.Command {
	var format formatFlags
	var pages pageFlags
	var public bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the repositories",
		Long:    "List the repositories of your organisation, newest first; with --public those that everybody can fork.",
		Example: "  vers repo list\n  vers repo list --public",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if public {
				return a.repoListPublic(cmd.Context(), format, pages)
			}
			return a.repoList(cmd.Context(), format, pages)
		},
	}
	cmd.Flags().BoolVar(&public, "public", false, "public repositories of all organisations")
	format.addQuiet(cmd, "print names only")
	pages.add(cmd)
	return cmd
}

func visibility(public bool) string {
	if public {
		return "public"
	}
	return "private"
}

func (a *App) repoList(ctx context.Context, format formatFlags, pages pageFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "listing the repositories")
	defer cancel()
	all, err := client.Repositories(ctx)
	if err != nil {
		return err
	}
	return listing[api.Repository]{
		name:   func(r api.Repository) string { return r.Name },
		header: []string{"NAME", "VISIBILITY", "CREATED", "DESCRIPTION"},
		row: func(r api.Repository) []string {
			return []string{r.Name, visibility(r.IsPublic), when(r.CreatedAt), text(r.Description)}
		},
		empty: "No repositories found. Create one with 'vers repo create <name>'.",
	}.print(a, mode, pages, all)
}

func (a *App) repoListPublic(ctx context.Context, format formatFlags, pages pageFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "listing the repositories")
	defer cancel()
	all, err := client.PublicRepositories(ctx)
	if err != nil {
		return err
	}
	return listing[api.PublicRepository]{
		name:   func(r api.PublicRepository) string { return r.FullName },
		header: []string{"NAME", "TAGS", "CREATED", "DESCRIPTION"},
		row: func(r api.PublicRepository) []string {
			return []string{r.FullName, strconv.FormatInt(r.TagCount, 10), when(r.CreatedAt), text(r.Description)}
		},
		empty: "No public repositories. Publish one with 'vers repo visibility <name> --public'.",
	}.print(a, mode, pages, all)
}

func (a *App) repoGetCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "get <name|org/name>", Short: "Show a repository, also another organisation's public one",
		Example: "  vers repo get my-app\n  vers repo get acme/python",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if org, repo, ok := ref.Foreign(args[0]); ok {
				return a.repoGetPublic(cmd.Context(), org, repo, format)
			}
			return a.repoGet(cmd.Context(), args[0], format)
		},
		ValidArgsFunction: a.completeRepos,
	}
	format.addQuiet(cmd, "print the name only")
	return cmd
}

func (a *App) repoGet(ctx context.Context, name string, format formatFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "reading the repository")
	defer cancel()
	r, err := client.Repository(ctx, name)
	if err != nil {
		return missingRepo(err, name)
	}
	return a.show(mode, r.Name, r, a.fields([][2]string{
		{"Name", r.Name}, {"ID", r.RepoID}, {"Owner", r.OwnerOrg}, {"Visibility", visibility(r.IsPublic)},
		{"Tags", strconv.FormatInt(r.TagCount, 10)}, {"Created", when(r.CreatedAt)}, {"Description", text(r.Description)},
	}))
}

func (a *App) repoGetPublic(ctx context.Context, org, repo string, format formatFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "reading the repository")
	defer cancel()
	r, err := client.PublicRepository(ctx, org, repo)
	if err != nil {
		return missingPublic(err, org, repo)
	}
	return a.show(mode, r.FullName, r, a.fields([][2]string{
		{"Name", r.FullName}, {"ID", r.RepoID}, {"Owner", r.OrgName}, {"Visibility", visibility(true)},
		{"Tags", strconv.FormatInt(r.TagCount, 10)}, {"Created", when(r.CreatedAt)}, {"Description", text(r.Description)},
	}))
}

func missingPublic(err error, org, repo string) error {
	if !api.IsNotFound(err) {
		return err
	}
	return rewordf(err, "public repository '%s/%s' not found; 'vers repo list --public' shows them", org, repo)
}

// repoDone is the JSON output of commands on repositories that give nothing back.
type repoDone struct {
	Name     string `json:"name"`
	IsPublic *bool  `json:"is_public,omitempty"`
}

func (a *App) repoDeleteCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "delete <name>...", Aliases: []string{"rm"}, Short: "Delete repositories with their tags; the commits stay",
		Example: "  vers repo delete my-app",
		Args:    arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.repoDelete(cmd.Context(), args, format)
		},
		ValidArgsFunction: a.completeRepos,
	}
	format.add(cmd)
	return cmd
}

func (a *App) repoDelete(ctx context.Context, names []string, format formatFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	return eachResult(a, mode, names, func(name string) (repoDone, string, error) {
		limited, cancel := limit(ctx, listLimit, "deleting the repository")
		defer cancel()
		err := missingRepo(client.DeleteRepository(limited, name), name)
		return repoDone{Name: name}, fmt.Sprintf("✓ Repository '%s' deleted", name), err
	})
}

func (a *App) repoVisibilityCommand() *cobra.Command {
	var format formatFlags
	var public bool
	cmd := &cobra.Command{
		Use: "visibility <name> --public[=false]", Short: "Make a repository public or private",
		Long: `Make a repository public, so that other organisations can fork its tags, or private again. Without
--public the present state is shown and nothing changes.`,
		Example: "  vers repo visibility my-app --public\n  vers repo visibility my-app --public=false",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.repoVisibility(cmd.Context(), args[0], cmd.Flags().Changed("public"), public, format)
		},
		ValidArgsFunction: a.completeRepos,
	}
	cmd.Flags().BoolVar(&public, "public", false, "true: public; false: private")
	format.add(cmd)
	return cmd
}

func (a *App) repoVisibility(ctx context.Context, name string, given, public bool, format formatFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "the request")
	defer cancel()
	verb := "is now"
	if given {
		err = client.SetVisibility(ctx, name, public)
	} else {
		var r api.Repository
		r, err = client.Repository(ctx, name)
		public, verb = r.IsPublic, "is"
	}
	if err != nil {
		return missingRepo(err, name)
	}
	return a.show(mode, name, repoDone{name, &public}, func() {
		fmt.Fprintf(a.Streams.Out, "Repository '%s' %s %s\n", name, verb, visibility(public))
		if !given {
			a.Streams.note("change it with --public or --public=false")
		}
	})
}
