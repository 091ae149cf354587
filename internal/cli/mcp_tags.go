package cli

import (
	"context"

	"vers/api"
	"vers/internal/cli/mcp"
)

// plainTagInput names a tag outside of repositories.
type plainTagInput struct {
	Tag string `json:"tag" jsonschema:"name of the tag"`
}

// addTagTools adds the tools for plain tags: names for commits outside of repositories.
func (m *agentTools) addTagTools(s *mcp.Server) {
	mcp.Add(s, mcp.Tool{
		Name: "vers.tag.list", Title: "List plain tags", PerMinute: 60, ReadOnly: true,
		Description: "Lists the plain tags of the organisation: names for commits outside of repositories.",
	}, func(ctx context.Context, call *mcp.Call, in pageInput) (listOutput[plainTag], error) {
		all, err := command[[]plainTag](m, call, func(a *App) error { return a.tagList(ctx, asJSON, pageFlags{}) })
		return pageOf(in, all, err)
	})
	mcp.Add(s, mcp.Tool{
		Name: "vers.tag.get", Title: "Show a plain tag", PerMinute: 60, ReadOnly: true,
		Description: "Shows a plain tag and the commit that it points at.",
	}, func(ctx context.Context, call *mcp.Call, in plainTagInput) (plainTag, error) {
		return command[plainTag](m, call, func(a *App) error { return a.tagGet(ctx, in.Tag, asJSON) })
	})
	type createInput struct {
		plainTagInput
		Commit      string `json:"commit" jsonschema:"id of a commit, unique beginning of one, repo:tag, or another plain tag"`
		Description string `json:"description,omitempty"`
	}
	mcp.Add(s, mcp.Tool{
		Name: "vers.tag.create", Title: "Make a plain tag", PerMinute: 30,
		Description: "Lets a new plain tag point at a commit. A tag that exists is a conflict; vers.tag.update moves it.",
	}, func(ctx context.Context, call *mcp.Call, in createInput) (api.TagCreated, error) {
		return command[api.TagCreated](m, call, func(a *App) error { return a.tagCreate(ctx, in.Tag, in.Commit, in.Description, asJSON) })
	})
	type updateInput struct {
		plainTagInput
		tagChange
	}
	mcp.Add(s, mcp.Tool{
		Name: "vers.tag.update", Title: "Move a plain tag", PerMinute: 30, Destructive: true, Idempotent: true,
		Description: "Lets a plain tag point at another commit, changes its description, or both.",
	}, func(ctx context.Context, call *mcp.Call, in updateInput) (plainTag, error) {
		return command[plainTag](m, call, func(a *App) error { return a.tagUpdate(ctx, in.Tag, in.update(), asJSON) })
	})
	type deleteInput struct {
		plainTagInput
		SkipConfirmation bool `json:"skipConfirmation,omitempty" jsonschema:"must be true: the user wants it deleted"`
	}
	mcp.Add(s, mcp.Tool{
		Name: "vers.tag.delete", Title: "Delete a plain tag", PerMinute: 30, Destructive: true,
		Description: "Deletes a plain tag; its commit stays. Needs skipConfirmation: true.",
	}, func(ctx context.Context, call *mcp.Call, in deleteInput) (plainTagInput, error) {
		if err := confirmed(in.SkipConfirmation, "tag '%s'", in.Tag); err != nil {
			return in.plainTagInput, err
		}
		return in.plainTagInput, m.with(call, func(_ *App, client *api.Client) error {
			ctx, cancel := limit(ctx, listLimit, "deleting the tag")
			defer cancel()
			return missingPlainTag(client.DeleteTag(ctx, in.Tag), in.Tag)
		})
	})
}

// update makes the request for a change of a tag, plain or of a repository.
func (in tagChange) update() api.TagUpdate {
	var update api.TagUpdate
	if in.Commit != "" {
		update.CommitID = &in.Commit
	}
	if in.ExpectedCommit != "" {
		update.ExpectedCommitID = &in.ExpectedCommit
	}
	if in.Description != nil {
		update.Description = api.Text(*in.Description)
		if *in.Description == "" {
			update.Description = api.Null()
		}
	}
	return update
}
