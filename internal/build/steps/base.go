package steps

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"vers/internal/build/dockerfile"
	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/registry"
)

// base is what a stage begins with: a commit, or a machine that boots.
type base struct {
	identity string           // of the state: equal identities, equal machines
	commit   string           // "" boots
	config   catalog.VMConfig // of a machine that boots
	image    catalog.ImageConfig
}

// resolve finds what FROM names: scratch, repo:tag, a plain tag, a commit, or a rootfs image, in this order.
func (b *build) resolve(ctx context.Context, name string) (base, error) {
	switch {
	case name == dockerfile.Scratch:
		return b.boot(ctx, b.req.Config)
	case strings.Contains(name, ":"):
		ref, err := registry.ParseReference(name)
		if err != nil {
			return base{}, err
		}
		id, err := b.r.Registry.Resolve(ctx, b.by.OrgID, ref)
		if fault.Is(err, fault.NotFound) {
			return base{}, fault.NotFoundf("FROM %s: %w; images of container registries are for the other kind of build: vers build --output rootfs", name, err)
		}
		if err != nil {
			return base{}, err
		}
		return b.onCommit(ctx, id)
	}
	if ident.ValidName(name, ident.PlainTagName) {
		tag, err := b.r.Registry.PlainTag(ctx, b.by.OrgID, name)
		if err == nil {
			return b.onCommit(ctx, tag.CommitID)
		}
		if !fault.Is(err, fault.NotFound) {
			return base{}, err
		}
	}
	if id, ok := ident.Parse(name); ok {
		return b.onCommit(ctx, id)
	}
	config := b.req.Config
	config.ImageName = name
	found, err := b.boot(ctx, config)
	if fault.Is(err, fault.NotFound) {
		return base{}, fault.NotFoundf("FROM %s: there is no plain tag, commit or rootfs image of that name; 'vers tag list', 'vers commit list' and 'vers rootfs list' show what there is, and FROM scratch is the default image", name)
	}
	return found, err
}

func (b *build) boot(ctx context.Context, config catalog.VMConfig) (base, error) {
	key, config, err := b.r.Machines.BootKey(ctx, b.caller, config)
	if err != nil {
		return base{}, err
	}
	found := base{identity: "boot:" + key, config: config}
	if config.Image != nil {
		found.image = *config.Image
	}
	return found, nil
}

// onCommit is a commit of the organisation, or a public one, with what it says about itself.
func (b *build) onCommit(ctx context.Context, id string) (base, error) {
	c, err := b.r.Registry.Commit(ctx, b.by.OrgID, id)
	if err != nil {
		return base{}, err
	}
	found := base{identity: "commit:" + id, commit: id}
	manifest, err := commit.ParseManifest(c.Manifest)
	if err != nil {
		return base{}, fmt.Errorf("read the manifest of commit %s: %w", id, err)
	}
	var config catalog.VMConfig
	if err := json.Unmarshal(manifest.Config, &config); err != nil {
		return base{}, fmt.Errorf("read the configuration of commit %s: %w", id, err)
	}
	if config.Image != nil {
		found.image = *config.Image
	}
	return found, nil
}
