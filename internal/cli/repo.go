package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"vers/api"
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
  vers run-commit my-app:latest --ref`,
	}
	return group(cmd, a.repoCreateCommand(), a.repoListCommand(), a.repoGetCommand(), a.repoDeleteCommand(),
		a.repoVisibilityCommand(), a.repoTagCommand())
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
	switch {
	case err != nil:
		return err
	case mode == modeJSON:
		return printJSON(a.Streams.Out, made)
	}
	fmt.Fprintf(a.Streams.Out, "✓ Repository '%s' created (%s)\n", name, made.RepoID)
	return nil
}

func (a *App) repoListCommand() *cobra.Command {
	var format formatFlags
	var pages pageFlags
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the repositories",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.repoList(cmd.Context(), format, pages)
		},
	}
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
	mode, err := format.mode()
	if err != nil {
		return err
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "listing the repositories")
	defer cancel()
	all, err := client.Repositories(ctx)
	if err != nil {
		return err
	}
	items, forJSON, hint, err := cut(pages, all)
	if err != nil {
		return err
	}
	switch mode {
	case modeJSON:
		return printJSON(a.Streams.Out, forJSON)
	case modeQuiet:
		for _, r := range items {
			fmt.Fprintln(a.Streams.Out, r.Name)
		}
	default:
		if len(all) == 0 {
			fmt.Fprintln(a.Streams.Out, "No repositories found. Create one with 'vers repo create <name>'.")
			return nil
		}
		rows := make([][]string, 0, len(items))
		for _, r := range items {
			rows = append(rows, []string{r.Name, visibility(r.IsPublic), when(r.CreatedAt), text(r.Description)})
		}
		a.Streams.table([]string{"NAME", "VISIBILITY", "CREATED", "DESCRIPTION"}, rows)
	}
	if hint != "" {
		a.Streams.note("%s", hint)
	}
	return nil
}

func (a *App) repoGetCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "get <name>", Short: "Show a repository",
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.repoGet(cmd.Context(), args[0], format)
		},
		ValidArgsFunction: a.completeRepos,
	}
	format.add(cmd)
	return cmd
}

func (a *App) repoGet(ctx context.Context, name string, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "reading the repository")
	defer cancel()
	r, err := client.Repository(ctx, name)
	switch {
	case err != nil:
		return missingRepo(err, name)
	case mode == modeJSON:
		return printJSON(a.Streams.Out, r)
	}
	a.fields([][2]string{
		{"Name", r.Name}, {"ID", r.RepoID}, {"Owner", r.OwnerOrg}, {"Visibility", visibility(r.IsPublic)},
		{"Tags", strconv.FormatInt(r.TagCount, 10)}, {"Created", when(r.CreatedAt)}, {"Description", text(r.Description)},
	})
	return nil
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
		Args: arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.repoDelete(cmd.Context(), args, format)
		},
		ValidArgsFunction: a.completeRepos,
	}
	format.add(cmd)
	return cmd
}

func (a *App) repoDelete(ctx context.Context, names []string, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	done := []repoDone{}
	err = a.each(names, func(name string) error {
		limited, cancel := limit(ctx, listLimit, "deleting the repository")
		defer cancel()
		if err := client.DeleteRepository(limited, name); err != nil {
			return missingRepo(err, name)
		}
		done = append(done, repoDone{Name: name})
		if mode == modeText {
			fmt.Fprintf(a.Streams.Out, "✓ Repository '%s' deleted\n", name)
		}
		return nil
	})
	if mode == modeJSON {
		return errors.Join(err, printJSON(a.Streams.Out, done))
	}
	return err
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
	mode, err := format.mode()
	if err != nil {
		return err
	}
	client, err := a.api()
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
	switch {
	case err != nil:
		return missingRepo(err, name)
	case mode == modeJSON:
		return printJSON(a.Streams.Out, repoDone{name, &public})
	}
	fmt.Fprintf(a.Streams.Out, "Repository '%s' %s %s\n", name, verb, visibility(public))
	if !given {
		a.Streams.note("change it with --public or --public=false")
	}
	return nil
}
