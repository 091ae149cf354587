package clitest

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"vers/api"
	"vers/internal/ident"
)

func (s *Server) commitRoutes(mux *http.ServeMux) {
	s.withVM(mux, "POST /vm/{id}/commit", func(v *vm, r *http.Request) (int, any, error) {
		var req api.CommitRequest
		if err := decode(r, &req); err != nil {
			return 0, nil, err
		}
		id := s.addCommit(v, req)
		if r.URL.Query().Get("keep_paused") == "true" {
			v.State = api.StatePaused
		}
		return 201, api.CommitCreated{CommitID: id, HostArchitecture: "x86_64", Name: s.commits[id].Name}, nil
	})
	s.route(mux, "GET /commits", func(r *http.Request) (int, any, error) { return s.listCommits(r, false) })
	s.route(mux, "GET /commits/public", func(r *http.Request) (int, any, error) { return s.listCommits(r, true) })
	s.route(mux, "GET /vm/commits/{commit}/parents", func(r *http.Request) (int, any, error) {
		at := s.commits[r.PathValue("commit")]
		if at == nil {
			return 0, nil, notFound("commit", r.PathValue("commit"))
		}
		history := []api.CommitEntity{}
		for at != nil {
			c := at.CommitInfo
			history = append(history, api.CommitEntity{
				ID: c.CommitID, OwnerID: c.OwnerID, Name: c.Name, Description: c.Description, CreatedAt: c.CreatedAt,
				IsPublic: c.IsPublic, ParentVMID: c.ParentVMID, GrandparentCommitID: c.GrandparentCommitID,
			})
			if c.GrandparentCommitID == nil {
				break
			}
			at = s.commits[*c.GrandparentCommitID]
		}
		return 200, history, nil
	})
	s.route(mux, "PATCH /commits/{commit}", func(r *http.Request) (int, any, error) {
		c := s.commits[r.PathValue("commit")]
		if c == nil {
			return 0, nil, notFound("commit", r.PathValue("commit"))
		}
		var req api.CommitUpdate
		if err := decode(r, &req); err != nil {
			return 0, nil, err
		}
		c.IsPublic = req.IsPublic
		return 200, c.CommitInfo, nil
	})
	s.route(mux, "DELETE /commits/{commit}", s.deleteCommit)
}

func (s *Server) listCommits(r *http.Request, public bool) (int, any, error) {
	all := []api.CommitInfo{}
	for _, c := range s.commits {
		if !public || c.IsPublic {
			all = append(all, c.CommitInfo)
		}
	}
	slices.SortFunc(all, func(a, b api.CommitInfo) int { return strings.Compare(b.CreatedAt, a.CreatedAt) })
	limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
	offset, _ := strconv.Atoi(r.URL.Query().Get("offset"))
	page := all[min(offset, len(all)):]
	page = page[:min(limit, len(page))]
	return 200, api.CommitList{Commits: page, Total: int64(len(all)), Limit: int64(limit), Offset: int64(offset)}, nil
}

func (s *Server) deleteCommit(r *http.Request) (int, any, error) {
	id := r.PathValue("commit")
	if s.commits[id] == nil {
		return 0, nil, notFound("commit", id)
	}
	for _, v := range s.vms {
		if v.Parent != nil && *v.Parent == id {
			return 0, nil, failf(409, "commit '%s' is in use by VM '%s'", id, v.VMID)
		}
	}
	for _, repo := range s.repos {
		for _, tag := range repo.tags {
			if tag.CommitID == id {
				return 0, nil, failf(409, "commit '%s' is in use by tag %s", id, tag.Reference)
			}
		}
	}
	delete(s.commits, id)
	return 204, nil, nil
}

// AddCommits makes n commits without any content.
func (s *Server) AddCommits(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := &vm{VM: api.VM{VMID: ident.New()}}
	copyDir("", s.vmDir(v.VMID))
	for range n {
		s.addCommit(v, api.CommitRequest{})
	}
}
