package api

import (
	"context"
	"net/http"
)

// Repositories lists the repositories of the organisation.
func (c *Client) Repositories(ctx context.Context) ([]Repository, error) {
	var out RepositoryList
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"repositories"}}, &out)
	return out.Repositories, err
}

// Repository gives one repository.
func (c *Client) Repository(ctx context.Context, name string) (Repository, error) {
	var out Repository
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"repositories", name}}, &out)
}

// CreateRepository makes an empty private repository.
func (c *Client) CreateRepository(ctx context.Context, req RepositoryRequest) (RepositoryCreated, error) {
	var out RepositoryCreated
	return out, c.do(ctx, call{method: http.MethodPost, path: []string{"repositories"}, body: req}, &out)
}

// DeleteRepository deletes a repository with its tags; the commits stay.
func (c *Client) DeleteRepository(ctx context.Context, name string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"repositories", name}}, nil)
}

// SetVisibility makes a repository public or private.
func (c *Client) SetVisibility(ctx context.Context, name string, public bool) error {
	r := call{method: http.MethodPatch, path: []string{"repositories", name, "visibility"}, body: VisibilityRequest{IsPublic: public}}
	return c.do(ctx, r, nil)
}

// RepoTags lists the tags of a repository.
func (c *Client) RepoTags(ctx context.Context, repo string) ([]RepoTag, error) {
	var out RepoTagList
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"repositories", repo, "tags"}}, &out)
	return out.Tags, err
}

// RepoTag gives one tag of a repository.
func (c *Client) RepoTag(ctx context.Context, repo, tag string) (RepoTag, error) {
	var out RepoTag
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"repositories", repo, "tags", tag}}, &out)
}

// CreateRepoTag makes a tag. An existing one is a conflict (status 409).
func (c *Client) CreateRepoTag(ctx context.Context, repo string, req RepoTagRequest) (RepoTagCreated, error) {
	var out RepoTagCreated
	r := call{method: http.MethodPost, path: []string{"repositories", repo, "tags"}, body: req}
	return out, c.do(ctx, r, &out)
}

// UpdateRepoTag moves a tag, changes its description, or both.
func (c *Client) UpdateRepoTag(ctx context.Context, repo, tag string, update RepoTagUpdate) error {
	r := call{method: http.MethodPatch, path: []string{"repositories", repo, "tags", tag}, body: update}
	return c.do(ctx, r, nil)
}

// DeleteRepoTag deletes a tag; its commit stays.
func (c *Client) DeleteRepoTag(ctx context.Context, repo, tag string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"repositories", repo, "tags", tag}}, nil)
}
