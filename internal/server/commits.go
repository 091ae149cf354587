package server

import (
	"context"
	"net/http"
	"time"

	"vers/api"
	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/machine"
	"vers/internal/registry"
)

// Pages of lists (spec/api.md 1.8).
const (
	pageDefault = 50
	pageLimit   = 100
)

// PageInput says which part of a list is wanted.
type PageInput struct {
	Limit  int64 `query:"limit" default:"50" doc:"At most 100"`
	Offset int64 `query:"offset"`
}

// read gives the page's bounds; more than the limit is cut, not refused.
func (p PageInput) read() (limit, offset int64, err error) {
	if p.Limit < 1 || p.Offset < 0 {
		return 0, 0, fault.Invalidf("limit is %d and offset %d; limit must be 1 to %d, offset 0 or more", p.Limit, p.Offset, pageLimit)
	}
	return min(p.Limit, pageLimit), p.Offset, nil
}

func (s *Server) routeCommits() {
	add(s, operation{method: http.MethodPost, path: "/vm/{id}/commit", status: http.StatusCreated, creates: true,
		id: "commit-vm", summary: "Take an immutable snapshot of memory, processes and disk", tag: "Commits"}, s.commitVM)
	add(s, operation{method: http.MethodGet, path: "/vm/commits/{id}/parents", id: "commit-history",
		summary: "A commit and its ancestors, itself first", tag: "Commits"}, s.commitHistory)
	add(s, operation{method: http.MethodGet, path: "/commits", id: "list-commits",
		summary: "Commits of the organisation, newest first", tag: "Commits"}, s.listCommits)
	add(s, operation{method: http.MethodGet, path: "/commits/public", id: "list-public-commits",
		summary: "Public commits of all organisations, newest first", tag: "Commits"}, s.listPublicCommits)
	add(s, operation{method: http.MethodPatch, path: "/commits/{id}", id: "update-commit",
		summary: "Change visibility, name and description of a commit", tag: "Commits"}, s.updateCommit)
	add(s, operation{method: http.MethodDelete, path: "/commits/{id}", status: http.StatusNoContent, id: "delete-commit",
		summary: "Delete a commit that no tag and no running VM needs", tag: "Commits"}, s.deleteCommit)
}

// CommitInput names a commit.
type CommitInput struct {
	ID string `path:"id" doc:"Commit id, a UUID"`
}

func commitID(text string) (string, error) {
	id, ok := ident.Parse(text)
	if !ok {
		return "", fault.Invalidf("commit id %q is malformed: it must be a UUID", text)
	}
	return id, nil
}

type commitVMInput struct {
	VMInput
	SourceInput
	Body *api.CommitRequest
}

func (s *Server) commitVM(ctx context.Context, in *commitVMInput) (*output[api.CommitCreated], error) {
	id, err := vmID(in.ID)
	if err != nil {
		return nil, err
	}
	req := machine.CommitRequest{KeepPaused: in.KeepPaused, SkipWaitBoot: in.SkipWaitBoot}
	if b := in.Body; b != nil {
		req.Description = b.Description
		if b.CommitID != nil {
			if req.CommitID, err = commitID(*b.CommitID); err != nil {
				return nil, err
			}
		}
		if b.Name != nil && *b.Name != "" {
			if err := registry.CheckCommitName(*b.Name); err != nil {
				return nil, err
			}
			req.Name = *b.Name
		}
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	commit, timing, err := s.Machines.Commit(ctx, callerOf(ctx), id, req)
	if err != nil {
		return nil, err
	}
	return reply(api.CommitCreated{CommitID: commit.ID, Name: commit.Name, HostArchitecture: "x86_64", Timing: s.timing(timing)}), nil
}

func (s *Server) commitHistory(ctx context.Context, in *CommitInput) (*output[[]api.CommitEntity], error) {
	id, err := commitID(in.ID)
	if err != nil {
		return nil, err
	}
	line, err := s.Registry.CommitHistory(ctx, orgOf(ctx), id)
	if err != nil {
		return nil, err
	}
	shown := make([]api.CommitEntity, 0, len(line))
	for _, commit := range line {
		c := showCommit(commit)
		shown = append(shown, api.CommitEntity{ID: c.CommitID, OwnerID: c.OwnerID, Name: c.Name, Description: c.Description,
			CreatedAt: c.CreatedAt, IsPublic: c.IsPublic, ParentVMID: c.ParentVMID, GrandparentCommitID: c.GrandparentCommitID})
	}
	return reply(shown), nil
}

func showCommit(c catalog.Commit) api.CommitInfo {
	return api.CommitInfo{CommitID: c.ID, OwnerID: c.OwnerID, Name: c.Name, Description: c.Description,
		CreatedAt: c.CreatedAt.UTC().Format(time.RFC3339Nano), IsPublic: c.IsPublic,
		ParentVMID: optional(c.ParentVM), GrandparentCommitID: optional(c.ParentCommit)}
}

func (s *Server) listCommits(ctx context.Context, in *PageInput) (*output[api.CommitList], error) {
	return showCommits(in, func(limit, offset int64) ([]catalog.Commit, int64, error) {
		return s.Registry.Commits(ctx, orgOf(ctx), limit, offset)
	})
}

func (s *Server) listPublicCommits(ctx context.Context, in *PageInput) (*output[api.CommitList], error) {
	return showCommits(in, func(limit, offset int64) ([]catalog.Commit, int64, error) {
		return s.Registry.PublicCommits(ctx, limit, offset)
	})
}

func showCommits(in *PageInput, page func(limit, offset int64) ([]catalog.Commit, int64, error)) (*output[api.CommitList], error) {
	limit, offset, err := in.read()
	if err != nil {
		return nil, err
	}
	commits, total, err := page(limit, offset)
	if err != nil {
		return nil, err
	}
	list := api.CommitList{Commits: make([]api.CommitInfo, 0, len(commits)), Total: total, Limit: limit, Offset: offset}
	for _, commit := range commits {
		list.Commits = append(list.Commits, showCommit(commit))
	}
	return reply(list), nil
}

type updateCommitInput struct {
	CommitInput
	Body api.CommitUpdate
}

func (s *Server) updateCommit(ctx context.Context, in *updateCommitInput) (*output[api.CommitInfo], error) {
	id, err := commitID(in.ID)
	if err != nil {
		return nil, err
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	commit, err := s.Registry.UpdateCommit(ctx, orgOf(ctx), id, registry.CommitChange{IsPublic: in.Body.IsPublic,
		Name: in.Body.Name, SetText: in.Body.Description.Set, Description: in.Body.Description.Value})
	if err != nil {
		return nil, err
	}
	return reply(showCommit(commit)), nil
}

func (s *Server) deleteCommit(ctx context.Context, in *CommitInput) (*none, error) {
	id, err := commitID(in.ID)
	if err != nil {
		return nil, err
	}
	// Another organisation's public commit is visible, so that refusing must say why.
	if _, err := s.Registry.OwnCommit(ctx, orgOf(ctx), id); err != nil {
		return nil, err
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	return &none{}, s.Machines.DeleteCommit(ctx, callerOf(ctx), id)
}
