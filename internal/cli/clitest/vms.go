package clitest

import (
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"vers/api"
	"vers/internal/ident"
)

// addVM makes a VM from a commit, or an empty one.
func (s *Server) addVM(id string, config api.VMConfig, commitID string) {
	v := &vm{VM: api.VM{VMID: id, OwnerID: "0b6c1f6e-0000-4000-8000-000000000001", CreatedAt: s.tick(), State: api.StateRunning}, config: config}
	from := ""
	if commitID != "" {
		v.Parent = &commitID
		from = s.commitDir(commitID)
		v.config = s.commits[commitID].config
	} else if s.BootPolls > 0 {
		v.State, v.bootPolls = api.StateBooting, s.BootPolls
	}
	copyDir(from, s.vmDir(id))
	s.vms[id] = v
}

func (s *Server) vm(r *http.Request) (*vm, error) {
	id, _ := ident.Parse(r.PathValue("id"))
	v := s.vms[id]
	if v == nil {
		return nil, notFound("VM", r.PathValue("id"))
	}
	return v, nil
}

// withVM wraps a handler that acts on the VM in the path.
func (s *Server) withVM(mux *http.ServeMux, pattern string, handle func(v *vm, r *http.Request) (int, any, error)) {
	s.route(mux, pattern, func(r *http.Request) (int, any, error) {
		v, err := s.vm(r)
		if err != nil {
			return 0, nil, err
		}
		return handle(v, r)
	})
}

func (s *Server) vmRoutes(mux *http.ServeMux) {
	s.route(mux, "GET /vms", func(*http.Request) (int, any, error) {
		list := []api.VM{}
		for _, v := range s.vms {
			list = append(list, v.VM)
		}
		slices.SortFunc(list, func(a, b api.VM) int { return b.CreatedAt.Compare(a.CreatedAt) })
		return 200, list, nil
	})
	s.route(mux, "POST /vm/new_root", s.newRoot)
	s.route(mux, "POST /vm/from_commit", s.fromCommit)
	s.withVM(mux, "GET /vm/{id}/status", func(v *vm, _ *http.Request) (int, any, error) {
		answer := v.VM
		if v.bootPolls > 0 {
			if v.bootPolls--; v.bootPolls == 0 {
				v.State = api.StateRunning
			}
		}
		return 200, answer, nil
	})
	s.withVM(mux, "GET /vm/{id}/metadata", func(v *vm, _ *http.Request) (int, any, error) {
		meta := api.VMMetadata{
			VMID: v.VMID, OwnerID: v.OwnerID, CreatedAt: v.CreatedAt, State: v.State, IP: "10.77.0.2", ParentCommitID: v.Parent,
			MemSizeMiB: *v.config.MemSizeMiB, VCPUCount: *v.config.VCPUCount, FSSizeMiB: *v.config.FSSizeMiB,
			ImageName: *v.config.ImageName, KernelName: *v.config.KernelName,
		}
		if v.Parent != nil {
			meta.GrandparentVM = s.commits[*v.Parent].ParentVMID
		}
		return 200, meta, nil
	})
	s.withVM(mux, "GET /vm/{id}/ssh_key", func(*vm, *http.Request) (int, any, error) {
		return 200, api.SSHKey{PrivateKey: s.keys.client, Port: 22, HostKey: s.keys.host}, nil
	})
	s.withVM(mux, "PATCH /vm/{id}/state", func(v *vm, r *http.Request) (int, any, error) {
		var req api.StateRequest
		if err := decode(r, &req); err != nil {
			return 0, nil, err
		}
		v.State = strings.ToLower(req.State)
		return 200, nil, nil
	})
	s.withVM(mux, "PATCH /vm/{id}/disk", func(v *vm, r *http.Request) (int, any, error) {
		var req api.DiskRequest
		if err := decode(r, &req); err != nil {
			return 0, nil, err
		}
		if req.FSSizeMiB <= *v.config.FSSizeMiB {
			return 0, nil, failf(400, "the disk has %d MiB already", *v.config.FSSizeMiB)
		}
		v.config.FSSizeMiB = &req.FSSizeMiB
		return 200, nil, nil
	})
	s.withVM(mux, "DELETE /vm/{id}", func(v *vm, _ *http.Request) (int, any, error) {
		delete(s.vms, v.VMID)
		return 200, api.VMRef{VMID: v.VMID}, os.RemoveAll(s.vmDir(v.VMID))
	})
	s.route(mux, "POST /vm/{id}/branch", s.branch)
	s.route(mux, "POST /vm/branch/by_ref/{repo}/{tag}", func(r *http.Request) (int, any, error) {
		id, err := s.resolveRef(r.PathValue("repo") + ":" + r.PathValue("tag"))
		if err != nil {
			return 0, nil, err
		}
		return s.children(r, id)
	})
}

