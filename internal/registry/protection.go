package registry

import (
	"context"
	"slices"
	"strings"

	"vers/internal/catalog"
	"vers/internal/fault"
)

// TagKeys lists the keys that alone may move or delete a tag; none: it is not protected.
func (r *Registry) TagKeys(ctx context.Context, orgID string, ref Reference) ([]catalog.Key, error) {
	_, tag, err := readTag(ctx, r.catalog, orgID, ref)
	if err != nil {
		return nil, err
	}
	return r.catalog.TagKeys(ctx, tag.ID)
}

// ProtectTag lets only the named keys (ids or names) move, roll back or delete a tag, and change its protection; no
// names end the protection. When none of a tag's keys can be used any more, every key may change the protection, but
// not the tag. It gives the keys in force.
func (r *Registry) ProtectTag(ctx context.Context, by catalog.Key, ref Reference, names []string) (keys []catalog.Key, err error) {
	err = r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		_, tag, err := readTag(ctx, tx, by.OrgID, ref)
		if err != nil {
			return err
		}
		present, err := tx.TagKeys(ctx, tag.ID)
		if err != nil {
			return err
		}
		usable := slices.ContainsFunc(present, func(k catalog.Key) bool { return live(k, r.now()) })
		if usable && !contains(present, by) {
			return protected(ref, present, "change its protection")
		}
		ids, err := r.findKeys(ctx, tx, by.OrgID, names)
		if err != nil {
			return err
		}
		if err := tx.SetTagKeys(ctx, tag.ID, ids); err != nil {
			return err
		}
		keys, err = tx.TagKeys(ctx, tag.ID)
		return err
	})
	return keys, err
}

// findKeys gives the ids of usable keys of an organisation by their ids or names, each once.
func (r *Registry) findKeys(ctx context.Context, tx *catalog.Tx, orgID string, names []string) ([]string, error) {
	all, err := tx.Keys(ctx, orgID)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, name := range names {
		var found []string
		for _, key := range all {
			if (key.ID == strings.ToLower(name) || key.Name == name) && live(key, r.now()) {
				found = append(found, key.ID)
			}
		}
		switch {
		case len(found) == 0:
			return nil, fault.NotFoundf("API key %q not found in this organisation, or it was revoked or has expired", name)
		case len(found) > 1:
			return nil, fault.Invalidf("%d API keys are named %q; give the id of the one you mean: %s", len(found), name, strings.Join(found, ", "))
		case !slices.Contains(ids, found[0]):
			ids = append(ids, found[0])
		}
	}
	return ids, nil
}

// mayMove refuses keys that a protected tag does not name.
func (r *Registry) mayMove(ctx context.Context, tx *catalog.Tx, by catalog.Key, ref Reference, tag catalog.RepositoryTag) error {
	if !tag.Protected {
		return nil
	}
	keys, err := tx.TagKeys(ctx, tag.ID)
	if err != nil || contains(keys, by) {
		return err
	}
	if !slices.ContainsFunc(keys, func(k catalog.Key) bool { return live(k, r.now()) }) {
		return fault.Forbiddenf("tag '%s' is protected, and none of the API keys that may move or delete it can be used any more: "+
			"change its protection first", ref)
	}
	return protected(ref, keys, "move or delete it")
}

func contains(keys []catalog.Key, key catalog.Key) bool {
	return slices.ContainsFunc(keys, func(k catalog.Key) bool { return k.ID == key.ID })
}

func protected(ref Reference, keys []catalog.Key, what string) error {
	names := make([]string, len(keys))
	for i, key := range keys {
		names[i] = "'" + key.Name + "' (" + key.ID + ")"
	}
	return fault.Forbiddenf("tag '%s' is protected: only these API keys may %s: %s", ref, what, strings.Join(names, ", "))
}
