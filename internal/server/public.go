package server

import (
	"context"
	"net/http"

	"vers/api"
	"vers/internal/catalog"
	"vers/internal/registry"
)

// publicRoot is where everybody may read, with a key or without one.
const publicRoot = "/api/v1/public/repositories"

func (s *Server) routePublic() {
	const path = "/public/repositories"
	add(s, operation{method: http.MethodGet, path: path, public: true, id: "list-public-repositories",
		summary: "Public repositories of all organisations, newest first", tag: "Public repositories"}, s.listPublicRepositories)
	add(s, operation{method: http.MethodGet, path: path + "/{org}/{repo}", public: true, id: "get-public-repository",
		summary: "One public repository", tag: "Public repositories"}, s.getPublicRepository)
	add(s, operation{method: http.MethodGet, path: path + "/{org}/{repo}/tags", public: true, id: "list-public-repository-tags",
		summary: "Tags of a public repository", tag: "Public repositories"}, s.listPublicTags)
	add(s, operation{method: http.MethodGet, path: path + "/{org}/{repo}/tags/{tag}", public: true, id: "get-public-repository-tag",
		summary: "One tag of a public repository", tag: "Public repositories"}, s.getPublicTag)
}

// PublicInput names a public repository.
type PublicInput struct {
	Org  string `path:"org" doc:"Name of the organisation"`
	Repo string `path:"repo"`
}

func showPublicRepository(repo catalog.PublicRepository) api.PublicRepository {
	return api.PublicRepository{RepoID: repo.ID, OrgName: repo.OrgName, Name: repo.Name, FullName: repo.OrgName + "/" + repo.Name,
		Description: repo.Description, CreatedAt: repo.CreatedAt.UTC(), TagCount: repo.TagCount}
}

func (s *Server) listPublicRepositories(ctx context.Context, _ *none) (*output[api.PublicRepositoryList], error) {
	repos, err := s.Registry.PublicRepositories(ctx)
	if err != nil {
		return nil, err
	}
	list := api.PublicRepositoryList{Repositories: make([]api.PublicRepository, 0, len(repos))}
	for _, repo := range repos {
		list.Repositories = append(list.Repositories, showPublicRepository(repo))
	}
	return reply(list), nil
}

func (s *Server) getPublicRepository(ctx context.Context, in *PublicInput) (*output[api.PublicRepository], error) {
	repo, err := s.Registry.PublicRepository(ctx, in.Org, in.Repo)
	if err != nil {
		return nil, err
	}
	return reply(showPublicRepository(repo)), nil
}

func (s *Server) listPublicTags(ctx context.Context, in *PublicInput) (*output[api.RepoTagList], error) {
	tags, err := s.Registry.PublicTags(ctx, in.Org, in.Repo)
	if err != nil {
		return nil, err
	}
	return reply(showTags(in.Repo, tags)), nil
}

type publicTagInput struct {
	PublicInput
	Tag string `path:"tag"`
}

func (s *Server) getPublicTag(ctx context.Context, in *publicTagInput) (*output[api.RepoTag], error) {
	ref := registry.Reference{Repository: in.Repo, Tag: in.Tag}
	tag, err := s.Registry.PublicTag(ctx, in.Org, ref)
	if err != nil {
		return nil, err
	}
	return reply(showTag(ref, tag)), nil
}
