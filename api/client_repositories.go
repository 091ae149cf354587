package api

import (
	"context"
	"net/http"
	"net/url"
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
	return c.DeleteRepoTagAt(ctx, repo, tag, "")
}

// DeleteRepoTagAt deletes a tag unless it points at another commit than expected (status 409); "" expects nothing.
func (c *Client) DeleteRepoTagAt(ctx context.Context, repo, tag, expected string) error {
	r := call{method: http.MethodDelete, path: []string{"repositories", repo, "tags", tag}, query: expectation(expected)}
	return c.do(ctx, r, nil)
}

// expectation makes the query of a delete that names the commit a tag must point at.
func expectation(commitID string) url.Values {
	if commitID == "" {
		return nil
	}
	return url.Values{"expected_commit_id": {commitID}}
}

// RepoTagHistory gives what happened to a tag, newest first, also after it was deleted.
func (c *Client) RepoTagHistory(ctx context.Context, repo, tag string) (TagHistory, error) {
	var out TagHistory
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"repositories", repo, "tags", tag, "history"}}, &out)
}

// RollBackRepoTag moves a tag back to the commit it had before, or to where an entry of its history left it.
func (c *Client) RollBackRepoTag(ctx context.Context, repo, tag string, req TagRollbackRequest) (TagRollbackResult, error) {
	var out TagRollbackResult
	r := call{method: http.MethodPost, path: []string{"repositories", repo, "tags", tag, "rollback"}, body: req}
	return out, c.do(ctx, r, &out)
}

// RepoTagProtection says who may move or delete a tag.
func (c *Client) RepoTagProtection(ctx context.Context, repo, tag string) (TagProtection, error) {
	var out TagProtection
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"repositories", repo, "tags", tag, "protection"}}, &out)
}

// ProtectRepoTag lets only the API keys with these ids or names move, roll back and delete a tag; none: everybody.
func (c *Client) ProtectRepoTag(ctx context.Context, repo, tag string, keys []string) (TagProtection, error) {
	var out TagProtection
	r := call{method: http.MethodPatch, path: []string{"repositories", repo, "tags", tag, "protection"},
		body: TagProtectionRequest{Keys: append([]string{}, keys...)}}
	return out, c.do(ctx, r, &out)
}

// Fork copies what a tag of a public repository points at into the own organisation: a running VM, a commit of it, and a
// tag. It may take a minute for large machines.
func (c *Client) Fork(ctx context.Context, req ForkRequest) (Fork, error) {
	var out Fork
	return out, c.do(ctx, call{method: http.MethodPost, path: []string{"repositories", "fork"}, body: req}, &out)
}
