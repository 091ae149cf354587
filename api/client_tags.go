package api

import (
	"context"
	"net/http"
)

// Tags lists the plain tags of the organisation.
func (c *Client) Tags(ctx context.Context) ([]Tag, error) {
	var out TagList
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"commit_tags"}}, &out)
	return out.Tags, err
}

// Tag gives one plain tag.
func (c *Client) Tag(ctx context.Context, name string) (Tag, error) {
	var out Tag
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"commit_tags", name}}, &out)
}

// CreateTag makes a plain tag. An existing one is a conflict (status 409).
func (c *Client) CreateTag(ctx context.Context, req TagRequest) (TagCreated, error) {
	var out TagCreated
	return out, c.do(ctx, call{method: http.MethodPost, path: []string{"commit_tags"}, body: req}, &out)
}

// UpdateTag moves a plain tag, changes its description, or both.
func (c *Client) UpdateTag(ctx context.Context, name string, update TagUpdate) error {
	return c.do(ctx, call{method: http.MethodPatch, path: []string{"commit_tags", name}, body: update}, nil)
}

// DeleteTag deletes a plain tag; its commit stays.
func (c *Client) DeleteTag(ctx context.Context, name string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"commit_tags", name}}, nil)
}
