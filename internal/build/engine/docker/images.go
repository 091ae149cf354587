package docker

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vers/internal/build/engine"
	"vers/internal/fault"
)

// message is one line of the daemon's progress.
type message struct {
	Stream      string          `json:"stream"`
	Status      string          `json:"status"`
	Error       string          `json:"error"`
	ErrorDetail detail          `json:"errorDetail"`
	Aux         json.RawMessage `json:"aux"`
}

type detail struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// eachMessage reads progress to its end. An error that the daemon reports is a *reported.
func eachMessage(r io.Reader, take func(message) error) error {
	decoder := json.NewDecoder(bufio.NewReader(r))
	for {
		var m message
		err := decoder.Decode(&m)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && m.Error != "" {
			return &reported{m.Error, m.ErrorDetail.Code}
		}
		if err == nil {
			err = take(m)
		}
		if err != nil {
			return err
		}
	}
}

// reported is an error in a daemon's progress. Code is of the step that failed; 0 unknown.
type reported struct {
	text string
	code int
}

func (r *reported) Error() string { return strings.TrimSpace(r.text) }

// Resolve finds an image, and pulls it as the policy says.
func (e *Engine) Resolve(ctx context.Context, r engine.Reference) (engine.Image, error) {
	name, err := reference.ParseDockerRef(r.Name)
	if err != nil {
		return engine.Image{}, fault.Invalidf("%q is no name of an image: %w", r.Name, err)
	}
	if r.Pull != engine.PullAlways {
		image, err := e.inspect(ctx, name.String())
		if !fault.Is(err, fault.NotFound) {
			return image, err
		}
		if e.podman && reference.Domain(name) == "docker.io" { // which keeps what is made here under a name of its own
			image, err = e.inspect(ctx, "localhost/"+reference.FamiliarString(name))
			if !fault.Is(err, fault.NotFound) {
				return image, err
			}
		}
		if r.Pull == engine.PullNever {
			return engine.Image{}, fault.NotFoundf("image %s is not here", r.Name)
		}
	}
	if err := e.pull(ctx, name.String(), r); err != nil {
		return engine.Image{}, err
	}
	return e.inspect(ctx, name.String())
}

func (e *Engine) pull(ctx context.Context, name string, r engine.Reference) error {
	options := client.ImagePullOptions{}
	if r.Platform != "" {
		options.Platforms = []ocispec.Platform{platform(r.Platform)}
	}
	password, known := registry.AuthConfig{Username: r.Username, Password: r.Password}, r.Username != "" || r.Password != ""
	if named, err := reference.ParseNormalizedNamed(name); err == nil && !known {
		password, known = e.passwordOf(reference.Domain(named))
	}
	if known {
		auth, err := json.Marshal(password)
		if err != nil {
			return err
		}
		options.RegistryAuth = base64.URLEncoding.EncodeToString(auth)
	}
	progress, err := e.api.ImagePull(ctx, name, options)
	if err == nil {
		defer progress.Close()
		err = eachMessage(progress, func(message) error { return nil })
	}
	if err != nil {
		return pullError(r.Name, err)
	}
	return nil
}

// pullError gives what registries answer its kind.
func pullError(name string, err error) error {
	if kind := engine.RegistryFault(err.Error()); kind != fault.Internal {
		return fault.New(kind, "image %s: %w", name, err)
	}
	return kindOf(err, "get image %s", name)
}

func platform(text string) ocispec.Platform {
	parts := append(strings.Split(text, "/"), "", "")
	return ocispec.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
}

var isID = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (e *Engine) inspect(ctx context.Context, name string) (engine.Image, error) {
	if isID.MatchString(name) {
		name = "sha256:" + name // else Podman takes it for the name of a repository
	}
	found, err := e.api.ImageInspect(ctx, name)
	if err != nil {
		return engine.Image{}, kindOf(err, "image %s", name)
	}
	id := found.ID
	if !strings.HasPrefix(id, "sha256:") {
		id = "sha256:" + id
	}
	image := engine.Image{ID: id, Digest: id}
	if c := found.Config; c != nil {
		image.Config = engine.Config{
			Env: c.Env, WorkingDir: c.WorkingDir, User: c.User, Entrypoint: c.Entrypoint, Cmd: c.Cmd, Labels: c.Labels,
		}
		for port := range c.ExposedPorts {
			image.Config.ExposedPorts = append(image.Config.ExposedPorts, port)
		}
		slices.Sort(image.Config.ExposedPorts)
	}
	return image, nil
}

