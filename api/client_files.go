package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// LogOptions choose a part of a VM's logs.
type LogOptions struct {
	Offset     int64  // bytes of output to leave out; the NextOffset of an earlier answer goes on from there
	MaxEntries int64  // 0: as many as fit
	Stream     string // Stdout, Stderr, or "" for both
}

// Logs gives the output of all commands of a running VM, in time order.
func (c *Client) Logs(ctx context.Context, vmID string, o LogOptions) (LogList, error) {
	query := url.Values{}
	if o.Offset != 0 {
		query.Set("offset", strconv.FormatInt(o.Offset, 10))
	}
	if o.MaxEntries != 0 {
		query.Set("max_entries", strconv.FormatInt(o.MaxEntries, 10))
	}
	if o.Stream != "" {
		query.Set("stream", o.Stream)
	}
	var out LogList
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"vm", vmID, "logs"}, query: query}, &out)
}

// ReadFile gives the content of a file of a running VM; path is absolute. Files beyond 64 MiB go over SSH.
func (c *Client) ReadFile(ctx context.Context, vmID, path string) ([]byte, error) {
	var out FileContent
	r := call{method: http.MethodGet, path: []string{"vm", vmID, "files"}, query: url.Values{"path": {path}}}
	err := c.do(ctx, r, &out)
	return out.Content, err
}

// WriteFile makes or replaces a file of a running VM.
func (c *Client) WriteFile(ctx context.Context, vmID string, req FileRequest) error {
	return c.do(ctx, call{method: http.MethodPut, path: []string{"vm", vmID, "files"}, body: req}, nil)
}
