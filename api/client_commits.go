package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// pageSize is the largest page the server gives (spec/api.md 1.8).
const pageSize = 100

// Commits lists all commits of the organisation, newest first, page by page.
func (c *Client) Commits(ctx context.Context) ([]CommitInfo, error) { return c.commits(ctx, "commits") }

// PublicCommits lists the public commits of all organisations.
func (c *Client) PublicCommits(ctx context.Context) ([]CommitInfo, error) {
	return c.commits(ctx, "commits", "public")
}

func (c *Client) commits(ctx context.Context, path ...string) ([]CommitInfo, error) {
	all := []CommitInfo{}
	seen := map[string]bool{} // a commit made meanwhile moves the others down by one
	for offset := 0; ; {
		var page CommitList
		query := url.Values{"limit": {strconv.Itoa(pageSize)}, "offset": {strconv.Itoa(offset)}}
		if err := c.do(ctx, call{method: http.MethodGet, path: path, query: query}, &page); err != nil {
			return nil, err
		}
		for _, commit := range page.Commits {
			if !seen[commit.CommitID] {
				seen[commit.CommitID] = true
				all = append(all, commit)
			}
		}
		offset += len(page.Commits)
		if len(page.Commits) == 0 || int64(offset) >= page.Total {
			return all, nil
		}
	}
}

// CommitHistory gives a commit and its ancestors, the commit itself first.
func (c *Client) CommitHistory(ctx context.Context, commitID string) ([]CommitEntity, error) {
	var out []CommitEntity
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"vm", "commits", commitID, "parents"}}, &out)
}

// UpdateCommit changes visibility, name and description of a commit.
func (c *Client) UpdateCommit(ctx context.Context, commitID string, update CommitUpdate) (CommitInfo, error) {
	var out CommitInfo
	return out, c.do(ctx, call{method: http.MethodPatch, path: []string{"commits", commitID}, body: update}, &out)
}

// DeleteCommit deletes a commit. The server refuses while VMs or tags need it.
func (c *Client) DeleteCommit(ctx context.Context, commitID string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"commits", commitID}}, nil)
}
