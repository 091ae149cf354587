package server

import (
	"context"
	"net/http"

	"vers/api"
	"vers/internal/catalog"
	"vers/internal/registry"
)

func (s *Server) routeTags() {
	add(s, operation{method: http.MethodGet, path: "/repositories/{name}/tags", id: "list-repository-tags",
		summary: "Tags of a repository", tag: "Repositories"}, s.listTags)
	add(s, operation{method: http.MethodPost, path: "/repositories/{name}/tags", status: http.StatusCreated, creates: true,
		id: "create-repository-tag", summary: "Point a new tag at a commit", tag: "Repositories"}, s.createTag)
	add(s, operation{method: http.MethodGet, path: "/repositories/{name}/tags/{tag}", id: "get-repository-tag",
		summary: "One tag", tag: "Repositories"}, s.getTag)
	add(s, operation{method: http.MethodPatch, path: "/repositories/{name}/tags/{tag}", status: http.StatusNoContent,
		id: "update-repository-tag", summary: "Move a tag at once, or change its description", tag: "Repositories"}, s.updateTag)
	add(s, operation{method: http.MethodDelete, path: "/repositories/{name}/tags/{tag}", status: http.StatusNoContent,
		id: "delete-repository-tag", summary: "Delete a tag; the commit stays", tag: "Repositories"}, s.deleteTag)
}

// TagInput names a tag of a repository.
type TagInput struct {
	Name string `path:"name"`
	Tag  string `path:"tag"`
}

func (in TagInput) reference() registry.Reference {
	return registry.Reference{Repository: in.Name, Tag: in.Tag}
}

func showTag(ref registry.Reference, tag catalog.RepositoryTag) api.RepoTag {
	return api.RepoTag{TagID: tag.ID, TagName: tag.Name, Reference: ref.String(), CommitID: tag.CommitID,
		Description: tag.Description, CreatedAt: tag.CreatedAt.UTC(), UpdatedAt: tag.UpdatedAt.UTC()}
}

func (s *Server) listTags(ctx context.Context, in *RepositoryInput) (*output[api.RepoTagList], error) {
	tags, err := s.Registry.Tags(ctx, orgOf(ctx), in.Name)
	if err != nil {
		return nil, err
	}
	list := api.RepoTagList{Repository: in.Name, Tags: make([]api.RepoTag, 0, len(tags))}
	for _, tag := range tags {
		list.Tags = append(list.Tags, showTag(registry.Reference{Repository: in.Name, Tag: tag.Name}, tag))
	}
	return reply(list), nil
}

type createTagInput struct {
	RepositoryInput
	Body api.RepoTagRequest
}

func (s *Server) createTag(ctx context.Context, in *createTagInput) (*output[api.RepoTagCreated], error) {
	id, err := commitID(in.Body.CommitID)
	if err != nil {
		return nil, err
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	ref := registry.Reference{Repository: in.Name, Tag: in.Body.TagName}
	tag, err := s.Registry.CreateTag(ctx, orgOf(ctx), ref, id, in.Body.Description)
	if err != nil {
		return nil, err
	}
	return reply(api.RepoTagCreated{TagID: tag.ID, TagName: tag.Name, Reference: ref.String(), CommitID: tag.CommitID}), nil
}

func (s *Server) getTag(ctx context.Context, in *TagInput) (*output[api.RepoTag], error) {
	tag, err := s.Registry.Tag(ctx, orgOf(ctx), in.reference())
	if err != nil {
		return nil, err
	}
	return reply(showTag(in.reference(), tag)), nil
}

type updateTagInput struct {
	TagInput
	Body api.RepoTagUpdate
}

func (s *Server) updateTag(ctx context.Context, in *updateTagInput) (*none, error) {
	change := registry.TagChange{SetText: in.Body.Description.Set, Description: in.Body.Description.Value}
	if in.Body.CommitID != nil {
		id, err := commitID(*in.Body.CommitID)
		if err != nil {
			return nil, err
		}
		change.CommitID = id
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	return &none{}, s.Registry.UpdateTag(ctx, orgOf(ctx), in.reference(), change)
}

func (s *Server) deleteTag(ctx context.Context, in *TagInput) (*none, error) {
	ctx, cancel := detach(ctx)
	defer cancel()
	return &none{}, s.Registry.DeleteTag(ctx, orgOf(ctx), in.reference())
}
