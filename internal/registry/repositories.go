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
	if !ident.ValidName(name, ident.RepositoryName) {
		return repo, fault.Invalidf("repository name %q is not valid: use 1 to %d letters, digits, '-', '_' or '.'",
			name, ident.RepositoryName)
	}
	err := r.catalog.InsertRepository(ctx, repo)
	if fault.Is(err, fault.Conflict) {
		err = fault.Conflictf("repository already exists: '%s'", name)
	}
	return repo, err
}

// Repository gives one repository of an organisation.
func (r *Registry) Repository(ctx context.Context, orgID, name string) (catalog.Repository, error) {
	return readRepository(ctx, r.catalog, orgID, name)
}

// Repositories lists the repositories of an organisation, newest first.
func (r *Registry) Repositories(ctx context.Context, orgID string) ([]catalog.Repository, error) {
	return r.catalog.Repositories(ctx, orgID)
}

// DeleteRepository removes a repository with its tags. The commits stay.
func (r *Registry) DeleteRepository(ctx context.Context, orgID, name string) error {
	return r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		repo, err := readRepository(ctx, tx, orgID, name)
		if err != nil {
			return err
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

// TagChange is what UpdateTag writes.
type TagChange struct {
	CommitID    string  // "" keeps the commit
	SetText     bool    // write Description
	Description *string // nil clears it
}

// CreateTag points a new tag at a commit of the organisation.
func (r *Registry) CreateTag(ctx context.Context, orgID string, ref Reference, commitID string, description *string) (catalog.RepositoryTag, error) {
	now := r.now()
	tag := catalog.RepositoryTag{ID: ident.New(), Name: ref.Tag, CommitID: commitID, Description: description, CreatedAt: now, UpdatedAt: now}
	if !ident.ValidName(ref.Tag, ident.TagName) {
		return tag, fault.Invalidf("tag name %q is not valid: use 1 to %d letters, digits, '-', '_' or '.'", ref.Tag, ident.TagName)
	}
	err := r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		repo, err := readRepository(ctx, tx, orgID, ref.Repository)
		if err != nil {
			return err
		}
		if _, err := ownCommit(ctx, tx, orgID, commitID); err != nil {
			return err
		}
		tag.RepoID = repo.ID
		err = tx.InsertTag(ctx, tag)
		if fault.Is(err, fault.Conflict) {
			err = fault.Conflictf("tag already exists: '%s'; move it with 'vers repo tag update %s %s --commit <commit>'",
				ref, ref.Repository, ref.Tag)
		}
		return err
	})
	return tag, err
}

// Tag gives one tag.
func (r *Registry) Tag(ctx context.Context, orgID string, ref Reference) (catalog.RepositoryTag, error) {
	_, tag, err := readTag(ctx, r.catalog, orgID, ref)
	return tag, err
}

// Tags lists the tags of a repository, newest first.
func (r *Registry) Tags(ctx context.Context, orgID, repository string) ([]catalog.RepositoryTag, error) {
	repo, err := readRepository(ctx, r.catalog, orgID, repository)
	if err != nil {
		return nil, err
	}
	return r.catalog.Tags(ctx, repo.ID)
}

// UpdateTag moves a tag, or changes its description, or both at once. Whoever reads the tag sees it before or after,
// nothing between. No VM is touched.
func (r *Registry) UpdateTag(ctx context.Context, orgID string, ref Reference, change TagChange) error {
	if change.CommitID == "" && !change.SetText {
		return fault.Invalidf("nothing to change for tag '%s': give commit_id, description or both", ref)
	}
	return r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		_, tag, err := readTag(ctx, tx, orgID, ref)
		if err != nil {
			return err
		}
		if change.CommitID != "" {
			if _, err := ownCommit(ctx, tx, orgID, change.CommitID); err != nil {
				return err
			}
			tag.CommitID = change.CommitID
		}
		if change.SetText {
			tag.Description = change.Description
		}
		tag.UpdatedAt = r.now()
		return tx.UpdateTag(ctx, tag)
	})
}

// DeleteTag removes a tag. The commit stays.
func (r *Registry) DeleteTag(ctx context.Context, orgID string, ref Reference) error {
	return r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		_, tag, err := readTag(ctx, tx, orgID, ref)
		if err != nil {
			return err
		}
		return tx.DeleteTag(ctx, tag.ID)
	})
}
