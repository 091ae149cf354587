package cli

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/local"
	"vers/internal/cli/ref"
)

// completion is the type of cobra's functions for dynamic completion. They are silent about errors: a shell that
// completes has no place for them.
type completion = []cobra.Completion

const noFiles = cobra.ShellCompDirectiveNoFileComp

// completionClient gives a client for a completion and a context with a short limit.
func (a *App) completionClient(cmd *cobra.Command) (*api.Client, context.Context, context.CancelFunc) {
	a.loadDotEnv()
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	client, err := a.api()
	if err != nil {
		cancel()
		return nil, ctx, func() {}
	}
	return client, ctx, cancel
}

func (a *App) completeAliases(_ *cobra.Command, args []string, _ string) (completion, cobra.ShellCompDirective) {
	all, _ := a.aliases().All()
	out := completion{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if !slices.Contains(args, name) {
			out = append(out, cobra.CompletionWithDesc(name, all[name]))
		}
	}
	return out, noFiles
}

func (a *App) completeVMs(cmd *cobra.Command, args []string, typed string) (completion, cobra.ShellCompDirective) {
	if len(args) > 0 && cmd.Name() != "delete" {
		return nil, noFiles
	}
	out, _ := a.completeAliases(cmd, args, typed)
	client, ctx, cancel := a.completionClient(cmd)
	if client == nil {
		return out, noFiles
	}
	defer cancel()
	vms, _ := client.VMs(ctx)
	aliases, _ := a.aliases().All()
	for _, vm := range vms {
		if !slices.Contains(args, vm.VMID) {
			description := vm.State
			if names := local.Names(aliases, vm.VMID); len(names) > 0 {
				description += " " + names[0]
			}
			out = append(out, cobra.CompletionWithDesc(vm.VMID, description))
		}
	}
	return out, noFiles
}

// completeVMsAndFiles completes the arguments of copy: a VM or a path, then paths.
func (a *App) completeVMsAndFiles(cmd *cobra.Command, args []string, typed string) (completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	vms, _ := a.completeVMs(cmd, args, typed)
	return vms, cobra.ShellCompDirectiveDefault
}

func (a *App) completeAliasSet(cmd *cobra.Command, args []string, typed string) (completion, cobra.ShellCompDirective) {
	if len(args) == 1 {
		return a.completeVMs(cmd, nil, typed)
	}
	return a.completeAliases(cmd, args, typed)
}

// completeCommits offers commits and, with --ref, references.
func (a *App) completeCommits(cmd *cobra.Command, args []string, _ string) (completion, cobra.ShellCompDirective) {
	client, ctx, cancel := a.completionClient(cmd)
	if client == nil {
		return nil, noFiles
	}
	defer cancel()
	if isRef := cmd.Flags().Lookup("ref"); isRef != nil && isRef.Value.String() == "true" {
		return a.completeReferences(ctx, client), noFiles
	}
	out := completion{}
	commits, _ := client.Commits(ctx)
	for _, c := range commits {
		if !slices.Contains(args, c.CommitID) {
			out = append(out, cobra.CompletionWithDesc(c.CommitID, clean(c.Name)))
		}
	}
	return append(out, completePlainTags(ctx, client, args)...), noFiles
}

func completePlainTags(ctx context.Context, client *api.Client, args []string) completion {
	out := completion{}
	tags, _ := client.Tags(ctx)
	for _, tag := range tags {
		if !slices.Contains(args, tag.TagName) {
			out = append(out, cobra.CompletionWithDesc(tag.TagName, text(tag.Description)))
		}
	}
	return out
}

// completeTags offers plain tags.
func (a *App) completeTags(cmd *cobra.Command, args []string, _ string) (completion, cobra.ShellCompDirective) {
	if len(args) > 0 && cmd.Name() != "delete" {
		return nil, noFiles
	}
	client, ctx, cancel := a.completionClient(cmd)
	if client == nil {
		return nil, noFiles
	}
	defer cancel()
	return completePlainTags(ctx, client, args), noFiles
}

func (a *App) completeTagCommit(cmd *cobra.Command, args []string, typed string) (completion, cobra.ShellCompDirective) {
	if len(args) == 1 {
		return a.completeCommits(cmd, nil, typed)
	}
	return nil, noFiles
}

// completePublicTags offers org/repo:tag: the repositories first, then the tags of the one that is typed.
func (a *App) completePublicTags(cmd *cobra.Command, args []string, typed string) (completion, cobra.ShellCompDirective) {
	client, ctx, cancel := a.completionClient(cmd)
	if client == nil || len(args) > 0 {
		cancel()
		return nil, noFiles
	}
	defer cancel()
	out := completion{}
	full, _, found := strings.Cut(typed, ":")
	if org, repo, ok := ref.Foreign(full); ok && found {
		tags, _ := client.PublicRepoTags(ctx, org, repo)
		for _, tag := range tags {
			out = append(out, cobra.CompletionWithDesc(full+":"+tag.TagName, text(tag.Description)))
		}
		return out, noFiles
	}
	repos, _ := client.PublicRepositories(ctx)
	for _, r := range repos {
		out = append(out, cobra.CompletionWithDesc(r.FullName+":", text(r.Description)))
	}
	return out, noFiles | cobra.ShellCompDirectiveNoSpace
}

