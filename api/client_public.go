package api

import (
	"context"
	"net/http"
)

// PublicRepositories lists the public repositories of all organisations. It needs no key.
func (c *Client) PublicRepositories(ctx context.Context) ([]PublicRepository, error) {
	var out PublicRepositoryList
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"public", "repositories"}}, &out)
	return out.Repositories, err
}

// PublicRepository gives one public repository. It needs no key.
func (c *Client) PublicRepository(ctx context.Context, org, repo string) (PublicRepository, error) {
	var out PublicRepository
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"public", "repositories", org, repo}}, &out)
}

// PublicRepoTags lists the tags of a public repository. It needs no key.
func (c *Client) PublicRepoTags(ctx context.Context, org, repo string) ([]RepoTag, error) {
	var out RepoTagList
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"public", "repositories", org, repo, "tags"}}, &out)
	return out.Tags, err
}

// PublicRepoTag gives one tag of a public repository. It needs no key.
func (c *Client) PublicRepoTag(ctx context.Context, org, repo, tag string) (RepoTag, error) {
	var out RepoTag
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"public", "repositories", org, repo, "tags", tag}}, &out)
}