func (s *Server) newRoot(r *http.Request) (int, any, error) {
	var req api.NewRootRequest
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	c := req.VMConfig
	switch {
	case *c.ImageName != "default":
		return 0, nil, failf(404, "rootfs image '%s' not found", *c.ImageName)
	case *c.KernelName != "default.bin":
		return 0, nil, failf(404, "kernel image '%s' not found", *c.KernelName)
	case *c.MemSizeMiB > 1<<20:
		return 0, nil, failf(507, "Insufficient system resources: %d MiB asked, 4096 MiB free", *c.MemSizeMiB)
	}
	id := ident.New()
	s.addVM(id, c, "")
	return 201, api.NewVM{VMID: id}, nil
}

func (s *Server) fromCommit(r *http.Request) (int, any, error) {
	var req api.FromCommitRequest
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	var commitID string
	switch {
	case req.CommitID != nil && req.Ref == nil && req.TagName == nil:
		commitID = *req.CommitID
	case req.Ref != nil && req.CommitID == nil && req.TagName == nil:
		var err error
		if commitID, err = s.resolveRef(*req.Ref); err != nil {
			return 0, nil, err
		}
	case req.TagName != nil && req.CommitID == nil && req.Ref == nil:
		return 0, nil, notFound("tag", *req.TagName)
	default:
		return 0, nil, failf(400, "give exactly one of commit_id, tag_name and ref")
	}
	if s.commits[commitID] == nil {
		return 0, nil, notFound("commit", commitID)
	}
	id := ident.New()
	s.addVM(id, api.VMConfig{}, commitID)
	return 201, api.NewVM{VMID: id, CommitID: commitID}, nil
}

func (s *Server) branch(r *http.Request) (int, any, error) {
	id, _ := ident.Parse(r.PathValue("id"))
	if s.commits[id] != nil {
		return s.children(r, id)
	}
	v := s.vms[id]
	if v == nil {
		return 0, nil, notFound("VM or commit", r.PathValue("id"))
	}
	return s.children(r, s.addCommit(v, api.CommitRequest{}))
}

func (s *Server) children(r *http.Request, commitID string) (int, any, error) {
	count, err := strconv.Atoi(r.URL.Query().Get("count"))
	if err != nil || count < 1 {
		return 0, nil, failf(400, "bad count")
	}
	made := api.NewVMs{CommitID: commitID, Timing: &api.Timing{PausedMS: 3}}
	for range count {
		id := ident.New()
		s.addVM(id, api.VMConfig{}, commitID)
		made.VMs = append(made.VMs, api.VMRef{VMID: id})
	}
	made.VMID = made.VMs[0].VMID
	return 201, made, nil
}

// addCommit takes a commit of a VM.
func (s *Server) addCommit(v *vm, req api.CommitRequest) string {
	id := ident.New()
	name := "commit-" + id[:8]
	if req.Name != nil {
		name = *req.Name
	}
	s.commits[id] = &commit{api.CommitInfo{
		CommitID: id, OwnerID: v.OwnerID, Name: name, Description: req.Description,
		CreatedAt: s.tick().Format(time.RFC3339Nano), ParentVMID: &v.VMID, GrandparentCommitID: v.Parent,
	}, v.config}
	copyDir(s.vmDir(v.VMID), s.commitDir(id))
	return id
}
