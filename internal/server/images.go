package server

import (
	"context"
	"net/http"

	"vers/api"
	"vers/internal/build/engine"
	"vers/internal/build/images"
	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

func (s *Server) routeImages() {
	add(s, operation{method: http.MethodGet, path: "/images", id: "list-images",
		summary: "Rootfs images that VMs can be started from", tag: "Images"}, s.listImages)
	add(s, operation{method: http.MethodGet, path: "/images/{name}", id: "get-image",
		summary: "One rootfs image, by name or id", tag: "Images"}, s.getImage)
	add(s, operation{method: http.MethodPost, path: "/images/create", status: http.StatusCreated, creates: true, id: "create-image",
		summary: "Make a rootfs image of one in a registry; it goes on in the background", tag: "Images"}, s.createImage)
	add(s, operation{method: http.MethodGet, path: "/images/{name}/status", id: "image-status",
		summary: "How far the making of an image is", tag: "Images"}, s.imageStatus)
	remove := operation{method: http.MethodDelete, path: "/images/{id}", id: "delete-image",
		summary: "Delete a rootfs image of the organisation, by id or name", tag: "Images"}
	add(s, remove, s.deleteImage)
	remove.path, remove.id = "/images/images/{id}", "delete-image-doubled" // as older clients call it
	add(s, remove, s.deleteImage)
	s.routeUpload()
	s.routeRootfs()
}

// imageService gives what makes images.
func (s *Server) imageService() (*images.Service, error) {
	if s.Images == nil {
		return nil, fault.Unavailablef("this server makes no images")
	}
	return s.Images, nil
}

func (s *Server) listImages(ctx context.Context, in *PageInput) (*output[api.ImageList], error) {
	limit, offset, err := in.read()
	if err != nil {
		return nil, err
	}
	images, total, err := s.Registry.Images(ctx, orgOf(ctx), limit, offset)
	if err != nil {
		return nil, err
	}
	list := api.ImageList{Images: make([]api.Image, 0, len(images)), Total: total, Limit: limit, Offset: offset}
	for _, image := range images {
		shown, err := showImage(image)
		if err != nil {
			return nil, err
		}
		list.Images = append(list.Images, shown)
	}
	return reply(list), nil
}

func showImage(i catalog.Image) (api.Image, error) {
	config, err := i.ParseConfig()
	return api.Image{BaseImageID: i.ID, ImageName: i.Name, OwnerID: i.OrgID, IsPublic: i.OrgID == "", SourceType: i.SourceType,
		SizeMiB: i.SizeMiB, CreatedAt: i.CreatedAt.UTC(), Description: i.Description, Digest: i.Digest, Source: i.Source,
		Config: showImageConfig(config)}, err
}

func showImageConfig(c *catalog.ImageConfig) *api.ImageConfig {
	if c == nil {
		return nil
	}
	shown := api.ImageConfig(*c)
	return &shown
}

// ImageInput names an image.
type ImageInput struct {
	Name string `path:"name" doc:"Name or id"`
}

// imageName refuses what can be neither name nor id.
func imageName(text string) error {
	if !ident.ValidName(text, ident.ImageName) {
		return fault.Invalidf("image name %q is malformed: names are 1 to %d letters, digits, '-', '_' or '.'", text, ident.ImageName)
	}
	return nil
}

func (s *Server) getImage(ctx context.Context, in *ImageInput) (*output[api.Image], error) {
	service, err := s.imageService()
	if err == nil {
		err = imageName(in.Name)
	}
	if err != nil {
		return nil, err
	}
	found, err := service.Image(ctx, orgOf(ctx), in.Name)
	if err != nil {
		return nil, err
	}
	shown, err := showImage(found)
	return reply(shown), err
}

type createImageInput struct{ Body api.ImageRequest }

func (s *Server) createImage(ctx context.Context, in *createImageInput) (*output[api.ImageJob], error) {
	b := in.Body
	switch {
	case b.Source.Type == api.SourceS3:
		return nil, notOffered("images from S3 are not offered by this server: download the archive and send it to POST /api/v1/images/upload")
	case b.Source.Type != api.SourceDocker:
		return nil, fault.Invalidf("source.type is %q; docker is possible", b.Source.Type)
	case b.Source.ImageRef == nil:
		return nil, fault.Invalidf("source.image_ref is missing: the name of a Docker image, for example debian:12")
	}
	service, err := s.imageService()
	if err != nil {
		return nil, err
	}
	req := s.imageRequest(ctx, b.ImageName)
	req.Description, req.Replace = b.Description, b.Replace
	if b.SizeMiB != nil {
		if *b.SizeMiB < 0 {
			return nil, fault.Invalidf("size_mib is %d; it cannot be negative", *b.SizeMiB)
		}
		if req.FreeMiB = *b.SizeMiB; req.FreeMiB == 0 {
			req.FreeMiB = -1
		}
	}
	job, err := service.Create(ctx, req, engine.Reference{Name: *b.Source.ImageRef})
	if err != nil {
		return nil, err
	}
	return reply(api.ImageJob{JobID: job.ID, ImageName: job.Name, Status: job.State}), nil
}

func (s *Server) imageRequest(ctx context.Context, name string) images.Request {
	key := callerKey(ctx)
	return images.Request{OrgID: key.OrgID, KeyID: key.ID, Name: name}
}

func (s *Server) imageStatus(ctx context.Context, in *ImageInput) (*output[api.ImageStatus], error) {
	service, err := s.imageService()
	if err == nil {
		err = imageName(in.Name)
	}
	if err != nil {
		return nil, err
	}
	job, now, err := service.Status(ctx, orgOf(ctx), in.Name)
	if err != nil {
		return nil, err
	}
	status := api.ImageStatus{ImageName: job.Name, Status: job.State, ErrorMessage: optional(job.Reason)}
	if now != nil {
		status.SizeMiB = now.SizeMiB
	}
	return reply(status), nil
}

type deleteImageInput struct {
	ID string `path:"id" doc:"Id or name"`
}

func (s *Server) deleteImage(ctx context.Context, in *deleteImageInput) (*output[api.ImageDeleted], error) {
	deleted, err := s.removeImage(ctx, in.ID)
	return reply(api.ImageDeleted{Deleted: true, BaseImageID: deleted.ID}), err
}

func (s *Server) removeImage(ctx context.Context, nameOrID string) (catalog.Image, error) {
	service, err := s.imageService()
	if err == nil {
		err = imageName(nameOrID)
	}
	if err != nil {
		return catalog.Image{}, err
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	return service.Delete(ctx, orgOf(ctx), nameOrID)
}
