package cli

import (
	"context"

	"vers/api"
	"vers/internal/cli/mcp"
	"vers/internal/fault"
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
	type diffInput struct {
		Commits []string `json:"commits,omitempty" jsonschema:"two commits to compare, or one, which is compared with the one before it; HEAD's latest commit if left out. Ids, unique beginnings of ids, or repo:tag"`
		Path    string   `json:"path,omitempty" jsonschema:"only what is at or below this absolute path"`
		Limit   int      `json:"limit,omitempty" jsonschema:"at most this many entries; 1000 if left out, at most 100000"`
	}
	mcp.Add(s, mcp.Tool{
		Name: "vers.diff", Title: "Compare two commits", PerMinute: 30, ReadOnly: true,
		Description: "Shows which files were added, changed and removed between two commits, with sizes, from their disks. Nothing is started.",
	}, func(ctx context.Context, call *mcp.Call, in diffInput) (api.Diff, error) {
		if len(in.Commits) > 2 {
			return api.Diff{}, fault.Invalidf("%d commits: two can be compared", len(in.Commits))
		}
		if in.Limit == 0 {
			in.Limit = 1000
		}
		return command[api.Diff](m, call, func(a *App) error {
			return a.diff(ctx, diffOptions{commits: in.Commits, path: in.Path, limit: in.Limit, format: asJSON})
		})
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
