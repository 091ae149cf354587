package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containers/buildah"
	"github.com/containers/buildah/define"
	"go.podman.io/common/libimage"
	"go.podman.io/common/pkg/config"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	istorage "go.podman.io/image/v5/storage"
	"go.podman.io/storage"
	"go.podman.io/storage/pkg/archive"
	"go.podman.io/storage/pkg/chrootarchive"
	"golang.org/x/sys/unix"

	"vers/internal/build/engine"
	"vers/internal/build/engine/embedded/wire"
	"vers/internal/fault"
)

func splitPlatform(platform string) (os, arch, variant string) {
	parts := append(strings.Split(platform, "/"), "", "")
	return parts[0], parts[1], parts[2]
}

// resolve finds an image, and pulls it as the policy says.
func (w *worker) resolve(ctx context.Context, r engine.Reference) (*engine.Image, error) {
	if _, err := reference.ParseAnyReference(r.Name); err != nil {
		return nil, fault.Invalidf("%q is no name of an image: %w", r.Name, err)
	}
	policy := config.PullPolicyMissing
	switch r.Pull {
	case engine.PullAlways:
		policy = config.PullPolicyAlways
	case engine.PullNever:
		policy = config.PullPolicyNever
	}
	options := &libimage.PullOptions{}
	options.SystemContext = systemContext(r.Platform)
	options.OS, options.Architecture, options.Variant = splitPlatform(r.Platform)
	options.SignaturePolicyPath, options.AuthFilePath = signaturePath, authFile
	options.Username, options.Password = r.Username, r.Password
	retries := uint(1)
	options.MaxRetries = &retries
	images, err := w.images.Pull(ctx, r.Name, policy, options)
	if err != nil {
		return nil, pullError(r.Name, err)
	}
	if len(images) != 1 {
		return nil, fault.Invalidf("%q names %d images", r.Name, len(images))
	}
	return describe(ctx, images[0])
}

// pullError gives what registries answer its kind.
func pullError(name string, err error) error {
	var unauthorized docker.ErrUnauthorizedForCredentials
	kind := engine.RegistryFault(err.Error())
	switch {
	case errors.As(err, &unauthorized) || kind == fault.Forbidden:
		return fault.Forbiddenf("the registry refuses access to image %s: check user name and password. %w", name, err)
	case errors.Is(err, storage.ErrImageUnknown) || kind == fault.NotFound:
		return fault.NotFoundf("image %s is neither here nor in its registry: %w", name, err)
	case kind == fault.Unavailable:
		return fault.Unavailablef("the registry of image %s does not answer: %w", name, err)
	}
	return fmt.Errorf("get image %s: %w", name, err)
}

// describe reads what callers want to know about an image.
func describe(ctx context.Context, image *libimage.Image) (*engine.Image, error) {
	data, err := image.Inspect(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("read the configuration of image %s: %w", image.ID(), err)
	}
	result := &engine.Image{ID: image.ID(), Digest: "sha256:" + image.ID()}
	if c := data.Config; c != nil {
		result.Config = engine.Config{
			Env: c.Env, WorkingDir: c.WorkingDir, User: c.User, Entrypoint: c.Entrypoint, Cmd: c.Cmd, Labels: c.Labels,
		}
		for port := range c.ExposedPorts {
			result.Config.ExposedPorts = append(result.Config.ExposedPorts, port)
		}
		slices.Sort(result.Config.ExposedPorts)
	}
	return result, nil
}

// find is an image that the store has, by ID or name.
func (w *worker) find(name string) (*libimage.Image, error) {
	image, _, err := w.images.LookupImage(name, nil)
	if errors.Is(err, storage.ErrImageUnknown) {
		return nil, fault.NotFoundf("image %s is not in the store", name)
	}
	return image, err
}

