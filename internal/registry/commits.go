package registry

import (
	"context"
	"unicode/utf8"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

// ownCommit gives a commit that the organisation owns. Another organisation's is fault.Forbidden when it is public and
// does not exist for the caller otherwise.
func ownCommit(ctx context.Context, c reader, orgID, id string) (catalog.Commit, error) {
	commit, err := readableCommit(ctx, c, orgID, id)
	if err == nil && commit.OrgID != orgID {
		err = fault.Forbiddenf("commit %s belongs to another organisation: fork it first ('vers repo fork org/repo:tag'), "+
			"the fork is a commit of your own", id)
	}
	return commit, err
}

// readableCommit gives a commit that the organisation owns or that is public.
func readableCommit(ctx context.Context, c reader, orgID, id string) (catalog.Commit, error) {
	commit, err := c.VisibleCommit(ctx, id)
	if err == nil && commit.OrgID != orgID && !commit.IsPublic {
		return catalog.Commit{}, fault.NotFoundf("commit %s not found", id)
	}
	return commit, err
}

// Commit gives a commit that the organisation owns or that is public.
func (r *Registry) Commit(ctx context.Context, orgID, id string) (catalog.Commit, error) {
	return readableCommit(ctx, r.catalog, orgID, id)
}

// OwnCommit gives a commit that the organisation owns.
func (r *Registry) OwnCommit(ctx context.Context, orgID, id string) (catalog.Commit, error) {
	return ownCommit(ctx, r.catalog, orgID, id)
}

// Commits lists a page of an organisation's commits, newest first, with their number in all.
func (r *Registry) Commits(ctx context.Context, orgID string, limit, offset int64) ([]catalog.Commit, int64, error) {
	return r.catalog.Commits(ctx, orgID, limit, offset)
}

// PublicCommits lists a page of all public commits, newest first, with their number in all.
func (r *Registry) PublicCommits(ctx context.Context, limit, offset int64) ([]catalog.Commit, int64, error) {
	return r.catalog.PublicCommits(ctx, limit, offset)
}

// CommitHistory gives a commit and its ancestors, as far as the organisation may see them. Ancestors stay in it after
// they were deleted: the line would break otherwise.
func (r *Registry) CommitHistory(ctx context.Context, orgID, id string) ([]catalog.Commit, error) {
	if _, err := readableCommit(ctx, r.catalog, orgID, id); err != nil {
		return nil, err
	}
	line, err := r.catalog.CommitHistory(ctx, id)
	if err != nil {
		return nil, err
	}
	for i, commit := range line {
		if commit.OrgID != orgID && !commit.IsPublic {
			return line[:i], nil
		}
	}
	return line, nil
}

// CommitChange is what UpdateCommit writes. A nil Name keeps the name.
type CommitChange struct {
	IsPublic    bool
	Name        *string
	SetText     bool    // write Description
	Description *string // nil clears it
}

// UpdateCommit changes name, description and visibility of a commit of the organisation.
func (r *Registry) UpdateCommit(ctx context.Context, orgID, id string, change CommitChange) (commit catalog.Commit, err error) {
	if change.Name != nil {
		if err := CheckCommitName(*change.Name); err != nil {
			return commit, err
		}
	}
	err = r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		if commit, err = ownCommit(ctx, tx, orgID, id); err != nil {
			return err
		}
		commit.IsPublic = change.IsPublic
		if change.Name != nil {
			commit.Name = *change.Name
		}
		if change.SetText {
			commit.Description = change.Description
		}
		return tx.UpdateCommit(ctx, commit)
	})
	return commit, err
}

// CheckCommitName refuses names that are empty, too long or not text. Any character may occur: a commit's name is a
// title, not part of a reference.
func CheckCommitName(name string) error {
	if n := utf8.RuneCountInString(name); n == 0 || n > ident.CommitName || !utf8.ValidString(name) {
		return fault.Invalidf("commit name has %d characters; 1 to %d are possible", n, ident.CommitName)
	}
	return nil
}

// Images lists a page of the images an organisation can use, newest first, with their number in all.
func (r *Registry) Images(ctx context.Context, orgID string, limit, offset int64) ([]catalog.Image, int64, error) {
	return r.catalog.Images(ctx, orgID, limit, offset)
}