// Load makes an image of a tar archive.
func (e *Engine) Load(ctx context.Context, name string, rootfs io.Reader, config engine.Config) (engine.Image, error) {
	parsed, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return engine.Image{}, fault.Invalidf("%q is no name of an image: %w", name, err)
	}
	source := client.ImageImportSource{Source: rootfs, SourceName: "-"}
	progress, err := e.api.ImageImport(ctx, source, reference.FamiliarString(reference.TagNameOnly(parsed)), client.ImageImportOptions{Changes: changes(config)})
	if err != nil {
		return engine.Image{}, kindOf(err, "make image %s of an archive", name)
	}
	defer progress.Close()
	id := ""
	err = eachMessage(progress, func(m message) error {
		if text := strings.TrimSpace(m.Status + m.Stream); text != "" {
			id = text
		}
		return nil
	})
	if err != nil {
		return engine.Image{}, fault.Invalidf("make image %s of an archive: %w", name, err)
	}
	return e.inspect(ctx, id)
}

// changes write a configuration as instructions of a Dockerfile.
func changes(c engine.Config) []string {
	var list []string
	quote := func(text string) string { data, _ := json.Marshal(text); return string(data) }
	words := func(instruction string, args []string) {
		if len(args) > 0 {
			data, _ := json.Marshal(args)
			list = append(list, instruction+" "+string(data))
		}
	}
	for _, pair := range c.Env {
		key, value, _ := strings.Cut(pair, "=")
		list = append(list, "ENV "+key+"="+quote(value))
	}
	for _, key := range slices.Sorted(keys(c.Labels)) {
		list = append(list, "LABEL "+quote(key)+"="+quote(c.Labels[key]))
	}
	for _, port := range c.ExposedPorts {
		list = append(list, "EXPOSE "+port)
	}
	if c.WorkingDir != "" {
		list = append(list, "WORKDIR "+c.WorkingDir)
	}
	if c.User != "" {
		list = append(list, "USER "+c.User)
	}
	words("ENTRYPOINT", c.Entrypoint)
	words("CMD", c.Cmd)
	return list
}

func keys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for key := range m {
			if !yield(key) {
				return
			}
		}
	}
}

// Export writes an image's root file system, from a container that is never started.
func (e *Engine) Export(ctx context.Context, image engine.Image, w io.Writer) error {
	found, err := e.inspect(ctx, image.ID)
	if err != nil {
		return err
	}
	created, err := e.api.ContainerCreate(ctx, client.ContainerCreateOptions{
		Config: &container.Config{Image: image.ID, Entrypoint: []string{"/export"}, Labels: ownLabels()},
	})
	if err != nil {
		return kindOf(err, "open image %s", image.ID)
	}
	defer func() { _ = e.remove(created.ID) }()
	if err := e.ensureFolder(ctx, created.ID, found.Config.WorkingDir); err != nil {
		return err
	}
	return e.exportContainer(ctx, created.ID, w)
}

func (e *Engine) exportContainer(ctx context.Context, id string, w io.Writer) error {
	archive, err := e.api.ContainerExport(ctx, id, client.ContainerExportOptions{})
	if err != nil {
		return kindOf(err, "archive the root file system")
	}
	defer archive.Close()
	if _, err := io.Copy(w, archive); err != nil {
		return kindOf(err, "archive the root file system")
	}
	return nil
}

// ensureFolder makes an image's working directory in a container: Podman makes the one of WORKDIR only when a step runs
// in it.
func (e *Engine) ensureFolder(ctx context.Context, id, folder string) error {
	if !e.podman {
		return nil
	}
	var archive bytes.Buffer
	w, path := tar.NewWriter(&archive), ""
	for _, name := range strings.FieldsFunc(folder, func(r rune) bool { return r == '/' }) {
		path += "/" + name
		_, err := e.api.ContainerStatPath(ctx, id, client.ContainerStatPathOptions{Path: path})
		if err == nil {
			continue
		}
		if !errdefs.IsNotFound(err) {
			return kindOf(err, "look at %s in the container", path)
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: path[1:] + "/", Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	if archive.Len() == 0 {
		return nil
	}
	if err := w.Close(); err != nil {
		return err
	}
	if _, err := e.api.CopyToContainer(ctx, id, client.CopyToContainerOptions{DestinationPath: "/", Content: &archive}); err != nil {
		return kindOf(err, "make %s in the container", folder)
	}
	return nil
}
