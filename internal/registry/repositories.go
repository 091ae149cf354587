package registry

import (
	"context"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

// CreateRepository makes an empty private repository.
func (r *Registry) CreateRepository(ctx context.Context, orgID, name string, description *string) (catalog.Repository, error) {
	repo := catalog.Repository{ID: ident.New(), OrgID: orgID, Name: name, Description: description, CreatedAt: r.now()}
	if err := CheckRepositoryName(name); err != nil {
		return repo, err
	}
	err := r.catalog.InsertRepository(ctx, repo)
	if fault.Is(err, fault.Conflict) {
		err = fault.Conflictf("repository already exists: '%s'", name)
	}
	return repo, err
}

// CheckRepositoryName refuses names that no repository can have.
func CheckRepositoryName(name string) error {
	if !ident.ValidName(name, ident.RepositoryName) {
		return fault.Invalidf("repository name %.200q is not valid: use 1 to %d letters, digits, '-', '_' or '.'",
			name, ident.RepositoryName)
	}
	return nil
}

// CheckTagName refuses names that no tag of a repository can have.
func CheckTagName(name string) error {
	if !ident.ValidName(name, ident.TagName) {
		return fault.Invalidf("tag name %.200q is not valid: use 1 to %d letters, digits, '-', '_' or '.'", name, ident.TagName)
	}
	return nil
}

// Repository gives one repository of an organisation.
func (r *Registry) Repository(ctx context.Context, orgID, name string) (catalog.Repository, error) {
	return readRepository(ctx, r.catalog, orgID, name)
}

// Repositories lists the repositories of an organisation, newest first.
func (r *Registry) Repositories(ctx context.Context, orgID string) ([]catalog.Repository, error) {
	return r.catalog.Repositories(ctx, orgID)
}

// DeleteRepository removes a repository with its tags and their histories. The commits stay. A protected tag in it that
// the key may not delete is fault.Forbidden.
func (r *Registry) DeleteRepository(ctx context.Context, by catalog.Key, name string) error {
	return r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		repo, err := readRepository(ctx, tx, by.OrgID, name)
		if err != nil {
			return err
		}
		tags, err := tx.ProtectedTags(ctx, repo.ID)
		if err != nil {
			return err
		}
		for _, tag := range tags {
			if err := r.mayMove(ctx, tx, by, Reference{Repository: name, Tag: tag.Name}, tag); err != nil {
				return err
			}
		}
		return tx.DeleteRepository(ctx, repo.ID)
	})
}

// SetVisibility makes a repository public or private.
func (r *Registry) SetVisibility(ctx context.Context, orgID, name string, public bool) error {
	return r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		repo, err := readRepository(ctx, tx, orgID, name)
		if err != nil {
			return err
		}
		repo.IsPublic = public
		return tx.UpdateRepository(ctx, repo)
	})
}
