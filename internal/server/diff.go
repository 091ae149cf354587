package server

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"unicode/utf8"

	"vers/api"
	"vers/internal/ext4"
	"vers/internal/machine"
)

func (s *Server) routeDiff() {
	add(s, operation{method: http.MethodGet, path: "/commits/{id}/diff/{other}", id: "diff-commits", tag: "Commits",
		summary: "[ours] What differs between the disks of two commits"}, s.diff)
}

type diffInput struct {
	CommitInput
	Other string `path:"other" doc:"Commit to compare with, a UUID"`
	Path  string `query:"path" doc:"Only this file or directory and what is below it; absolute"`
	Limit int    `query:"limit" default:"10000" minimum:"1" maximum:"100000" doc:"Most entries in the answer"`
}

func (s *Server) diff(ctx context.Context, in *diffInput) (*output[api.Diff], error) {
	var ids [2]string
	for i, text := range []string{in.ID, in.Other} {
		id, err := commitID(text)
		if err != nil {
			return nil, err
		}
		if _, err := s.Registry.Commit(ctx, orgOf(ctx), id); err != nil {
			return nil, err
		}
		ids[i] = id
	}
	d, err := s.Machines.Diff(ctx, machine.DiffRequest{From: ids[0], To: ids[1], Path: in.Path, Limit: in.Limit})
	if err != nil {
		return nil, err
	}
	answer := api.Diff{From: ids[0], To: ids[1], Entries: make([]api.DiffEntry, 0, len(d.Entries)), Truncated: d.Truncated,
		Added: d.Totals.Added, Removed: d.Totals.Removed, Changed: d.Totals.Changed,
		BytesAdded: d.Totals.BytesAdded, BytesRemoved: d.Totals.BytesRemoved}
	for _, e := range d.Entries {
		answer.Entries = append(answer.Entries, showDiffEntry(e))
	}
	return reply(answer), nil
}

func showDiffEntry(e ext4.Entry) api.DiffEntry {
	shown := api.DiffEntry{Path: strings.ToValidUTF8(e.Path, "\uFFFD"), Change: string(e.Change), What: e.What}
	if !utf8.ValidString(e.Path) {
		shown.PathBytes = []byte(e.Path)
	}
	if n := e.From; n != nil {
		shown.Kind = string(n.Kind)
		shown.SizeFrom, shown.ModeFrom, shown.OwnerFrom, shown.TargetFrom, shown.DeviceFrom = showNode(n)
	}
	if n := e.To; n != nil {
		shown.Kind = string(n.Kind)
		shown.SizeTo, shown.ModeTo, shown.OwnerTo, shown.TargetTo, shown.DeviceTo = showNode(n)
	}
	if e.From != nil && e.To != nil && e.From.Kind != e.To.Kind {
		shown.KindFrom = string(e.From.Kind)
	}
	return shown
}

func showNode(n *ext4.Node) (size *int64, mode, owner, target, device *string) {
	permissions, ids := fmt.Sprintf("%04o", n.Mode), fmt.Sprintf("%d:%d", n.UID, n.GID)
	if n.Kind == ext4.File || n.Kind == ext4.Symlink {
		size = &n.Size
	}
	if n.Kind == ext4.Symlink {
		text := strings.ToValidUTF8(n.Target, "\uFFFD")
		target = &text
	}
	if n.Device != "" {
		device = &n.Device
	}
	return size, &permissions, &ids, target, device
}
