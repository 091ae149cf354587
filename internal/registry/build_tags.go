package registry

import (
	"context"
	"strings"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

// CheckBuildTag says whether a key may give a build's commit a tag: repo:tag, or a plain tag without colon. Nothing is
// reserved: PutBuildTag checks again.
func (r *Registry) CheckBuildTag(ctx context.Context, by catalog.Key, tag string) error {
	if !strings.Contains(tag, ":") {
		return checkPlainTag(tag)
	}
	ref, err := ParseReference(tag)
	if err != nil {
		return err
	}
	return r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		_, found, err := readTag(ctx, tx, by.OrgID, ref)
		if fault.Is(err, fault.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return r.mayMove(ctx, tx, by, ref, found)
	})
}

// PutBuildTag points a tag at a commit: a tag that exists moves, one that does not is made, and so is its repository, private.
// A tag that is there already stays as it is. A protected tag is moved by its keys only (fault.Forbidden).
func (r *Registry) PutBuildTag(ctx context.Context, by catalog.Key, tag, commitID string) error {
	return r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		if _, err := ownCommit(ctx, tx, by.OrgID, commitID); err != nil {
			return err
		}
		if !strings.Contains(tag, ":") {
			return r.putPlainTag(ctx, tx, by.OrgID, tag, commitID)
		}
		ref, err := ParseReference(tag)
		if err != nil {
			return err
		}
		return r.putTag(ctx, tx, by, ref, commitID)
	})
}

func (r *Registry) putPlainTag(ctx context.Context, tx *catalog.Tx, orgID, name, commitID string) error {
	if err := checkPlainTag(name); err != nil {
		return err
	}
	now := r.now()
	tag, err := tx.PlainTag(ctx, orgID, name)
	switch {
	case fault.Is(err, fault.NotFound):
		return tx.InsertPlainTag(ctx, catalog.PlainTag{ID: ident.New(), OrgID: orgID, Name: name, CommitID: commitID, CreatedAt: now, UpdatedAt: now})
	case err != nil || tag.CommitID == commitID:
		return err
	}
	tag.CommitID, tag.UpdatedAt = commitID, now
	return tx.UpdatePlainTag(ctx, tag)
}

func (r *Registry) putTag(ctx context.Context, tx *catalog.Tx, by catalog.Key, ref Reference, commitID string) error {
	repo, err := readRepository(ctx, tx, by.OrgID, ref.Repository)
	if fault.Is(err, fault.NotFound) {
		repo = catalog.Repository{ID: ident.New(), OrgID: by.OrgID, Name: ref.Repository, CreatedAt: r.now()}
		err = tx.InsertRepository(ctx, repo)
	}
	if err != nil {
		return err
	}
	tag, err := tx.Tag(ctx, repo.ID, ref.Tag)
	switch {
	case fault.Is(err, fault.NotFound):
		_, err = r.insertTag(ctx, tx, by, repo, catalog.RepositoryTag{Name: ref.Tag, CommitID: commitID})
		return err
	case err != nil || tag.CommitID == commitID:
		return err
	}
	if err := r.mayMove(ctx, tx, by, ref, tag); err != nil {
		return err
	}
	return r.moveTag(ctx, tx, by, tag, commitID, ActionMove)
}
