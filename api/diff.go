package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// Diff is the answer of GET /commits/{id}/diff/{other} [ours]: what differs between the disks of two commits.
type Diff struct {
	From         string      `json:"from" format:"uuid" doc:"Commit that is compared"`
	To           string      `json:"to" format:"uuid" doc:"Commit that it is compared with"`
	Entries      []DiffEntry `json:"entries" nullable:"false" doc:"Directories before what is in them, names in the order of their bytes"`
	Truncated    bool        `json:"truncated" doc:"true: entries holds only the first of them. The numbers below count all"`
	Added        int64       `json:"added"`
	Removed      int64       `json:"removed"`
	Changed      int64       `json:"changed"`
	BytesAdded   int64       `json:"bytes_added" doc:"Sizes of added files and growth of changed ones"`
	BytesRemoved int64       `json:"bytes_removed" doc:"Sizes of removed files and shrinking of changed ones"`
}

// Changes in a DiffEntry.
const (
	DiffAdded   = "added"
	DiffRemoved = "removed"
	DiffChanged = "changed"
)

// DiffEntry is a path that differs. What ends in from is absent when it was added, what ends in to when it was removed.
type DiffEntry struct {
	Path       string   `json:"path" doc:"Absolute. Bytes that are not UTF-8 are shown as U+FFFD"`
	PathBytes  []byte   `json:"path_base64,omitempty" doc:"The path's bytes, only when they are not UTF-8"`
	Change     string   `json:"change" doc:"added, removed or changed"`
	What       []string `json:"what,omitempty" doc:"Of changed: type, content, target, device, mode, owner, xattrs"`
	Kind       string   `json:"kind" doc:"file, directory, symlink, fifo, socket, character device or block device; the later one"`
	KindFrom   string   `json:"kind_from,omitempty" doc:"Earlier kind, when it changed"`
	SizeFrom   *int64   `json:"size_from,omitempty" doc:"Bytes; of files and symbolic links"`
	SizeTo     *int64   `json:"size_to,omitempty"`
	ModeFrom   *string  `json:"mode_from,omitempty" doc:"Permissions, octal"`
	ModeTo     *string  `json:"mode_to,omitempty"`
	OwnerFrom  *string  `json:"owner_from,omitempty" doc:"User and group id: 0:0"`
	OwnerTo    *string  `json:"owner_to,omitempty"`
	TargetFrom *string  `json:"target_from,omitempty" doc:"Where a symbolic link points"`
	TargetTo   *string  `json:"target_to,omitempty"`
	DeviceFrom *string  `json:"device_from,omitempty" doc:"Of a device node: major:minor"`
	DeviceTo   *string  `json:"device_to,omitempty"`
}

// DiffOptions narrow a diff.
type DiffOptions struct {
	Path  string // only this file or directory and what is below it; absolute
	Limit int    // most entries in the answer; 0: the server's default, 10,000
}

// Diff compares the disks of two commits, own or public ones.
func (c *Client) Diff(ctx context.Context, from, to string, o DiffOptions) (Diff, error) {
	query := url.Values{}
	if o.Path != "" {
		query.Set("path", o.Path)
	}
	if o.Limit != 0 {
		query.Set("limit", strconv.Itoa(o.Limit))
	}
	var out Diff
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"commits", from, "diff", to}, query: query}, &out)
}
