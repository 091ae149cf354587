package server

import (
	"context"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"vers/api"
	"vers/internal/build/images"
	"vers/internal/catalog"
	"vers/internal/fault"
)

// The calls of `vers build` and `vers rootfs`, at the place where older clients look for them and below /api/v1
// (spec/api.md 6.2).
func (s *Server) routeRootfs() {
	for _, root := range []bool{false, true} {
		at := func(o operation) operation {
			o.tag = "Images"
			if root {
				o.path, o.id, o.root, o.hidden = "/api"+o.path, "legacy-"+o.id, true, true
			}
			return o
		}
		add(s, at(operation{method: http.MethodGet, path: "/rootfs", id: "list-rootfs", summary: "Names of the rootfs images"}), s.listRootfs)
		add(s, at(operation{method: http.MethodPut, path: "/rootfs/{name}", id: "build-rootfs", creates: true, upload: "a folder with a Dockerfile, tar, tar.gz or tar.zst",
			responses: s.buildResponses(),
			summary:   "Build the Dockerfile of a folder; an image that has the name is replaced, VMs made of it keep what they have"}), s.buildRootfs)
		add(s, at(operation{method: http.MethodDelete, path: "/rootfs/{name}", id: "delete-rootfs", summary: "Delete a rootfs image of the organisation"}), s.deleteRootfs)
	}
}

func (s *Server) buildResponses() map[string]*huma.Response {
	schemas := s.api.OpenAPI().Components.Schemas
	return map[string]*huma.Response{"200": {
		Description: "The image is there. A client that accepts application/x-ndjson gets one JSON object per line while it is built; the last one is a result or an error",
		Content: map[string]*huma.MediaType{
			"application/json":     {Schema: schemas.Schema(reflect.TypeFor[api.RootfsBuilt](), true, "")},
			"application/x-ndjson": {Schema: schemas.Schema(reflect.TypeFor[api.BuildEvent](), true, "")},
		},
	}}
}

func envelope(ctx context.Context, code string, began time.Time) api.Envelope {
	return api.Envelope{DurationNS: time.Since(began).Nanoseconds(), OperationCode: code, OperationID: notesOf(ctx).id, TimeStart: began.UTC()}
}

func (s *Server) listRootfs(ctx context.Context, _ *none) (*output[api.RootfsList], error) {
	began := time.Now()
	names := api.RootfsNames{RootfsNames: []string{}}
	for seen := map[string]bool{}; ; {
		page, total, err := s.Registry.Images(ctx, orgOf(ctx), rootfsPage, int64(len(seen)))
		if err != nil {
			return nil, err
		}
		for _, image := range page {
			seen[image.ID] = true
			names.RootfsNames = append(names.RootfsNames, image.Name)
		}
		if len(page) == 0 || int64(len(seen)) >= total {
			return reply(api.RootfsList{Envelope: envelope(ctx, "rootfs_list", began), Data: names, RootfsNames: names}), nil
		}
	}
}

const rootfsPage = 1000

type deleteRootfsInput struct {
	Name string `path:"name"`
}

func (s *Server) deleteRootfs(ctx context.Context, in *deleteRootfsInput) (*output[api.RootfsDeleted], error) {
	began := time.Now()
	deleted, err := s.removeImage(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	name := api.RootfsName{RootfsName: deleted.Name}
	return reply(api.RootfsDeleted{Envelope: envelope(ctx, "rootfs_delete", began), Data: name, RootfsName: name}), nil
}

type buildRootfsInput struct {
	UploadInput
	Name       string   `path:"name"`
	Dockerfile string   `query:"dockerfile" doc:"Path of the Dockerfile in the folder; default Dockerfile"`
	Target     string   `query:"target" doc:"[ours] Stage to build; default the last"`
	NoCache    bool     `query:"no_cache" doc:"[ours] Run every step again"`
	BuildArgs  []string `query:"build_arg,explode" doc:"[ours] KEY=VALUE for ARG, repeatable"`
	Folder     string   `header:"X-Vers-Folder" doc:"[ours] Digest of the folder: if the same was built before, with the same arguments, the answer comes without the archive being read"`
}

func (s *Server) buildRootfs(ctx context.Context, in *buildRootfsInput) (*huma.StreamResponse, error) {
	service, err := s.imageService()
	if err != nil {
		return nil, err
	}
	args, err := buildArgs(in.BuildArgs)
	if err != nil {
		return nil, err
	}
	req := s.imageRequest(ctx, in.Name)
	req.Replace = true
	d := images.Dockerfile{Path: in.Dockerfile, Args: args, Target: in.Target, NoCache: in.NoCache, Folder: in.Folder}
	began := time.Now()
	return s.receive(in.UploadInput, s.Images.Limit, func(ctx context.Context, u *upload) {
		req.Log, req.Began = u.log, u.begin
		built, err := service.Build(ctx, req, d, u.body)
		if err != nil {
			u.fail(err)
			return
		}
		u.finish(s.showBuilt(ctx, built, began))
	}), nil
}

func (s *Server) showBuilt(ctx context.Context, built catalog.Image, began time.Time) (api.RootfsBuilt, error) {
	shown, err := showImage(built)
	name := api.RootfsName{RootfsName: built.Name}
	return api.RootfsBuilt{Envelope: envelope(ctx, "rootfs_upload", began), Data: name, RootfsName: name, Image: shown}, err
}

func buildArgs(pairs []string) (map[string]string, error) {
	args := map[string]string{}
	for _, pair := range pairs {
		key, value, ok := cutPair(pair)
		if !ok {
			return nil, fault.Invalidf("build_arg %q is not KEY=VALUE", pair)
		}
		args[key] = value
	}
	return args, nil
}
