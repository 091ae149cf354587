package server

import (
	"context"
	"net/http"
	"strings"
	"time"

	"vers/api"
	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/machine"
	"vers/internal/registry"
)

// guestAddress is the address of every VM inside its own network.
const guestAddress = "10.77.0.2"

// VMInput names a VM. It is exported, like BootInput, because huma reads embedded structs only then.
type VMInput struct {
	ID string `path:"id" doc:"VM id, a UUID; \"vm-\" in front is allowed"`
}

// BootInput names a VM that may be booting.
type BootInput struct {
	VMInput
	SkipWaitBoot bool `query:"skip_wait_boot" doc:"true: a VM that is still booting is a conflict. false: it is waited for"`
}

func (s *Server) routeVMs() {
	list := operation{method: http.MethodGet, path: "/vms", id: "list-vms", summary: "All VMs of the organisation", tag: "VMs"}
	add(s, list, s.listVMs)
	list.path, list.id, list.hidden = "/vm", "list-vms-alias", true
	add(s, list, s.listVMs)

	add(s, operation{method: http.MethodPost, path: "/vm/new_root", status: http.StatusCreated, creates: true,
		id: "new-root-vm", summary: "Start a VM from a rootfs image", tag: "VMs"}, s.newRoot)
	add(s, operation{method: http.MethodPost, path: "/vm/from_commit", status: http.StatusCreated, creates: true,
		id: "restore-vm", summary: "Start a VM from a commit: memory, processes and disk go on from there", tag: "VMs"}, s.fromCommit)

	status := operation{method: http.MethodGet, path: "/vm/{id}/status", id: "vm-status", summary: "One VM", tag: "VMs"}
	add(s, status, s.vmStatus)
	status.path, status.id, status.hidden = "/vm/{id}", "vm-status-alias", true
	add(s, status, s.vmStatus)

	add(s, operation{method: http.MethodGet, path: "/vm/{id}/metadata", id: "vm-metadata",
		summary: "One VM with its origin and sizes", tag: "VMs"}, s.vmMetadata)
	add(s, operation{method: http.MethodPatch, path: "/vm/{id}/state", id: "set-vm-state",
		summary: "Pause or resume a VM; resuming wakes one that sleeps", tag: "VMs"}, s.setState)
	add(s, operation{method: http.MethodPatch, path: "/vm/{id}/disk", id: "resize-vm-disk",
		summary: "Grow the root disk and the file system on it", tag: "VMs"}, s.resize)
	add(s, operation{method: http.MethodPatch, path: "/vm/{id}/label", id: "label-vm",
		summary: "Replace the labels of a VM", tag: "VMs"}, s.setLabels)
	s.routeSleep()
	add(s, operation{method: http.MethodDelete, path: "/vm/{id}", id: "delete-vm",
		summary: "End a VM; its commits and children live on", tag: "VMs"}, s.deleteVM)
}

// vmID reads the id of a VM in a path.
func vmID(text string) (string, error) {
	id, ok := ident.Parse(text)
	if !ok {
		return "", fault.Invalidf("VM id %q is malformed: it must be a UUID", text)
	}
	return id, nil
}

// knownVMID is for calls that answer a malformed id like an unknown one (spec/api.md 3.2 #6, 3.4): older clients put
// aliases there, which only they can resolve.
func knownVMID(text string) (string, error) {
	id, ok := ident.Parse(text)
	if !ok {
		return "", fault.NotFoundf("VM '%s' not found: it is not a VM id, and aliases are known to the client only", text)
	}
	return id, nil
}

func (s *Server) listVMs(ctx context.Context, _ *none) (*output[[]api.VM], error) {
	vms, err := s.Machines.List(ctx, callerOf(ctx))
	if err != nil {
		return nil, err
	}
	shown := make([]api.VM, 0, len(vms))
	for _, vm := range vms {
		shown = append(shown, showVM(vm))
	}
	return reply(shown), nil
}

func showVM(vm machine.VM) api.VM {
	return api.VM{VMID: vm.ID, OwnerID: vm.OwnerID, CreatedAt: vm.CreatedAt.UTC(), State: vm.State,
		Labels: notNil(vm.Labels), Reason: vm.Reason, Parent: optional(vm.ParentCommit), ExpiresAt: utc(vm.ExpiresAt)}
}

