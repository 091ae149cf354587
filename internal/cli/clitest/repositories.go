package clitest

import (
	"net/http"
	"slices"
	"strings"

	"vers/api"
	"vers/internal/ident"
)

// resolveRef finds the commit that repo:tag points at.
func (s *Server) resolveRef(reference string) (string, error) {
	repo, tag, _ := strings.Cut(reference, ":")
	if s.repos[repo] == nil {
		return "", notFound("repository", repo)
	}
	t := s.repos[repo].tags[tag]
	if t == nil {
		return "", notFound("tag", reference)
	}
	return t.CommitID, nil
}

func (s *Server) withRepo(mux *http.ServeMux, pattern string, handle func(repo *repository, r *http.Request) (int, any, error)) {
	s.route(mux, pattern, func(r *http.Request) (int, any, error) {
		repo := s.repos[r.PathValue("repo")]
		if repo == nil {
			return 0, nil, notFound("repository", r.PathValue("repo"))
		}
		return handle(repo, r)
	})
}

func (s *Server) withTag(mux *http.ServeMux, pattern string, handle func(repo *repository, tag *api.RepoTag, r *http.Request) (int, any, error)) {
	s.withRepo(mux, pattern, func(repo *repository, r *http.Request) (int, any, error) {
		tag := repo.tags[r.PathValue("tag")]
		if tag == nil {
			return 0, nil, notFound("tag", repo.Name+":"+r.PathValue("tag"))
		}
		return handle(repo, tag, r)
	})
}

func (s *Server) repositoryRoutes(mux *http.ServeMux) {
	s.route(mux, "GET /repositories", func(*http.Request) (int, any, error) {
		list := []api.Repository{}
		for _, repo := range s.repos {
			list = append(list, repo.answer())
		}
		slices.SortFunc(list, func(a, b api.Repository) int { return strings.Compare(a.Name, b.Name) })
		return 200, api.RepositoryList{Repositories: list}, nil
	})
	s.route(mux, "POST /repositories", func(r *http.Request) (int, any, error) {
		var req api.RepositoryRequest
		if err := decode(r, &req); err != nil {
			return 0, nil, err
		}
		if s.repos[req.Name] != nil {
			return 0, nil, failf(409, "repository '%s' already exists", req.Name)
		}
		repo := &repository{Repository: api.Repository{
			RepoID: ident.New(), Name: req.Name, Description: req.Description, CreatedAt: s.tick(), OwnerOrg: "acme",
		}, tags: map[string]*api.RepoTag{}}
		s.repos[req.Name] = repo
		return 201, api.RepositoryCreated{RepoID: repo.RepoID, Name: repo.Name}, nil
	})
	s.withRepo(mux, "GET /repositories/{repo}", func(repo *repository, _ *http.Request) (int, any, error) {
		return 200, repo.answer(), nil
	})
	s.withRepo(mux, "DELETE /repositories/{repo}", func(repo *repository, _ *http.Request) (int, any, error) {
		delete(s.repos, repo.Name)
		return 204, nil, nil
	})
	s.withRepo(mux, "PATCH /repositories/{repo}/visibility", func(repo *repository, r *http.Request) (int, any, error) {
		var req api.VisibilityRequest
		err := decode(r, &req)
		repo.IsPublic = req.IsPublic
		return 204, nil, err
	})
	s.withRepo(mux, "GET /repositories/{repo}/tags", func(repo *repository, _ *http.Request) (int, any, error) {
		list := []api.RepoTag{}
		for _, tag := range repo.tags {
			list = append(list, *tag)
		}
		slices.SortFunc(list, func(a, b api.RepoTag) int { return strings.Compare(a.TagName, b.TagName) })
		return 200, api.RepoTagList{Repository: repo.Name, Tags: list}, nil
	})
	s.withRepo(mux, "POST /repositories/{repo}/tags", s.createTag)
	s.withTag(mux, "GET /repositories/{repo}/tags/{tag}", func(_ *repository, tag *api.RepoTag, _ *http.Request) (int, any, error) {
		return 200, tag, nil
	})
	s.withTag(mux, "DELETE /repositories/{repo}/tags/{tag}", func(repo *repository, tag *api.RepoTag, _ *http.Request) (int, any, error) {
		delete(repo.tags, tag.TagName)
		return 204, nil, nil
	})
	s.withTag(mux, "PATCH /repositories/{repo}/tags/{tag}", func(_ *repository, tag *api.RepoTag, r *http.Request) (int, any, error) {
		var req api.RepoTagUpdate
		if err := decode(r, &req); err != nil {
			return 0, nil, err
		}
		if req.CommitID != nil {
			if s.commits[*req.CommitID] == nil {
				return 0, nil, notFound("commit", *req.CommitID)
			}
			tag.CommitID = *req.CommitID
		}
		if req.Description.Set {
			tag.Description = req.Description.Value
		}
		tag.UpdatedAt = s.tick()
		return 204, nil, nil
	})
}

func (r *repository) answer() api.Repository {
	answer := r.Repository
	answer.TagCount = int64(len(r.tags))
	return answer
}

func (s *Server) createTag(repo *repository, r *http.Request) (int, any, error) {
	var req api.RepoTagRequest
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	reference := repo.Name + ":" + req.TagName
	switch {
	case repo.tags[req.TagName] != nil:
		return 0, nil, failf(409, "tag '%s' already exists", reference)
	case s.commits[req.CommitID] == nil:
		return 0, nil, notFound("commit", req.CommitID)
	}
	now := s.tick()
	tag := &api.RepoTag{
		TagID: ident.New(), TagName: req.TagName, Reference: reference, CommitID: req.CommitID,
		Description: req.Description, CreatedAt: now, UpdatedAt: now,
	}
	repo.tags[req.TagName] = tag
	return 201, api.RepoTagCreated{TagID: tag.TagID, TagName: tag.TagName, Reference: reference, CommitID: tag.CommitID}, nil
}
