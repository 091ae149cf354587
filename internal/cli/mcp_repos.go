package cli

import (
	"context"

	"vers/api"
	"vers/internal/cli/mcp"
)

// repoInput names a repository.
type repoInput struct {
	Name string `json:"name" jsonschema:"name of the repository"`
}

type deleteRepoInput struct {
	repoInput
	SkipConfirmation bool `json:"skipConfirmation,omitempty" jsonschema:"must be true: the user wants it deleted"`
}

func (m *agentTools) addRepoTools(s *mcp.Server) {
	mcp.Add(s, mcp.Tool{
		Name: "vers.repo.list", Title: "List repositories", PerMinute: 60, ReadOnly: true,
		Description: "Lists the repositories of the organisation. A repository holds tags, and a tag names a commit.",
	}, func(ctx context.Context, call *mcp.Call, in pageInput) (listOutput[api.Repository], error) {
		all, err := command[[]api.Repository](m, call, func(a *App) error { return a.repoList(ctx, asJSON, pageFlags{}) })
		return pageOf(in, all, err)
	})
	mcp.Add(s, mcp.Tool{
		Name: "vers.repo.get", Title: "Show a repository", PerMinute: 60, ReadOnly: true,
		Description: "Shows a repository: visibility, number of tags, description.",
	}, func(ctx context.Context, call *mcp.Call, in repoInput) (api.Repository, error) {
		return command[api.Repository](m, call, func(a *App) error { return a.repoGet(ctx, in.Name, asJSON) })
	})
	type createInput struct {
		repoInput
		Description string `json:"description,omitempty" jsonschema:"what it is for"`
	}
	mcp.Add(s, mcp.Tool{
		Name: "vers.repo.create", Title: "Make a repository", PerMinute: 30,
		Description: "Makes an empty private repository. One that exists is a conflict.",
	}, func(ctx context.Context, call *mcp.Call, in createInput) (api.RepositoryCreated, error) {
		return command[api.RepositoryCreated](m, call, func(a *App) error { return a.repoCreate(ctx, in.Name, in.Description, asJSON) })
	})
	mcp.Add(s, mcp.Tool{
		Name: "vers.repo.delete", Title: "Delete a repository", PerMinute: 10, Destructive: true,
		Description: "Deletes a repository with its tags; the commits stay. Needs skipConfirmation: true.",
	}, func(ctx context.Context, call *mcp.Call, in deleteRepoInput) (repoDone, error) {
		out := repoDone{Name: in.Name}
		if err := confirmed(in.SkipConfirmation, "repository '%s' with its tags", in.Name); err != nil {
			return out, err
		}
		return filled(&out, m.with(call, func(_ *App, client *api.Client) error {
			ctx, cancel := limit(ctx, listLimit, "deleting the repository")
			defer cancel()
			return missingRepo(client.DeleteRepository(ctx, in.Name), in.Name)
		}))
	})
}

// addSharingTools adds the tools for what other organisations publish.
func (m *agentTools) addSharingTools(s *mcp.Server) {
	mcp.Add(s, mcp.Tool{
		Name: "vers.repo.public", Title: "List public repositories", PerMinute: 60, ReadOnly: true,
		Description: "Lists the public repositories of all organisations, which vers.repo.fork can copy from.",
	}, func(ctx context.Context, call *mcp.Call, in pageInput) (listOutput[api.PublicRepository], error) {
		all, err := command[[]api.PublicRepository](m, call, func(a *App) error { return a.repoListPublic(ctx, asJSON, pageFlags{}) })
		return pageOf(in, all, err)
	})
	type forkInput struct {
		Source   string `json:"source" jsonschema:"tag of a public repository: org/repo:tag"`
		RepoName string `json:"repoName,omitempty" jsonschema:"own repository; the source's name if left out"`
		TagName  string `json:"tagName,omitempty" jsonschema:"own tag; the source's tag if left out"`
	}
	mcp.Add(s, mcp.Tool{
		Name: "vers.repo.fork", Title: "Fork a public tag", PerMinute: 4,
		Description: "Starts a VM from a tag of a public repository, commits it into the own organisation and tags the commit. HEAD does not move.",
	}, func(ctx context.Context, call *mcp.Call, in forkInput) (api.Fork, error) {
		return command[api.Fork](m, call, func(a *App) error { return a.repoFork(ctx, in.Source, in.RepoName, in.TagName, asJSON) })
	})
}

// repoTagInput names a tag of a repository.
type repoTagInput struct {
	Repo string `json:"repo" jsonschema:"name of the repository"`
	Tag  string `json:"tag" jsonschema:"name of the tag"`
}

// tagChange is what can be changed of a tag.
type tagChange struct {
	Commit         string  `json:"commit,omitempty" jsonschema:"commit that the tag shall point at: id, unique beginning of one, or repo:tag"`
	Description    *string `json:"description,omitempty" jsonschema:"empty removes it"`
	ExpectedCommit string  `json:"expectedCommit,omitempty" jsonschema:"refuse with E_CONFLICT if the tag points at another commit now"`
}

