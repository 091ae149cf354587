package machine

import (
	"context"
	"time"

	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/fault"
)

// imported gives a commit of the caller's own organisation with the state of source: source itself, or a copy of another
// organisation's, made once. The caller holds off garbage collection until a VM stands on it; who may see source is
// decided before.
//
// A copy that takes longer than a client waits goes on: fault.Unavailable now, and the next one who asks finds it.
func (m *Manager) imported(ctx context.Context, c Caller, source Commit) (Commit, error) {
	if source.OrgID == c.OrgID {
		return source, nil
	}
	org, err := m.Catalog.Organisation(ctx, c.OrgID)
	if err != nil {
		return Commit{}, err
	}
	// First: a copy that cannot be loaded here would be made for nothing.
	manifest, err := m.Commits.Manifest(source)
	if err != nil {
		return Commit{}, err
	}
	if err := m.canLoad(source.ID, manifest); err != nil {
		return Commit{}, err
	}
	var own Commit
	done := make(chan error, 1)
	m.background.Go(func() {
		made, err, _ := m.imports.Do(commit.ImportKey(org.ID, source.ID), func() (any, error) { return m.importOnce(org, source.ID) })
		own, _ = made.(Commit)
		done <- err
	})
	limit := time.NewTimer(m.ImportWait)
	defer limit.Stop()
	select {
	case err := <-done:
		return own, err
	case <-limit.C:
		return Commit{}, fault.Unavailablef("commit '%s' is large and still being copied into organisation %s; the copy goes on: ask again in a minute",
			source.ID, org.Name)
	}
}

// importOnce makes the copy, for as long as this versd lives.
func (m *Manager) importOnce(org catalog.Organisation, sourceID string) (Commit, error) {
	defer m.Commits.Hold()()
	return m.Commits.Import(m.life, org, sourceID)
}
