package server

import (
	"context"
	"net/http"

	"vers/api"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/machine"
	"vers/internal/registry"
)

// branchLimit bounds one call; memory of the host bounds it long before, in most cases.
const branchLimit = 1024

// CountInput says how many VMs to make.
type CountInput struct {
	Count int64 `query:"count" default:"1" doc:"Number of VMs"`
}

// TermsInput are the terms of new VMs.
type TermsInput struct {
	SleepAfter int64 `query:"sleep_after_seconds" default:"-1" doc:"[ours] Let the new VMs fall asleep after so many seconds without use; 0 never, -1 as their source"`
	TTL        int64 `query:"ttl_seconds" default:"-1" doc:"[ours] Delete the new VMs so many seconds from now; 0 and -1 never"`
}

// read gives the options for the machines.
func (in TermsInput) read() ([]machine.Option, error) {
	var t api.Terms
	if in.SleepAfter != -1 {
		t.SleepAfterSeconds = &in.SleepAfter
	}
	if in.TTL != -1 {
		t.TTLSeconds = &in.TTL
	}
	return optionsOf(t)
}

// SourceInput says what happens to the VM that is branched or committed.
type SourceInput struct {
	KeepPaused   bool `query:"keep_paused" doc:"true: leave the VM paused afterwards"`
	SkipWaitBoot bool `query:"skip_wait_boot" doc:"true: a VM that is still booting is a conflict. false: it is waited for"`
}

func (s *Server) routeBranches() {
	branch := operation{method: http.MethodPost, status: http.StatusCreated, creates: true, tag: "Branches", vms: true}
	for _, o := range []struct {
		id, path, summary string
		by                func(context.Context, *branchInput) (*output[api.NewVMs], error)
	}{
		{"branch", "/vm/{id}/branch", "Branch a running VM, or start VMs from a commit", s.branchAny},
		{"branch-vm", "/vm/branch/by_vm/{id}", "Branch a running VM", s.branchVM},
		{"branch-commit", "/vm/branch/by_commit/{id}", "Start VMs from a commit", s.branchCommit},
	} {
		branch.id, branch.path, branch.summary = o.id, o.path, o.summary
		add(s, branch, o.by)
	}
	branch.id, branch.path, branch.summary = "branch-ref", "/vm/branch/by_ref/{repo}/{tag}", "Start VMs from what a repository's tag points at"
	add(s, branch, s.branchRef)
	branch.id, branch.path, branch.summary = "branch-tag", "/vm/branch/by_tag/{tag}", "Start VMs from what a plain tag points at"
	add(s, branch, s.branchTag)
}

type branchInput struct {
	ID string `path:"id" doc:"Id of the VM or commit"`
	CountInput
	SourceInput
	TermsInput
	BranchBody
}

// BranchBody is the body of the branch calls.
type BranchBody struct {
	Body *api.BranchRequest
}

// read checks id and count.
func (in *branchInput) read() (string, int, error) {
	id, ok := ident.Parse(in.ID)
	if !ok {
		return "", 0, fault.Invalidf("id %q is malformed: it must be the UUID of a VM or a commit", in.ID)
	}
	count, err := in.number()
	return id, count, err
}

func (in CountInput) number() (int, error) {
	if in.Count < 1 || in.Count > branchLimit {
		return 0, fault.Invalidf("count is %d; 1 to %d are possible", in.Count, branchLimit)
	}
	return int(in.Count), nil
}

// branchAny looks the id up among VMs first, then among commits.
func (s *Server) branchAny(ctx context.Context, in *branchInput) (*output[api.NewVMs], error) {
	id, _, err := in.read()
	if err != nil {
		return nil, err
	}
	_, err = s.Machines.Get(ctx, callerOf(ctx), id)
	switch {
	case err == nil:
		return s.branchVM(ctx, in)
	case !fault.Is(err, fault.NotFound):
		return nil, err
	}
	answer, err := s.branchCommit(ctx, in)
	if fault.Is(err, fault.NotFound) {
		err = fault.NotFoundf("VM or commit '%s' not found", id)
	}
	return answer, err
}

func (s *Server) branchVM(ctx context.Context, in *branchInput) (*output[api.NewVMs], error) {
	id, count, err := in.read()
	if err != nil {
		return nil, err
	}
	network, err := branchNetwork(in.Body, count)
	if err != nil {
		return nil, err
	}
	options, err := in.TermsInput.read()
	if err != nil {
		return nil, err
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	vms, commit, timing, err := s.Machines.Branch(ctx, callerOf(ctx), id,
		machine.BranchRequest{Count: count, KeepPaused: in.KeepPaused, SkipWaitBoot: in.SkipWaitBoot, Network: network, Options: options})
	if err != nil {
		return nil, err
	}
	return s.showNewVMs(vms, commit.ID, s.timing(timing))
}

func (s *Server) branchCommit(ctx context.Context, in *branchInput) (*output[api.NewVMs], error) {
	id, count, err := in.read()
	if err != nil {
		return nil, err
	}
	return s.startFromCommit(ctx, id, count, in.Body, in.TermsInput)
}

type branchRefInput struct {
	Repo string `path:"repo"`
	Tag  string `path:"tag"`
	CountInput
	TermsInput
	BranchBody
}

func (s *Server) branchRef(ctx context.Context, in *branchRefInput) (*output[api.NewVMs], error) {
	count, err := in.number()
	if err != nil {
		return nil, err
	}
	commitID, err := s.Registry.Resolve(ctx, orgOf(ctx), registry.Reference{Repository: in.Repo, Tag: in.Tag})
	if err != nil {
		return nil, err
	}
	return s.startFromCommit(ctx, commitID, count, in.Body, in.TermsInput)
}

type branchTagInput struct {
	Tag string `path:"tag"`
	CountInput
	TermsInput
	BranchBody
}

func (s *Server) branchTag(ctx context.Context, in *branchTagInput) (*output[api.NewVMs], error) {
	count, err := in.number()
	if err != nil {
		return nil, err
	}
	commitID, err := s.resolvePlain(ctx, in.Tag)
	if err != nil {
		return nil, err
	}
	return s.startFromCommit(ctx, commitID, count, in.Body, in.TermsInput)
}

func (s *Server) startFromCommit(ctx context.Context, commitID string, count int, body *api.BranchRequest, in TermsInput) (*output[api.NewVMs], error) {
	network, err := branchNetwork(body, count)
	if err != nil {
		return nil, err
	}
	options, err := in.read()
	if err != nil {
		return nil, err
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	vms, err := s.Machines.BranchCommit(ctx, callerOf(ctx), commitID, count, network, options...)
	if err != nil {
		return nil, err
	}
	return s.showNewVMs(vms, commitID, nil)
}

// showNewVMs lists the children, and the first one on top for clients that know only that form.
func (s *Server) showNewVMs(vms []machine.VM, commitID string, timing *api.Timing) (*output[api.NewVMs], error) {
	answer := api.NewVMs{VMs: make([]api.VMRef, 0, len(vms)), CommitID: commitID, Timing: timing}
	for _, vm := range vms {
		answer.VMs = append(answer.VMs, api.VMRef{VMID: vm.ID})
	}
	if len(vms) > 0 {
		answer.VMID = vms[0].ID
	}
	return reply(answer), nil
}

func showTiming(t machine.Timing) *api.Timing {
	return &api.Timing{PausedMS: float64(t.Paused.Microseconds()) / 1000, DurableMS: float64(t.Durable.Microseconds()) / 1000}
}
