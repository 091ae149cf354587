package registry

import (
	"context"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

// TagChange is what UpdateTag and UpdatePlainTag write.
type TagChange struct {
	CommitID    string  // "" keeps the commit
	SetText     bool    // write Description
	Description *string // nil clears it
	Expected    string  // fault.Conflict if the tag points at another commit now; "" any
}

func (c TagChange) check(tag string) error {
	if c.CommitID == "" && !c.SetText {
		return fault.Invalidf("nothing to change for tag '%s': give commit_id, description or both", tag)
	}
	return nil
}

// expect refuses a change that was made for another state of the tag.
func expect(tag, now, expected string) error {
	if expected == "" || expected == now {
		return nil
	}
	return fault.Conflictf("tag '%s' points at commit %s, not at %s as expected: somebody else has moved it; "+
		"look at it again before you change it", tag, now, expected)
}

// CreateTag points a new tag at a commit of the organisation.
func (r *Registry) CreateTag(ctx context.Context, by catalog.Key, ref Reference, commitID string, description *string) (tag catalog.RepositoryTag, err error) {
	if err := CheckTagName(ref.Tag); err != nil {
		return tag, err
	}
	err = r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		repo, err := readRepository(ctx, tx, by.OrgID, ref.Repository)
		if err != nil {
			return err
		}
		if _, err := ownCommit(ctx, tx, by.OrgID, commitID); err != nil {
			return err
		}
		tag, err = r.insertTag(ctx, tx, by, repo, catalog.RepositoryTag{Name: ref.Tag, CommitID: commitID, Description: description})
		if fault.Is(err, fault.Conflict) {
			err = fault.Conflictf("tag already exists: '%s'; move it with 'vers repo tag update %s %s --commit <commit>'",
				ref, ref.Repository, ref.Tag)
		}
		return err
	})
	return tag, err
}

// insertTag adds a tag and begins its history. A name the repository has is fault.Conflict.
func (r *Registry) insertTag(ctx context.Context, tx *catalog.Tx, by catalog.Key, repo catalog.Repository, tag catalog.RepositoryTag) (catalog.RepositoryTag, error) {
	tag.ID, tag.RepoID, tag.CreatedAt = ident.New(), repo.ID, r.now()
	tag.UpdatedAt = tag.CreatedAt
	if err := tx.InsertTag(ctx, tag); err != nil {
		return tag, err
	}
	return tag, note(ctx, tx, by, tag, catalog.TagEvent{At: tag.CreatedAt, Action: ActionCreate, ToCommit: tag.CommitID})
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
// nothing between. No VM is touched. A protected tag is moved by its keys only (fault.Forbidden).
func (r *Registry) UpdateTag(ctx context.Context, by catalog.Key, ref Reference, change TagChange) error {
	if err := change.check(ref.String()); err != nil {
		return err
	}
	return r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		_, tag, err := readTag(ctx, tx, by.OrgID, ref)
		if err != nil {
			return err
		}
		if change.CommitID != "" {
			if err := r.mayMove(ctx, tx, by, ref, tag); err != nil {
				return err
			}
			if _, err := ownCommit(ctx, tx, by.OrgID, change.CommitID); err != nil {
				return err
			}
		}
		if err := expect(ref.String(), tag.CommitID, change.Expected); err != nil {
			return err
		}
		if change.SetText {
			tag.Description = change.Description
		}
		return r.moveTag(ctx, tx, by, tag, change.CommitID, ActionMove)
	})
}

// moveTag writes a tag and, if it gets another commit, its history.
func (r *Registry) moveTag(ctx context.Context, tx *catalog.Tx, by catalog.Key, tag catalog.RepositoryTag, to, action string) error {
	from := tag.CommitID
	if to != "" {
		tag.CommitID = to
	}
	tag.UpdatedAt = r.now()
	if err := tx.UpdateTag(ctx, tag); err != nil || tag.CommitID == from {
		return err
	}
	return note(ctx, tx, by, tag, catalog.TagEvent{At: tag.UpdatedAt, Action: action, FromCommit: from, ToCommit: to})
}

// DeleteTag removes a tag, unless it points at another commit than expected ("": any). The commit stays, and so does the
// tag's history.
func (r *Registry) DeleteTag(ctx context.Context, by catalog.Key, ref Reference, expected string) error {
	return r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		_, tag, err := readTag(ctx, tx, by.OrgID, ref)
		if err != nil {
			return err
		}
		if err := r.mayMove(ctx, tx, by, ref, tag); err != nil {
			return err
		}
		if err := expect(ref.String(), tag.CommitID, expected); err != nil {
			return err
		}
		if err := tx.DeleteTag(ctx, tag.ID); err != nil {
			return err
		}
		return note(ctx, tx, by, tag, catalog.TagEvent{At: r.now(), Action: ActionDelete, FromCommit: tag.CommitID})
	})
}

// note adds an entry to a tag's history.
func note(ctx context.Context, tx *catalog.Tx, by catalog.Key, tag catalog.RepositoryTag, e catalog.TagEvent) error {
	e.RepoID, e.TagName, e.Description, e.KeyID, e.KeyName = tag.RepoID, tag.Name, tag.Description, by.ID, by.Name
	return tx.InsertTagEvent(ctx, e)
}

// live reports whether a key can still be used.
func live(key catalog.Key, now time.Time) bool {
	return key.RevokedAt == nil && (key.ExpiresAt == nil || now.Before(*key.ExpiresAt))
}
