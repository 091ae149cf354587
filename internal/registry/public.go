package registry

import (
	"context"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

// PublicRepositories lists the public repositories of all organisations, newest first.
func (r *Registry) PublicRepositories(ctx context.Context) ([]catalog.PublicRepository, error) {
	return r.catalog.PublicRepositories(ctx)
}

// PublicRepository gives one public repository. A private one does not exist here, whoever asks.
func (r *Registry) PublicRepository(ctx context.Context, org, name string) (catalog.PublicRepository, error) {
	if !ident.ValidName(org, ident.RepositoryName) {
		return catalog.PublicRepository{}, fault.Invalidf("organisation name %.200q is not valid: it has 1 to %d letters, digits, '-', '_' or '.'",
			org, ident.RepositoryName)
	}
	if err := CheckRepositoryName(name); err != nil {
		return catalog.PublicRepository{}, err
	}
	return r.catalog.PublicRepository(ctx, org, name)
}

// PublicTags lists the tags of a public repository, newest first.
func (r *Registry) PublicTags(ctx context.Context, org, name string) ([]catalog.RepositoryTag, error) {
	repo, err := r.PublicRepository(ctx, org, name)
	if err != nil {
		return nil, err
	}
	return r.catalog.Tags(ctx, repo.ID)
}

// PublicTag gives one tag of a public repository.
func (r *Registry) PublicTag(ctx context.Context, org string, ref Reference) (catalog.RepositoryTag, error) {
	if err := CheckTagName(ref.Tag); err != nil {
		return catalog.RepositoryTag{}, err
	}
	repo, err := r.PublicRepository(ctx, org, ref.Repository)
	if err != nil {
		return catalog.RepositoryTag{}, err
	}
	tag, err := r.catalog.Tag(ctx, repo.ID, ref.Tag)
	if fault.Is(err, fault.NotFound) {
		err = fault.NotFoundf("tag '%s' not found in public repository '%s/%s'", ref.Tag, org, ref.Repository)
	}
	return tag, err
}
