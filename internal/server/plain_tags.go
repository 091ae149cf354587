package server

import (
	"context"
	"net/http"

	"vers/api"
	"vers/internal/catalog"
)

func (s *Server) routePlainTags() {
	add(s, operation{method: http.MethodGet, path: "/commit_tags", id: "list-tags",
		summary: "Plain tags of the organisation", tag: "Plain tags"}, s.listPlainTags)
	add(s, operation{method: http.MethodPost, path: "/commit_tags", status: http.StatusCreated, creates: true, id: "create-tag",
		summary: "Name a commit outside of any repository", tag: "Plain tags"}, s.createPlainTag)
	add(s, operation{method: http.MethodGet, path: "/commit_tags/{name}", id: "get-tag",
		summary: "One plain tag", tag: "Plain tags"}, s.getPlainTag)
	add(s, operation{method: http.MethodPatch, path: "/commit_tags/{name}", status: http.StatusNoContent, id: "update-tag",
		summary: "Move a plain tag at once, or change its description", tag: "Plain tags"}, s.updatePlainTag)
	add(s, operation{method: http.MethodDelete, path: "/commit_tags/{name}", status: http.StatusNoContent, id: "delete-tag",
		summary: "Delete a plain tag; the commit stays", tag: "Plain tags"}, s.deletePlainTag)
}

// PlainTagInput names a plain tag.
type PlainTagInput struct {
	Name string `path:"name"`
}

func showPlainTag(tag catalog.PlainTag) api.Tag {
	return api.Tag{TagID: tag.ID, TagName: tag.Name, CommitID: tag.CommitID, Description: tag.Description,
		CreatedAt: tag.CreatedAt.UTC(), UpdatedAt: tag.UpdatedAt.UTC()}
}

func (s *Server) listPlainTags(ctx context.Context, _ *none) (*output[api.TagList], error) {
	tags, err := s.Registry.PlainTags(ctx, orgOf(ctx))
	if err != nil {
		return nil, err
	}
	list := api.TagList{Tags: make([]api.Tag, 0, len(tags))}
	for _, tag := range tags {
		list.Tags = append(list.Tags, showPlainTag(tag))
	}
	return reply(list), nil
}

type createPlainTagInput struct{ Body api.TagRequest }

func (s *Server) createPlainTag(ctx context.Context, in *createPlainTagInput) (*output[api.TagCreated], error) {
	id, err := commitID(in.Body.CommitID)
	if err != nil {
		return nil, err
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	tag, err := s.Registry.CreatePlainTag(ctx, orgOf(ctx), in.Body.TagName, id, in.Body.Description)
	if err != nil {
		return nil, err
	}
	return reply(api.TagCreated{TagID: tag.ID, TagName: tag.Name, CommitID: tag.CommitID}), nil
}

func (s *Server) getPlainTag(ctx context.Context, in *PlainTagInput) (*output[api.Tag], error) {
	tag, err := s.Registry.PlainTag(ctx, orgOf(ctx), in.Name)
	if err != nil {
		return nil, err
	}
	return reply(showPlainTag(tag)), nil
}

type updatePlainTagInput struct {
	PlainTagInput
	Body api.TagUpdate
}

func (s *Server) updatePlainTag(ctx context.Context, in *updatePlainTagInput) (*none, error) {
	change, err := tagChange(in.Body.CommitID, in.Body.ExpectedCommitID, in.Body.Description)
	if err != nil {
		return nil, err
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	return &none{}, s.Registry.UpdatePlainTag(ctx, orgOf(ctx), in.Name, change)
}

func (s *Server) deletePlainTag(ctx context.Context, in *PlainTagInput) (*none, error) {
	ctx, cancel := detach(ctx)
	defer cancel()
	return &none{}, s.Registry.DeletePlainTag(ctx, orgOf(ctx), in.Name)
}