// load makes an image of a tar archive.
func (w *worker) load(ctx context.Context, load wire.Load, data io.Reader) (*engine.Image, error) {
	name, err := reference.ParseNormalizedNamed(load.Name)
	if err != nil {
		return nil, fault.Invalidf("%q is no name of an image: %w", load.Name, err)
	}
	builder, err := buildah.NewBuilder(ctx, w.store, w.builderOptions("scratch"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = builder.Delete() }()
	root, err := builder.Mount("")
	if err != nil {
		return nil, err
	}
	begin, epoch := time.Now(), time.Unix(0, 0).UTC()
	if err := chrootarchive.Untar(data, root, &archive.TarOptions{}); err != nil {
		if diskFull(err) {
			return nil, err
		}
		return nil, fault.Invalidf("unpack the archive for image %s: %w", load.Name, err)
	}
	if err := settleTimes(root, begin, epoch); err != nil {
		return nil, fmt.Errorf("set times in image %s: %w", load.Name, err)
	}
	applyConfig(builder, load.Config)
	if err := distinguish(builder, load.Config); err != nil {
		return nil, err
	}
	// The whole name, as a registry's image would have: then every spelling of it is found, before any registry is asked.
	target, err := istorage.Transport.ParseStoreReference(w.store, reference.TagNameOnly(name).String())
	if err != nil {
		return nil, err
	}
	// Always the same time, so that the same archive is the same image; its files keep theirs.
	id, _, _, err := builder.Commit(ctx, target, buildah.CommitOptions{
		PreferredManifestType: define.Dockerv2ImageManifest, SignaturePolicyPath: signaturePath, SystemContext: systemContext(""),
		SourceDateEpoch: &epoch,
	})
	if err != nil {
		return nil, err
	}
	image, err := w.find(id)
	if err != nil {
		return nil, err
	}
	return describe(ctx, image)
}

// settleTimes gives folders that an archive has no entry of a time that does not tell when it was unpacked.
func settleTimes(root string, begin, epoch time.Time) error {
	at, err := unix.TimeToTimespec(epoch)
	if err != nil {
		return err
	}
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err != nil || info.ModTime().Before(begin.Add(-time.Second)) || info.ModTime().After(time.Now()) {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// distinguish puts the configuration into the image's history, which is what buildah's cache compares: what was built on
// the same files with another configuration would be taken for the answer otherwise.
func distinguish(builder *buildah.Builder, c engine.Config) error {
	data, err := json.Marshal(c)
	if err == nil {
		builder.SetHistoryComment(fmt.Sprintf("configuration sha256:%x", sha256.Sum256(data)))
	}
	return err
}

func applyConfig(builder *buildah.Builder, c engine.Config) {
	for _, pair := range c.Env {
		key, value, _ := strings.Cut(pair, "=")
		builder.SetEnv(key, value)
	}
	for key, value := range c.Labels {
		builder.SetLabel(key, value)
	}
	for _, port := range c.ExposedPorts {
		builder.SetPort(port)
	}
	builder.SetWorkDir(c.WorkingDir)
	builder.SetUser(c.User)
	builder.SetEntrypoint(c.Entrypoint)
	builder.SetCmd(c.Cmd)
}

// builderOptions are those of every working container; its name ends in the run's ID, by which it is found when the run
// was killed.
func (w *worker) builderOptions(from string) buildah.BuilderOptions {
	return buildah.BuilderOptions{
		FromImage: from, ContainerSuffix: w.ID, PullPolicy: define.PullNever, Isolation: define.IsolationOCI,
		SignaturePolicyPath: signaturePath, SystemContext: systemContext(""), NetworkInterface: noNetworks{},
		DefaultMountsFilePath: mountsConf, CommonBuildOpts: w.commonOptions(), Format: define.Dockerv2ImageManifest,
	}
}

// export writes the root file system of an image.
func (w *worker) export(ctx context.Context, image engine.Image) error {
	found, err := w.find(image.ID)
	if err != nil {
		return err
	}
	root, err := found.Mount(ctx, nil, "")
	if err != nil {
		return fmt.Errorf("mount image %s: %w", image.ID, err)
	}
	defer func() { _ = found.Unmount(true) }()
	described, err := describe(ctx, found)
	if err != nil {
		return err
	}
	return writeTar(w.conn.Writer(wire.Data), root, described.Config.WorkingDir)
}

// clean removes the working containers of runs, which are known by the ends of their names.
func (w *worker) clean(ids []string) error {
	containers, err := w.store.Containers()
	if err != nil {
		return err
	}
	var errs []error
	for _, container := range containers {
		for _, id := range ids {
			if slices.ContainsFunc(container.Names, func(name string) bool { return ofRun(name, id) }) {
				errs = append(errs, w.store.DeleteContainer(container.ID))
				break
			}
		}
	}
	return errors.Join(errs...)
}

// ofRun recognises a name with the suffix, behind which buildah may put a counter.
func ofRun(name, id string) bool {
	rest, found := name, false
	if i := strings.LastIndex(name, "-"+strings.TrimPrefix(id, ".")); i >= 0 {
		rest, found = name[i+1+len(strings.TrimPrefix(id, ".")):], true
	}
	return found && (rest == "" || strings.HasPrefix(rest, "-"))
}