func notNil(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (s *Server) vmStatus(ctx context.Context, in *VMInput) (*output[api.VM], error) {
	vm, err := s.vm(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return reply(showVM(vm)), nil
}

func (s *Server) vm(ctx context.Context, text string) (machine.VM, error) {
	id, err := vmID(text)
	if err != nil {
		return machine.VM{}, err
	}
	return s.Machines.Get(ctx, callerOf(ctx), id)
}

func (s *Server) vmMetadata(ctx context.Context, in *VMInput) (*output[api.VMMetadata], error) {
	vm, err := s.vm(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	view, err := s.Machines.Egress(ctx, callerOf(ctx), vm.ID)
	if err != nil {
		return nil, err
	}
	own := ""
	if vm.Config.Egress != nil {
		own = vm.Config.Egress.String()
	}
	traffic := showTraffic(view.Traffic)
	return reply(api.VMMetadata{VMID: vm.ID, Egress: own, Internal: view.Internal, Traffic: &traffic, OwnerID: vm.OwnerID, CreatedAt: vm.CreatedAt.UTC(), State: vm.State,
		IP: guestAddress, ParentCommitID: optional(vm.ParentCommit), GrandparentVM: optional(vm.GrandparentVM),
		MemSizeMiB: vm.Config.MemSizeMiB, VCPUCount: vm.Config.VCPUCount, FSSizeMiB: vm.Config.FSSizeMiB,
		ImageName: vm.Config.ImageName, KernelName: vm.Config.KernelName,
		Labels: notNil(vm.Labels), Reason: vm.Reason,
		Image: showImageConfig(vm.Config.Image), MainExecID: optional(vm.Config.MainExec),
		SleepAfterSeconds: int64(s.Machines.SleepsAfter(vm) / time.Second),
		SleptAt:           utc(vm.SleptAt), WokenAt: utc(vm.WokenAt), ExpiresAt: utc(vm.ExpiresAt)}), nil
}

type newRootInput struct {
	WaitBoot bool `query:"wait_boot" doc:"true: answer when the VM has booted"`
	Body     api.NewRootRequest
}

func (s *Server) newRoot(ctx context.Context, in *newRootInput) (*output[api.NewVM], error) {
	config, err := readConfig(in.Body.VMConfig)
	if err != nil {
		return nil, err
	}
	if err := registry.CheckEnv(in.Body.Env); err != nil {
		return nil, err
	}
	network, err := readNetwork(in.Body.NetworkOptions)
	if err != nil {
		return nil, err
	}
	options, err := optionsOf(in.Body.Terms)
	if err != nil {
		return nil, err
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	vm, err := s.Machines.Run(ctx, callerOf(ctx), machine.RunRequest{Config: config, Labels: in.Body.VMConfig.Labels,
		Env: in.Body.Env, WaitBoot: in.WaitBoot, Cold: in.Body.Cold, Start: in.Body.Start, Network: network, Options: options})
	if err != nil {
		return nil, err
	}
	return reply(api.NewVM{VMID: vm.ID}), nil
}

// readConfig refuses sizes that make no sense; in the manager's hands zero means the default.
func readConfig(c api.VMConfig) (catalog.VMConfig, error) {
	var config catalog.VMConfig
	for _, size := range []struct {
		given *int64
		to    *int64
		what  string
	}{
		{c.MemSizeMiB, &config.MemSizeMiB, "memory size"},
		{c.VCPUCount, &config.VCPUCount, "vCPU count"},
		{c.FSSizeMiB, &config.FSSizeMiB, "filesystem size"},
	} {
		if size.given == nil {
			continue
		}
		if *size.given <= 0 {
			return config, fault.Invalidf("Invalid %s (must be positive)", size.what)
		}
		*size.to = *size.given
	}
	if c.ImageName != nil {
		config.ImageName = *c.ImageName
	}
	if c.KernelName != nil {
		config.KernelName = *c.KernelName
	}
	return config, nil
}

type fromCommitInput struct{ Body api.FromCommitRequest }

func (s *Server) fromCommit(ctx context.Context, in *fromCommitInput) (*output[api.NewVM], error) {
	network, err := readNetwork(in.Body.NetworkOptions)
	if err != nil {
		return nil, err
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	commitID, err := s.selectCommit(ctx, in.Body)
	if err != nil {
		return nil, err
	}
	options, err := optionsOf(in.Body.Terms)
	if err != nil {
		return nil, err
	}
	vm, err := s.Machines.Restore(ctx, callerOf(ctx), commitID, network, options...)
	if err != nil {
		return nil, err
	}
	return reply(api.NewVM{VMID: vm.ID, CommitID: commitID}), nil
}

// selectCommit finds the commit that exactly one of the selectors names.
func (s *Server) selectCommit(ctx context.Context, r api.FromCommitRequest) (string, error) {
	given := 0
	for _, selector := range []*string{r.CommitID, r.TagName, r.Ref} {
		if selector != nil {
			given++
		}
	}
	switch {
	case given != 1:
		return "", fault.Invalidf("give exactly one of commit_id, tag_name and ref; %d are given", given)
	case r.Ref != nil:
		return s.resolve(ctx, *r.Ref)
	case r.TagName != nil:
		return s.resolvePlain(ctx, *r.TagName)
	}
	// Older clients send whatever the user typed as commit_id (spec/api.md 3.2 #3).
	if id, ok := ident.Parse(*r.CommitID); ok {
		return id, nil
	}
	if strings.Contains(*r.CommitID, ":") {
		return s.resolve(ctx, *r.CommitID)
	}
	commitID, err := s.resolvePlain(ctx, *r.CommitID)
	if fault.Is(err, fault.NotFound) {
		err = fault.NotFoundf("commit or tag '%s' not found; tags of repositories are written repo:tag", *r.CommitID)
	}
	return commitID, err
}

// resolvePlain finds the commit a plain tag of the own organisation points at.
func (s *Server) resolvePlain(ctx context.Context, name string) (string, error) {
	tag, err := s.Registry.PlainTag(ctx, orgOf(ctx), name)
	return tag.CommitID, err
}

// resolve finds the commit a reference of the own organisation points at.
func (s *Server) resolve(ctx context.Context, text string) (string, error) {
	ref, err := registry.ParseReference(text)
	if err != nil {
		return "", err
	}
	return s.Registry.Resolve(ctx, orgOf(ctx), ref)
}

type stateInput struct {
	BootInput
	Body api.StateRequest
}

func (s *Server) setState(ctx context.Context, in *stateInput) (*none, error) {
	id, err := vmID(in.ID)
	if err != nil {
		return nil, err
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	switch strings.ToLower(in.Body.State) {
	case api.StatePaused:
		err = s.Machines.Pause(ctx, callerOf(ctx), id, in.SkipWaitBoot)
	case api.StateRunning:
		err = s.Machines.Resume(ctx, callerOf(ctx), id, in.SkipWaitBoot)
	default:
		err = fault.Invalidf("state %q is not possible; Paused and Running are", in.Body.State)
	}
	return &none{}, err
}

type diskInput struct {
	BootInput
	Body api.DiskRequest
}

func (s *Server) resize(ctx context.Context, in *diskInput) (*none, error) {
	id, err := vmID(in.ID)
	if err != nil {
		return nil, err
	}
	if in.Body.FSSizeMiB <= 0 {
		return nil, fault.Invalidf("Invalid filesystem size (must be positive)")
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	return &none{}, s.Machines.Resize(ctx, callerOf(ctx), id, in.Body.FSSizeMiB, in.SkipWaitBoot)
}

type labelInput struct {
	VMInput
	Body api.LabelRequest
}

func (s *Server) setLabels(ctx context.Context, in *labelInput) (*none, error) {
	id, err := vmID(in.ID)
	if err != nil {
		return nil, err
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	return &none{}, s.Machines.SetLabels(ctx, callerOf(ctx), id, notNil(in.Body.Labels))
}

func (s *Server) deleteVM(ctx context.Context, in *BootInput) (*output[api.VMRef], error) {
	id, err := vmID(in.ID)
	if err != nil {
		return nil, err
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	if err := s.Machines.Delete(ctx, callerOf(ctx), id, in.SkipWaitBoot); err != nil {
		return nil, err
	}
	return reply(api.VMRef{VMID: id}), nil
}
