package machine

import (
	"context"

	"vers/internal/commit"
)

// imported gives a commit of the caller's own organisation with the state of source: source itself, or a copy of another
// organisation's, made once. The caller holds off garbage collection until a VM stands on it; who may see source is
// decided before. A copy is finished even if the client left: the next one finds it.
func (m *Manager) imported(ctx context.Context, c Caller, source Commit) (Commit, error) {
	if source.OrgID == c.OrgID {
		return source, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), importLimit)
	defer cancel()
	org, err := m.Catalog.Organisation(ctx, c.OrgID)
	if err != nil {
		return Commit{}, err
	}
	// Hardware first: a copy that cannot be loaded here would be made for nothing.
	manifest, err := m.Commits.Manifest(source)
	if err != nil {
		return Commit{}, err
	}
	if err := m.canLoad(source.ID, manifest); err != nil {
		return Commit{}, err
	}
	own, err, _ := m.imports.Do(commit.ImportKey(org.ID, source.ID), func() (any, error) {
		return m.Commits.Import(ctx, org, source.ID)
	})
	if err != nil {
		return Commit{}, err
	}
	return own.(Commit), nil
}
