package registry

import (
	"context"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

// PlanFork finds the commit that a tag of a public repository points at and checks that a fork of it can be called
// target. Nothing is reserved: NameFork checks again.
func (r *Registry) PlanFork(ctx context.Context, by catalog.Key, org string, source, target Reference) (commitID string, err error) {
	tag, err := r.PublicTag(ctx, org, source)
	if err != nil {
		return "", err
	}
	_, _, err = readTag(ctx, r.catalog, by.OrgID, target)
	switch {
	case err == nil:
		return "", forkExists(target)
	case fault.Is(err, fault.NotFound):
		return tag.CommitID, nil
	}
	return "", err
}

// NameFork points a new tag at the commit of a fork, in a repository that is made, private, if it is missing. It belongs
// into the transaction that makes the commit visible, so that both are there or none.
func (r *Registry) NameFork(ctx context.Context, tx *catalog.Tx, by catalog.Key, target Reference, commitID string) error {
	repo, err := readRepository(ctx, tx, by.OrgID, target.Repository)
	if fault.Is(err, fault.NotFound) {
		repo = catalog.Repository{ID: ident.New(), OrgID: by.OrgID, Name: target.Repository, CreatedAt: r.now()}
		err = tx.InsertRepository(ctx, repo)
	}
	if err != nil {
		return err
	}
	_, err = r.insertTag(ctx, tx, by, repo, catalog.RepositoryTag{Name: target.Tag, CommitID: commitID})
	if fault.Is(err, fault.Conflict) {
		err = forkExists(target)
	}
	return err
}

func forkExists(target Reference) error {
	return fault.Conflictf("tag already exists: '%s'; choose another name with --tag-name (or --repo-name), or delete the tag first: 'vers repo tag delete %s %s'",
		target, target.Repository, target.Tag)
}