func (a *App) completeVMsAndReferences(cmd *cobra.Command, args []string, typed string) (completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, noFiles
	}
	out, _ := a.completeVMs(cmd, args, typed)
	client, ctx, cancel := a.completionClient(cmd)
	if client == nil {
		return out, noFiles
	}
	defer cancel()
	return append(out, a.completeReferences(ctx, client)...), noFiles
}

func (a *App) completeReferences(ctx context.Context, client *api.Client) completion {
	out := completion{}
	repos, _ := client.Repositories(ctx)
	for _, repo := range repos[:min(len(repos), maxCompletedRepos)] {
		tags, _ := client.RepoTags(ctx, repo.Name)
		for _, tag := range tags {
			out = append(out, cobra.CompletionWithDesc(repo.Name+":"+tag.TagName, text(tag.Description)))
		}
	}
	return out
}

// maxCompletedRepos bounds the requests for one completion of references: the newest repositories are asked.
const maxCompletedRepos = 50

func (a *App) completeVMsAndCommits(cmd *cobra.Command, args []string, typed string) (completion, cobra.ShellCompDirective) {
	if isRef := cmd.Flags().Lookup("ref"); isRef.Value.String() == "true" {
		return a.completeCommits(cmd, args, typed)
	}
	vms, _ := a.completeVMs(cmd, args, typed)
	commits, _ := a.completeCommits(cmd, args, typed)
	return append(vms, commits...), noFiles
}

func (a *App) completeRepos(cmd *cobra.Command, args []string, _ string) (completion, cobra.ShellCompDirective) {
	if len(args) > 0 && cmd.Name() != "delete" {
		return nil, noFiles
	}
	client, ctx, cancel := a.completionClient(cmd)
	if client == nil {
		return nil, noFiles
	}
	defer cancel()
	out := completion{}
	repos, _ := client.Repositories(ctx)
	for _, repo := range repos {
		if !slices.Contains(args, repo.Name) {
			out = append(out, cobra.CompletionWithDesc(repo.Name, text(repo.Description)))
		}
	}
	return out, noFiles
}

func (a *App) completeRepoTags(cmd *cobra.Command, args []string, typed string) (completion, cobra.ShellCompDirective) {
	if repo, _ := cmd.Flags().GetString("repo"); repo != "" {
		args = append([]string{repo}, args...)
	}
	if len(args) == 0 {
		return a.completeRepos(cmd, nil, typed)
	}
	if len(args) > 1 && cmd.Name() != "delete" {
		return nil, noFiles
	}
	client, ctx, cancel := a.completionClient(cmd)
	if client == nil {
		return nil, noFiles
	}
	defer cancel()
	out := completion{}
	tags, _ := client.RepoTags(ctx, args[0])
	for _, tag := range tags {
		if !slices.Contains(args[1:], tag.TagName) {
			out = append(out, cobra.CompletionWithDesc(tag.TagName, text(tag.Description)))
		}
	}
	return out, noFiles
}

func (a *App) completeRepoTagCommit(cmd *cobra.Command, args []string, typed string) (completion, cobra.ShellCompDirective) {
	if len(args) == 2 {
		return a.completeCommits(cmd, nil, typed)
	}
	return a.completeRepoTags(cmd, args, typed)
}

func (a *App) completeEnv(cmd *cobra.Command, _ []string, _ string) (completion, cobra.ShellCompDirective) {
	client, ctx, cancel := a.completionClient(cmd)
	if client == nil {
		return nil, noFiles
	}
	defer cancel()
	vars, _ := client.EnvVars(ctx)
	return slices.Sorted(maps.Keys(vars)), noFiles
}

func (a *App) completeKeys(cmd *cobra.Command, args []string, _ string) (completion, cobra.ShellCompDirective) {
	client, ctx, cancel := a.completionClient(cmd)
	if client == nil {
		return nil, noFiles
	}
	defer cancel()
	out := completion{}
	keys, _ := client.Keys(ctx)
	for _, key := range keys {
		if key.RevokedAt == nil && !slices.Contains(args, key.KeyID) {
			out = append(out, cobra.CompletionWithDesc(key.KeyID, clean(key.Name)))
		}
	}
	return out, noFiles
}

func (a *App) completeProjects(cmd *cobra.Command, args []string, _ string) (completion, cobra.ShellCompDirective) {
	client, ctx, cancel := a.completionClient(cmd)
	if client == nil {
		return nil, noFiles
	}
	defer cancel()
	out := completion{}
	projects, _ := client.Projects(ctx)
	for _, p := range projects {
		if !slices.Contains(args, p.Name) {
			out = append(out, cobra.CompletionWithDesc(p.Name, p.Status))
		}
	}
	return out, noFiles
}

func (a *App) completeImages(cmd *cobra.Command, _ []string, _ string) (completion, cobra.ShellCompDirective) {
	client, ctx, cancel := a.completionClient(cmd)
	if client == nil {
		return nil, noFiles
	}
	defer cancel()
	out := completion{}
	images, _ := client.Images(ctx)
	for _, image := range images {
		out = append(out, image.ImageName)
	}
	return out, noFiles
}
