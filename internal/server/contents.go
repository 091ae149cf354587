package server

import (
	"context"
	"io"
	"io/fs"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"vers/internal/fault"
	"vers/internal/guest"
)

const octets = "application/octet-stream"

// routeContents has files of any size, as they are instead of in JSON.
func (s *Server) routeContents() {
	add(s, operation{method: http.MethodGet, path: "/vm/{id}/files/content", id: "read-content",
		responses: map[string]*huma.Response{"200": {Description: "The bytes. With a Content-Length they are complete, else when the connection ends in order",
			Content: map[string]*huma.MediaType{octets: binary()}}},
		summary: "[ours] Content of a file of a running VM", tag: "Files"}, s.readContent)
	add(s, operation{method: http.MethodPut, path: "/vm/{id}/files/content", id: "write-content",
		upload: "the bytes", uploadType: octets,
		summary: "[ours] Write a file of a running VM, of any size", tag: "Files"}, s.writeContent)
}

type readContentInput struct {
	VMInput
	Path   string `query:"path" required:"true" doc:"Absolute"`
	Offset int64  `query:"offset" doc:"In bytes; what comes before is left out"`
}

func (s *Server) readContent(ctx context.Context, in *readContentInput) (*huma.StreamResponse, error) {
	if err := checkPath(in.Path); err != nil {
		return nil, err
	}
	access, err := s.access(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	file, info, err := access.ReadFile(ctx, guest.FileRequest{Path: in.Path, Offset: in.Offset})
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		defer file.Close()
		_, w := humago.Unwrap(hc)
		w.Header().Set("Content-Type", octets)
		content := io.Reader(file)
		if info.Size > 0 { // files of /proc do not know
			w.Header().Set("Content-Length", strconv.FormatInt(info.Size-in.Offset, 10))
			content = io.LimitReader(file, info.Size-in.Offset) // it may grow
		}
		if _, err := io.Copy(w, content); err != nil {
			panic(http.ErrAbortHandler) // what was sent must not be taken for all
		}
	}}, nil
}

type writeContentInput struct {
	UploadInput
	VMInput
	Path       string `query:"path" required:"true" doc:"Absolute"`
	Mode       string `query:"mode" doc:"Octal; default 644"`
	CreateDirs bool   `query:"create_dirs" doc:"Make missing folders"`
	InPlace    bool   `query:"in_place" doc:"Into the file that is there, which ends after the last byte. What has come stays, however it ends. Otherwise the file is replaced at the end, or not at all"`
	Offset     int64  `query:"offset" doc:"With in_place, the byte to begin at"`
}

func (s *Server) writeContent(ctx context.Context, in *writeContentInput) (*huma.StreamResponse, error) {
	if err := checkPath(in.Path); err != nil {
		return nil, err
	}
	mode := uint64(defaultFileMode)
	if in.Mode != "" {
		var err error
		if mode, err = strconv.ParseUint(in.Mode, 8, 32); err != nil || mode > 0o777 {
			return nil, fault.Invalidf("mode is %q; octal 0 to 777 are possible", in.Mode)
		}
	}
	access, err := s.access(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	req := guest.FileRequest{Path: in.Path, Mode: fs.FileMode(mode), CreateDirs: in.CreateDirs, InPlace: in.InPlace, Offset: in.Offset}
	return s.receive(in.UploadInput, 0, func(ctx context.Context, u *upload) {
		if err := access.WriteFile(ctx, req, u.body); err != nil {
			u.fail(err)
			return
		}
		u.answer(struct{}{})
	}), nil
}