func (m *agentTools) addRepoTagTools(s *mcp.Server) {
	type listInput struct {
		Repo string `json:"repo" jsonschema:"name of the repository"`
		pageInput
	}
	mcp.Add(s, mcp.Tool{
		Name: "vers.repo.tag.list", Title: "List tags of a repository", PerMinute: 60, ReadOnly: true,
		Description: "Lists the tags of a repository and the commits that they point at.",
	}, func(ctx context.Context, call *mcp.Call, in listInput) (listOutput[api.RepoTag], error) {
		all, err := command[[]api.RepoTag](m, call, func(a *App) error { return a.repoTagList(ctx, in.Repo, asJSON, pageFlags{}) })
		return pageOf(in.pageInput, all, err)
	})
	mcp.Add(s, mcp.Tool{
		Name: "vers.repo.tag.get", Title: "Show a tag of a repository", PerMinute: 60, ReadOnly: true,
		Description: "Shows a tag and the commit that it points at.",
	}, func(ctx context.Context, call *mcp.Call, in repoTagInput) (api.RepoTag, error) {
		return command[api.RepoTag](m, call, func(a *App) error { return a.repoTagGet(ctx, in.Repo, in.Tag, asJSON) })
	})
	type createInput struct {
		repoTagInput
		Commit      string `json:"commit" jsonschema:"id of a commit, unique beginning of one, or repo:tag"`
		Description string `json:"description,omitempty"`
	}
	mcp.Add(s, mcp.Tool{
		Name: "vers.repo.tag.create", Title: "Make a tag in a repository", PerMinute: 30,
		Description: "Lets a new tag point at a commit. A tag that exists is a conflict; vers.repo.tag.update moves it.",
	}, func(ctx context.Context, call *mcp.Call, in createInput) (api.RepoTagCreated, error) {
		return command[api.RepoTagCreated](m, call, func(a *App) error {
			return a.repoTagCreate(ctx, in.Repo, in.Tag, in.Commit, in.Description, asJSON)
		})
	})
	mcp.Add(s, mcp.Tool{
		Name: "vers.repo.tag.history", Title: "Show what happened to a tag", PerMinute: 60, ReadOnly: true,
		Description: "Shows who moved a tag when and from which commit to which, newest first, also of a deleted tag.",
	}, func(ctx context.Context, call *mcp.Call, in tagHistoryInput) (listOutput[api.TagEvent], error) {
		all, err := command[[]api.TagEvent](m, call, func(a *App) error { return a.repoTagHistory(ctx, in.Repo, in.Tag, asJSON, pageFlags{}) })
		return pageOf(in.pageInput, all, err)
	})
	m.addRepoTagChanges(s)
}

type tagHistoryInput struct {
	repoTagInput
	pageInput
}

func (m *agentTools) addRepoTagChanges(s *mcp.Server) {
	type updateInput struct {
		repoTagInput
		tagChange
	}
	mcp.Add(s, mcp.Tool{
		Name: "vers.repo.tag.update", Title: "Move a tag of a repository", PerMinute: 30, Destructive: true, Idempotent: true,
		Description: "Lets a tag point at another commit, changes its description, or both.",
	}, func(ctx context.Context, call *mcp.Call, in updateInput) (api.RepoTag, error) {
		return command[api.RepoTag](m, call, func(a *App) error {
			return a.repoTagUpdate(ctx, in.Repo, in.Tag, api.RepoTagUpdate(in.update()), asJSON)
		})
	})
	type rollbackInput struct {
		repoTagInput
		Entry          *int64 `json:"entry,omitempty" jsonschema:"go back to where this entry of vers.repo.tag.history left it; the commit before the last move if left out"`
		ExpectedCommit string `json:"expectedCommit,omitempty" jsonschema:"refuse with E_CONFLICT if the tag points at another commit now"`
	}
	mcp.Add(s, mcp.Tool{
		Name: "vers.repo.tag.rollback", Title: "Move a tag back", PerMinute: 30, Destructive: true,
		Description: "Moves a tag back to the commit it had before its last move; again, and it is the one before that.",
	}, func(ctx context.Context, call *mcp.Call, in rollbackInput) (api.TagRollbackResult, error) {
		return command[api.TagRollbackResult](m, call, func(a *App) error {
			return a.repoTagRollback(ctx, in.Repo, in.Tag, api.TagRollbackRequest{EntryID: in.Entry}, in.ExpectedCommit, asJSON)
		})
	})
	type deleteInput struct {
		repoTagInput
		SkipConfirmation bool `json:"skipConfirmation,omitempty" jsonschema:"must be true: the user wants it deleted"`
	}
	mcp.Add(s, mcp.Tool{
		Name: "vers.repo.tag.delete", Title: "Delete a tag of a repository", PerMinute: 30, Destructive: true,
		Description: "Deletes a tag; its commit stays. Needs skipConfirmation: true.",
	}, func(ctx context.Context, call *mcp.Call, in deleteInput) (repoTagInput, error) {
		if err := confirmed(in.SkipConfirmation, "tag '%s:%s'", in.Repo, in.Tag); err != nil {
			return in.repoTagInput, err
		}
		return in.repoTagInput, m.with(call, func(_ *App, client *api.Client) error {
			ctx, cancel := limit(ctx, listLimit, "deleting the tag")
			defer cancel()
			return missingTag(client.DeleteRepoTag(ctx, in.Repo, in.Tag), in.Repo, in.Tag)
		})
	})
}
