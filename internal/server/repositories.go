package server

import (
	"context"
	"net/http"

	"vers/api"
	"vers/internal/catalog"
)

func (s *Server) routeRepositories() {
	add(s, operation{method: http.MethodGet, path: "/repositories", id: "list-repositories",
		summary: "Repositories of the organisation", tag: "Repositories"}, s.listRepositories)
	add(s, operation{method: http.MethodPost, path: "/repositories", status: http.StatusCreated, id: "create-repository", creates: true,
		summary: "Make an empty private repository", tag: "Repositories"}, s.createRepository)
	add(s, operation{method: http.MethodGet, path: "/repositories/{name}", id: "get-repository",
		summary: "One repository", tag: "Repositories"}, s.getRepository)
	add(s, operation{method: http.MethodDelete, path: "/repositories/{name}", status: http.StatusNoContent, id: "delete-repository",
		summary: "Delete a repository and its tags; commits stay", tag: "Repositories"}, s.deleteRepository)
	add(s, operation{method: http.MethodPatch, path: "/repositories/{name}/visibility", status: http.StatusNoContent,
		id: "set-repository-visibility", summary: "Make a repository public or private", tag: "Repositories"}, s.setVisibility)
}

// RepositoryInput names a repository.
type RepositoryInput struct {
	Name string `path:"name"`
}

func (s *Server) listRepositories(ctx context.Context, _ *none) (*output[api.RepositoryList], error) {
	org, err := s.Registry.Organisation(ctx, orgOf(ctx))
	if err != nil {
		return nil, err
	}
	repos, err := s.Registry.Repositories(ctx, org.ID)
	if err != nil {
		return nil, err
	}
	list := api.RepositoryList{Repositories: make([]api.Repository, 0, len(repos))}
	for _, repo := range repos {
		list.Repositories = append(list.Repositories, showRepository(repo, org))
	}
	return reply(list), nil
}

func showRepository(repo catalog.Repository, org catalog.Organisation) api.Repository {
	return api.Repository{RepoID: repo.ID, Name: repo.Name, Description: repo.Description, IsPublic: repo.IsPublic,
		CreatedAt: repo.CreatedAt.UTC(), OwnerOrg: org.Name, TagCount: repo.TagCount}
}

type createRepositoryInput struct{ Body api.RepositoryRequest }

func (s *Server) createRepository(ctx context.Context, in *createRepositoryInput) (*output[api.RepositoryCreated], error) {
	ctx, cancel := detach(ctx)
	defer cancel()
	repo, err := s.Registry.CreateRepository(ctx, orgOf(ctx), in.Body.Name, in.Body.Description)
	if err != nil {
		return nil, err
	}
	return reply(api.RepositoryCreated{RepoID: repo.ID, Name: repo.Name}), nil
}

func (s *Server) getRepository(ctx context.Context, in *RepositoryInput) (*output[api.Repository], error) {
	repo, err := s.Registry.Repository(ctx, orgOf(ctx), in.Name)
	if err != nil {
		return nil, err
	}
	org, err := s.Registry.Organisation(ctx, repo.OrgID)
	if err != nil {
		return nil, err
	}
	return reply(showRepository(repo, org)), nil
}

func (s *Server) deleteRepository(ctx context.Context, in *RepositoryInput) (*none, error) {
	ctx, cancel := detach(ctx)
	defer cancel()
	return &none{}, s.Registry.DeleteRepository(ctx, callerKey(ctx), in.Name)
}

type visibilityInput struct {
	RepositoryInput
	Body api.VisibilityRequest
}

func (s *Server) setVisibility(ctx context.Context, in *visibilityInput) (*none, error) {
	ctx, cancel := detach(ctx)
	defer cancel()
	return &none{}, s.Registry.SetVisibility(ctx, orgOf(ctx), in.Name, in.Body.IsPublic)
}
