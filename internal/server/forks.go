package server

import (
	"context"
	"net/http"

	"vers/api"
	"vers/internal/catalog"
	"vers/internal/machine"
	"vers/internal/registry"
)

func (s *Server) routeForks() {
	add(s, operation{method: http.MethodPost, path: "/repositories/fork", status: http.StatusCreated, creates: true, id: "fork-repository",
		summary: "Copy what a public tag points at: a running VM, a commit of it and a tag, all the caller's own", tag: "Repositories"}, s.fork)
}

type forkInput struct{ Body api.ForkRequest }

func (s *Server) fork(ctx context.Context, in *forkInput) (*output[api.Fork], error) {
	source := registry.Reference{Repository: in.Body.SourceRepo, Tag: in.Body.SourceTag}
	target := source
	if in.Body.RepoName != nil {
		target.Repository = *in.Body.RepoName
	}
	if in.Body.TagName != nil {
		target.Tag = *in.Body.TagName
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	commitID, err := s.Registry.PlanFork(ctx, callerKey(ctx), in.Body.SourceOrg, source, target)
	if err != nil {
		return nil, err
	}
	vm, commit, err := s.Machines.Fork(ctx, callerOf(ctx), commitID, func(ctx context.Context, tx *catalog.Tx, commit machine.Commit) error {
		return s.Registry.NameFork(ctx, tx, callerKey(ctx), target, commit.ID)
	})
	if err != nil {
		return nil, err
	}
	return reply(api.Fork{VMID: vm.ID, CommitID: commit.ID, RepoName: target.Repository, TagName: target.Tag, Reference: target.String()}), nil
}
