package machine

import (
	"context"

	"vers/internal/catalog"
	"vers/internal/fault"
)

// Builders are VMs that a build works in. They are shown and counted like any other; the build that a row names ends them,
// and if versd ends before it, the next versd does (adopt.go).

// BuilderRequest asks for a VM that goes on from a commit.
type BuilderRequest struct {
	BuildID  string
	CommitID string
	// Parent is the commit that the VM says it was started from, where CommitID is a step of a build: what the build is
	// based on, "" if that is no commit.
	Parent string
	Labels map[string]string
}

// StartBuilder makes a VM from a step of the organisation's builds, or from any commit that Restore takes.
func (m *Manager) StartBuilder(ctx context.Context, c Caller, req BuilderRequest) (VM, error) {
	defer m.Commits.Hold()()
	p, err := m.builderFrom(ctx, c, req)
	if err != nil {
		return VM{}, err
	}
	p.buildID, p.labels = req.BuildID, req.Labels
	return m.restore(ctx, c, p)
}

func (m *Manager) builderFrom(ctx context.Context, c Caller, req BuilderRequest) (clone, error) {
	record, err := m.Catalog.Commit(ctx, req.CommitID)
	if err != nil || record.OrgID != c.OrgID || record.TemplateKey == "" && !record.Deleted {
		return m.startable(ctx, c, req.CommitID, "restore")
	}
	// Internal, or deleted since the build found it: the build holds it.
	p := clone{commit: record, reason: "restore"}
	if req.Parent != "" {
		if p.parent, err = m.Catalog.Commit(ctx, req.Parent); fault.Is(err, fault.NotFound) {
			err = nil // deleted meanwhile: the line ends here
		}
	}
	return p, err
}

// KeepBuilder leaves the VM of a build to its owner.
func (m *Manager) KeepBuilder(ctx context.Context, c Caller, vmID string) error {
	v, err := m.find(c, vmID)
	if err != nil {
		return err
	}
	unlock, err := v.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return m.update(ctx, v, func(r *VM) { r.BuildID = "" })
}

// HoldCommit keeps a commit of the organisation, though it be deleted, until release is called. fault.NotFound if it is
// gone.
func (m *Manager) HoldCommit(ctx context.Context, c Caller, id string) (release func(), err error) {
	record, release, err := m.Commits.Lease(ctx, id)
	if err == nil && record.OrgID != c.OrgID {
		release()
		err = fault.NotFoundf("commit '%s' not found", id)
	}
	return release, err
}

// BootKey identifies what a VM of these sizes, image and kernel boots to: equal keys, equal machines. The configuration is
// given back with what was left out, and with what the image says.
func (m *Manager) BootKey(ctx context.Context, c Caller, asked catalog.VMConfig) (string, catalog.VMConfig, error) {
	config, err := m.checkConfig(asked)
	if err != nil {
		return "", config, err
	}
	config, boot, err := m.resolve(ctx, c, config, asked.FSSizeMiB != 0)
	if err != nil {
		return "", config, err
	}
	return m.templateKey(c.OrgID, config, boot), config, nil
}

// MeasureCommits brings the sizes of commits in the catalogue up to date.
func (m *Manager) MeasureCommits(ctx context.Context) error {
	_, err := m.Commits.Stored(ctx, "")
	return err
}
