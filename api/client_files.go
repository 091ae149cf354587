package api

import (
	"context"
	"io"
	"io/fs"
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

// ReadFile gives the content of a file of a running VM, of up to 64 MiB; path is absolute.
func (c *Client) ReadFile(ctx context.Context, vmID, path string) ([]byte, error) {
	var out FileContent
	r := call{method: http.MethodGet, path: []string{"vm", vmID, "files"}, query: url.Values{"path": {path}}}
	err := c.do(ctx, r, &out)
	return out.Content, err
}

// WriteFile makes or replaces a file of a running VM, of up to 64 MiB.
func (c *Client) WriteFile(ctx context.Context, vmID string, req FileRequest) error {
	return c.do(ctx, call{method: http.MethodPut, path: []string{"vm", vmID, "files"}, body: req}, nil)
}

// OpenContent reads a file of a running VM from a byte on, of any size; path is absolute. Reading ends with io.EOF only at
// the end of the file as it was when it was opened.
func (c *Client) OpenContent(ctx context.Context, vmID, path string, offset int64) (io.ReadCloser, error) {
	query := url.Values{"path": {path}, "offset": {strconv.FormatInt(offset, 10)}}
	resp, err := c.send(ctx, call{method: http.MethodGet, path: []string{"vm", vmID, "files", "content"}, query: query, accept: "application/octet-stream"})
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// ContentOptions say how a file is written.
type ContentOptions struct {
	Mode       fs.FileMode // permission bits; 0: 0644
	CreateDirs bool
	// InPlace writes into the file that is there, from Offset on. It ends after the last byte; what has come stays,
	// however the call ends. Otherwise a file is made or replaced once all has come.
	InPlace bool
	Offset  int64
}

// WriteContent writes a file of a running VM, of any size; path is absolute.
func (c *Client) WriteContent(ctx context.Context, vmID, path string, o ContentOptions, content io.Reader) error {
	query := url.Values{"path": {path}}
	if o.Mode != 0 {
		query.Set("mode", strconv.FormatUint(uint64(o.Mode.Perm()), 8))
	}
	if o.CreateDirs {
		query.Set("create_dirs", "true")
	}
	if o.InPlace {
		query.Set("in_place", "true")
		query.Set("offset", strconv.FormatInt(o.Offset, 10))
	}
	r := call{method: http.MethodPut, path: []string{"vm", vmID, "files", "content"}, query: query, upload: content, octets: true}
	return c.do(ctx, r, nil)
}
