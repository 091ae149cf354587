package registry

import (
	"context"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

// CreatePlainTag names a commit of the organisation, outside of any repository.
func (r *Registry) CreatePlainTag(ctx context.Context, orgID, name, commitID string, description *string) (catalog.PlainTag, error) {
	now := r.now()
	tag := catalog.PlainTag{ID: ident.New(), OrgID: orgID, Name: name, CommitID: commitID, Description: description, CreatedAt: now, UpdatedAt: now}
	if err := checkPlainTag(name); err != nil {
		return tag, err
	}
	err := r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		if _, err := ownCommit(ctx, tx, orgID, commitID); err != nil {
			return err
		}
		err := tx.InsertPlainTag(ctx, tag)
		if fault.Is(err, fault.Conflict) {
			err = fault.Conflictf("tag already exists: '%s'; move it with 'vers tag update %s --commit <commit>'", name, name)
		}
		return err
	})
	return tag, err
}

func checkPlainTag(name string) error {
	if !ident.ValidName(name, ident.PlainTagName) {
		return fault.Invalidf("tag name %.200q is not valid: use 1 to %d letters, digits, '-', '_' or '.'", name, ident.PlainTagName)
	}
	return nil
}

// PlainTag gives one plain tag of an organisation.
func (r *Registry) PlainTag(ctx context.Context, orgID, name string) (catalog.PlainTag, error) {
	if err := checkPlainTag(name); err != nil {
		return catalog.PlainTag{}, err
	}
	return r.catalog.PlainTag(ctx, orgID, name)
}

// PlainTags lists the plain tags of an organisation, newest first.
func (r *Registry) PlainTags(ctx context.Context, orgID string) ([]catalog.PlainTag, error) {
	return r.catalog.PlainTags(ctx, orgID)
}

// UpdatePlainTag moves a plain tag, or changes its description, or both at once.
func (r *Registry) UpdatePlainTag(ctx context.Context, orgID, name string, change TagChange) error {
	if err := checkPlainTag(name); err != nil {
		return err
	}
	if err := change.check(name); err != nil {
		return err
	}
	return r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		tag, err := tx.PlainTag(ctx, orgID, name)
		if err != nil {
			return err
		}
		if change.CommitID != "" {
			if _, err := ownCommit(ctx, tx, orgID, change.CommitID); err != nil {
				return err
			}
		}
		if err := expect(name, tag.CommitID, change.Expected); err != nil {
			return err
		}
		if change.CommitID != "" {
			tag.CommitID = change.CommitID
		}
		if change.SetText {
			tag.Description = change.Description
		}
		tag.UpdatedAt = r.now()
		return tx.UpdatePlainTag(ctx, tag)
	})
}

// DeletePlainTag removes a plain tag. The commit stays.
func (r *Registry) DeletePlainTag(ctx context.Context, orgID, name string) error {
	if err := checkPlainTag(name); err != nil {
		return err
	}
	return r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		tag, err := tx.PlainTag(ctx, orgID, name)
		if err != nil {
			return err
		}
		return tx.DeletePlainTag(ctx, tag.ID)
	})
}
