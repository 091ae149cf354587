package cli

import (
	"context"

	"vers/api"
	"vers/internal/cli/mcp"
)

func (m *agentTools) addCommitTools(s *mcp.Server) {
	type commitInput struct {
		vmInput
		Name        string   `json:"name,omitempty" jsonschema:"name of the commit; generated if left out"`
		Description string   `json:"description,omitempty"`
		Tags        []string `json:"tags,omitempty" jsonschema:"repo:tag names that shall point at the commit; they are made or moved, missing repositories made"`
		KeepPaused  bool     `json:"keepPaused,omitempty" jsonschema:"leave the VM paused"`
	}
	mcp.Add(s, mcp.Tool{
		Name: "vers.commit", Title: "Commit a VM", PerMinute: 10,
		Description: "Takes a commit of a VM: an immutable snapshot of memory, processes and disk, from which vers.run_commit starts VMs. The VM runs on.",
	}, func(ctx context.Context, call *mcp.Call, in commitInput) (commitResult, error) {
		o := commitOptions{vm: in.Target, name: in.Name, description: in.Description, tags: in.Tags, keepPaused: in.KeepPaused, format: asJSON}
		return command[commitResult](m, call, func(a *App) error { return a.commit(ctx, o) })
	})
	mcp.Add(s, mcp.Tool{
		Name: "vers.commit.list", Title: "List commits", PerMinute: 60, ReadOnly: true,
		Description: "Lists the commits of the organisation, newest first.",
	}, func(ctx context.Context, call *mcp.Call, in pageInput) (listOutput[api.CommitInfo], error) {
		all, err := command[[]api.CommitInfo](m, call, func(a *App) error { return a.commitList(ctx, asJSON, pageFlags{}, false) })
		return pageOf(in, all, err)
	})
	type commitIDInput struct {
		Commit string `json:"commit" jsonschema:"id of a commit, unique beginning of one, or repo:tag"`
	}
	type historyOutput struct {
		Commits []historyEntry `json:"commits" jsonschema:"the commit, its parent, and so on"`
	}
	mcp.Add(s, mcp.Tool{
		Name: "vers.commit.history", Title: "Show ancestors of a commit", PerMinute: 60, ReadOnly: true,
		Description: "Lists a commit and its ancestors.",
	}, func(ctx context.Context, call *mcp.Call, in commitIDInput) (historyOutput, error) {
		entries, err := command[[]historyEntry](m, call, func(a *App) error { return a.commitHistory(ctx, in.Commit, asJSON) })
		return historyOutput{entries}, err
	})
	type deleteInput struct {
		Commit           string `json:"commit" jsonschema:"id of a commit, unique beginning of one, or repo:tag"`
		SkipConfirmation bool   `json:"skipConfirmation,omitempty" jsonschema:"must be true: the user wants it deleted"`
	}
	mcp.Add(s, mcp.Tool{
		Name: "vers.commit.delete", Title: "Delete a commit", PerMinute: 10, Destructive: true,
		Description: "Deletes a commit that no VM and no tag needs. Needs skipConfirmation: true.",
	}, func(ctx context.Context, call *mcp.Call, in deleteInput) (commitDone, error) {
		var out commitDone
		if err := confirmed(in.SkipConfirmation, "commit '%s'", in.Commit); err != nil {
			return out, err
		}
		return filled(&out, m.with(call, func(a *App, client *api.Client) error {
			id, err := a.commitTarget(ctx, in.Commit)
			if err != nil {
				return err
			}
			ctx, cancel := limit(ctx, listLimit, "deleting the commit")
			defer cancel()
			out.CommitID = id
			return missingCommit(client.DeleteCommit(ctx, id), in.Commit)
		}))
	})
}
