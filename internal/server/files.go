package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path"

	"vers/api"
	"vers/internal/fault"
	"vers/internal/guest"
)

// fileLimit bounds files in both directions: they travel inside JSON. Larger ones go as they are (contents.go).
const fileLimit = 64 << 20

const defaultFileMode = 0o644

func (s *Server) routeFiles() {
	add(s, operation{method: http.MethodGet, path: "/vm/{id}/logs", id: "vm-logs",
		summary: "Output of all commands in time order", tag: "Commands"}, s.logs)
	add(s, operation{method: http.MethodGet, path: "/vm/{id}/files", id: "read-file",
		summary: "Read a file of a running VM", tag: "Files"}, s.readFile)
	add(s, operation{method: http.MethodPut, path: "/vm/{id}/files", id: "write-file",
		summary: "Write a file of a running VM", tag: "Files"}, s.writeFile)
	s.routeContents()
}

type logsInput struct {
	VMInput
	Offset     int64  `query:"offset" doc:"In bytes of output"`
	MaxEntries int64  `query:"max_entries" doc:"0: as many as fit"`
	Stream     string `query:"stream" doc:"stdout or stderr; both when left out"`
}

func (s *Server) logs(ctx context.Context, in *logsInput) (*output[api.LogList], error) {
	switch {
	case in.Offset < 0 || in.MaxEntries < 0 || in.MaxEntries > 1<<20:
		return nil, fault.Invalidf("offset is %d and max_entries %d; both must be 0 or more", in.Offset, in.MaxEntries)
	case in.Stream != "" && in.Stream != api.Stdout && in.Stream != api.Stderr:
		return nil, fault.Invalidf("stream %q is not possible; stdout and stderr are", in.Stream)
	}
	access, err := s.access(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	logs, err := access.Logs(ctx, guest.LogsRequest{Offset: in.Offset, MaxEntries: int(in.MaxEntries), Stream: in.Stream})
	if err != nil {
		return nil, err
	}
	list := api.LogList{Entries: make([]api.LogEntry, 0, len(logs.Entries)), NextOffset: logs.NextOffset, EOF: logs.EOF}
	for _, e := range logs.Entries {
		list.Entries = append(list.Entries, api.LogEntry{Timestamp: e.Time.UTC(), Stream: e.Stream, Data: e.Data, ExecID: e.ExecID})
	}
	return reply(list), nil
}

func (s *Server) access(ctx context.Context, text string) (guestAccess, error) {
	id, err := vmID(text)
	if err != nil {
		return nil, err
	}
	return s.guests(ctx, callerOf(ctx), id)
}

type readFileInput struct {
	VMInput
	Path string `query:"path" required:"true" doc:"Absolute"`
}

func (s *Server) readFile(ctx context.Context, in *readFileInput) (*output[api.FileContent], error) {
	if err := checkPath(in.Path); err != nil {
		return nil, err
	}
	access, err := s.access(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	file, _, err := access.ReadFile(ctx, guest.FileRequest{Path: in.Path})
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, fileLimit+1))
	if err != nil {
		return nil, err
	}
	if len(content) > fileLimit {
		return nil, fmt.Errorf("file %s is %w for this call: at most %d MiB are possible, any size at /files/content", in.Path, errTooLarge, fileLimit>>20)
	}
	return reply(api.FileContent{Content: content}), nil
}

func checkPath(name string) error {
	if !path.IsAbs(name) {
		return fault.Invalidf("path %q is not absolute", name)
	}
	return nil
}

type writeFileInput struct {
	VMInput
	Body api.FileRequest
}

func (s *Server) writeFile(ctx context.Context, in *writeFileInput) (*none, error) {
	b := in.Body
	if err := checkPath(b.Path); err != nil {
		return nil, err
	}
	mode := fs.FileMode(defaultFileMode)
	if b.Mode != nil {
		if mode = fs.FileMode(*b.Mode); mode > 0o777 {
			return nil, fault.Invalidf("mode is %d; 0 to 511 (octal 777) are possible", *b.Mode)
		}
	}
	if len(b.Content) > fileLimit {
		return nil, fmt.Errorf("the content is %w for this call: at most %d MiB are possible, any size at /files/content", errTooLarge, fileLimit>>20)
	}
	access, err := s.access(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	req := guest.FileRequest{Path: b.Path, Mode: mode, CreateDirs: b.CreateDirs != nil && *b.CreateDirs}
	return &none{}, access.WriteFile(ctx, req, bytes.NewReader(b.Content))
}
