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
		Description: tag.Description, CreatedAt: tag.CreatedAt.UTC(), UpdatedAt: tag.UpdatedAt.UTC(),
		Protected: tag.Protected}
}

func (s *Server) listTags(ctx context.Context, in *RepositoryInput) (*output[api.RepoTagList], error) {
	tags, err := s.Registry.Tags(ctx, orgOf(ctx), in.Name)
	if err != nil {
		return nil, err
	}
	return reply(showTags(in.Name, tags)), nil
}

func showTags(repository string, tags []catalog.RepositoryTag) api.RepoTagList {
	list := api.RepoTagList{Repository: repository, Tags: make([]api.RepoTag, 0, len(tags))}
	for _, tag := range tags {
		list.Tags = append(list.Tags, showTag(registry.Reference{Repository: repository, Tag: tag.Name}, tag))
	}
	return list
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
	tag, err := s.Registry.CreateTag(ctx, callerKey(ctx), ref, id, in.Body.Description)
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
	change, err := tagChange(in.Body.CommitID, in.Body.ExpectedCommitID, in.Body.Description)
	if err != nil {
		return nil, err
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	return &none{}, s.Registry.UpdateTag(ctx, callerKey(ctx), in.reference(), change)
}

// tagChange reads the body of a PATCH of a tag.
func tagChange(commit, expected *string, description api.OptionalString) (change registry.TagChange, err error) {
	change.SetText, change.Description = description.Set, description.Value
	if change.CommitID, err = optionalCommitID(commit); err != nil {
		return change, err
	}
	change.Expected, err = optionalCommitID(expected)
	return change, err
}

// optionalCommitID reads a commit id that may be missing: "" then.
func optionalCommitID(text *string) (string, error) {
	if text == nil {
		return "", nil
	}
	return commitID(*text)
}

type deleteTagInput struct {
	TagInput
	Expected string `query:"expected_commit_id" doc:"[ours] Refused (409) if the tag points at another commit now"`
}

func (s *Server) deleteTag(ctx context.Context, in *deleteTagInput) (*none, error) {
	expected := ""
	if in.Expected != "" {
		var err error
		if expected, err = commitID(in.Expected); err != nil {
			return nil, err
		}
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	return &none{}, s.Registry.DeleteTag(ctx, callerKey(ctx), in.reference(), expected)
}
