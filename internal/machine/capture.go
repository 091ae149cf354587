package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/fault"
)

// taken is a captured state on its way to a commit. write or abort must be called.
type taken struct {
	m       *Manager
	draft   *commit.Draft
	record  commit.Record
	capture Capture
	began   time.Time
	storage *storage // quota held until release; nil for what is internal
}

// capture takes the state of a running or paused VM under the id of a commit to be. When it returns, the VM runs on
// (unless keepPaused), and nothing is durable yet. The caller holds op, and releases or aborts what it gets.
func (m *Manager) capture(ctx context.Context, v *vm, commitID string, keepPaused bool) (_ *taken, err error) {
	var undo undo
	defer func() { undo.run(&err) }()
	r := v.snapshot()
	t := &taken{m: m, began: time.Now()}
	deviceState := filepath.Join(m.vmDir(r.ID), "capture-"+commitID+".state")
	var spec Spec
	if err := json.Unmarshal(r.Spec, &spec); err != nil {
		return nil, fmt.Errorf("read the recorded spec of VM %s: %w", r.ID, err)
	}
	if t.draft, err = m.Commits.Begin(ctx, commitID, r.MemoryBase, spec.Hardware.MemoryBytes, spec.GID); err != nil {
		return nil, err
	}
	undo.add(t.draft.Abort)
	undo.add(func() { os.Remove(deviceState) })

	bottom, image, err := m.Commits.Chain(ctx, r.LayerID)
	if err != nil {
		return nil, err
	}
	overlay, err := m.Commits.NewLayer(ctx, r.OrgID, bottom[len(bottom)-1].ID, image, r.Config.FSSizeMiB<<20, spec.UID, spec.GID)
	if err != nil {
		return nil, err
	}
	// From here on the capture is not given up half way because a client left: the disk may already be switched.
	ctx = context.WithoutCancel(ctx)
	trace(ctx, r.ID, MomentPaused)
	t.capture, err = v.instance.Capture(ctx, CaptureRequest{
		DeviceState: deviceState,
		Overlay:     Layer{Path: m.Commits.LayerPath(overlay.ID), Format: "qcow2"},
		KeepPaused:  keepPaused,
	})
	trace(ctx, r.ID, MomentCaptured)
	if t.capture.Memory != nil {
		undo.add(t.capture.Memory.Release)
	}
	if t.capture.DiskSwitched {
		if err := m.switched(ctx, v, spec, overlay.ID); err != nil {
			return nil, err
		}
	} else {
		m.Commits.DropLayer(ctx, overlay.ID)
	}
	if err != nil {
		return nil, err
	}
	if err := t.draft.TakeState(deviceState); err != nil {
		return nil, fmt.Errorf("write commit %s: %w", commitID, err)
	}
	t.record, err = m.describe(r, spec, commitID)
	return t, err
}

// switched records that the VM writes to a new overlay and that the one below it never changes again.
func (m *Manager) switched(ctx context.Context, v *vm, spec Spec, overlay string) error {
	frozen := v.snapshot().LayerID
	spec.Disk = append(spec.Disk, Layer{Path: m.Commits.LayerPath(overlay), Format: "qcow2"})
	specJSON, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := m.update(ctx, v, func(r *VM) { r.LayerID, r.Spec = overlay, specJSON }); err != nil {
		return err
	}
	if err := m.Catalog.FreezeLayer(ctx, frozen); err != nil {
		return err
	}
	return m.Commits.FreezeFile(frozen, spec.GID)
}

// describe makes the record of a commit of VM r as it was before the capture.
func (m *Manager) describe(r VM, spec Spec, commitID string) (commit.Record, error) {
	r.Config.StartMain = false // whoever is made of this has the command already, or is asked whether he wants it
	config, err := json.Marshal(r.Config)
	if err != nil {
		return commit.Record{}, err
	}
	return commit.Record{
		Commit: Commit{
			ID: commitID, OrgID: r.OrgID, OwnerID: r.OwnerID, CreatedAt: time.Now(),
			ParentVM: r.ID, ParentCommit: r.ParentCommit, LayerID: r.LayerID,
		},
		Manifest: commit.Manifest{
			Hardware: spec.Hardware, QEMUVersion: m.Driver.Host().QEMUVersion,
			Kernel: commit.FileDigest{Name: spec.Kernel}, Initrd: commit.FileDigest{Name: spec.Initrd},
			Cmdline: spec.Cmdline, Config: config, DiskBytes: r.Config.FSSizeMiB << 20,
		},
	}, nil
}

// release returns the captured pages, once nobody reads them any more.
func (t *taken) release() {
	t.capture.Memory.Release()
	if t.storage != nil {
		t.storage.release()
	}
}

// write makes the commit durable and visible. On error nothing of it stays, but the captured pages until release.
func (t *taken) write(ctx context.Context) (Commit, error) {
	c, err := t.draft.Write(ctx, t.record, t.capture.Memory)
	if err != nil {
		t.draft.Abort()
		return c, fmt.Errorf("write commit %s: %w", t.draft.ID, err)
	}
	trace(ctx, c.ParentVM, MomentDurable)
	return c, nil
}

// manifest is the part of the manifest that is known before the files are written: enough to start children.
func (t *taken) manifest() commit.Manifest {
	m := t.record.Manifest
	m.Version, m.CommitID = commit.ManifestVersion, t.draft.ID
	return m
}

// settle does in the background what makes a commit quick to restore. It makes its flat file, merges its disk layers if
// they have become many, and syncs the flat file
// when the disk has nothing better to do: that is not needed for durability, an unsynced flat file is made again after a
// power cut.
func (m *Manager) settle(id string) {
	m.background.Go(func() {
		path, release, err := m.Commits.Flat(m.life, id)
		if err != nil {
			if m.life.Err() == nil && !fault.Is(err, fault.NotFound) {
				m.Logger.Warn("flat file not made yet", "commit", id, "error", err)
			}
			return
		}
		release()
		if err := m.Commits.Flatten(m.life, id); err != nil && m.life.Err() == nil {
			m.Logger.Warn("disk layers not merged", "commit", id, "error", err)
		}
		select {
		case <-m.life.Done():
			return
		case <-time.After(flatSyncDelay):
		}
		if _, err := os.Stat(path); err != nil {
			return // the commit was deleted
		}
		if err := m.Commits.SyncFlat(m.life, id); err != nil && !fault.Is(err, fault.NotFound) && m.life.Err() == nil {
			m.Logger.Warn("flat file not synced", "commit", id, "error", err)
		}
	})
}

// flatSyncDelay is how long a flat file stays in the page cache only, as far as we are concerned.
const flatSyncDelay = time.Minute

// abort takes back what is not written. The VM itself goes on.
func (t *taken) abort() {
	t.release()
	t.draft.Abort()
}

// Commit takes a commit of a running or paused VM. It returns when the commit is on stable storage and listed.
func (m *Manager) Commit(ctx context.Context, c Caller, vmID string, req CommitRequest) (Commit, Timing, error) {
	v, err := m.find(c, vmID)
	if err != nil {
		return Commit{}, Timing{}, err
	}
	if err := v.waitBooted(ctx, req.SkipWaitBoot); err != nil {
		return Commit{}, Timing{}, err
	}
	if v.snapshot().State == string(StateSleeping) {
		if err := m.awake(ctx, v); err != nil {
			return Commit{}, Timing{}, err
		}
	}
	id, err := m.newCommitID(ctx, req.CommitID)
	if err != nil {
		return Commit{}, Timing{}, err
	}
	began := time.Now()
	m.flush(ctx, v)
	v, unlock, err := m.lockAwake(ctx, c, vmID, req.SkipWaitBoot)
	if err != nil {
		return Commit{}, Timing{}, err
	}
	if req.Image != nil {
		if err := m.update(ctx, v, func(r *VM) { r.Config.Image = req.Image }); err != nil {
			unlock()
			return Commit{}, Timing{}, err
		}
	}
	take := m.captureLive
	if req.Step {
		take = m.capture
	}
	t, err := take(ctx, v, id, req.KeepPaused)
	unlock()
	if err != nil {
		return Commit{}, Timing{}, err
	}
	t.record.Commit.OwnerID = c.KeyID
	t.record.Commit.Name, t.record.Commit.Description = req.Name, req.Description
	if req.Name == "" {
		t.record.Commit.Name = "commit-" + id[:8]
	}
	t.record.Publish = req.Publish
	if req.Step {
		t.record.Commit.TemplateKey = catalog.StepPrefix + id
	}
	timing := Timing{Paused: t.capture.Paused}
	defer t.release()
	commit, err := t.write(context.WithoutCancel(ctx))
	timing.Durable = time.Since(began)
	if err == nil && !req.Step { // many steps are never restored
		m.settle(commit.ID)
	}
	return commit, timing, err
}

// captureLive is capture for a VM that users see: it checks the state and records that a kept pause is a pause.
func (m *Manager) captureLive(ctx context.Context, v *vm, id string, keepPaused bool) (*taken, error) {
	if r := v.snapshot(); r.State != string(StateRunning) && r.State != string(StatePaused) {
		return nil, fault.Conflictf("VM '%s' is %s: %s", r.ID, r.State, r.Reason)
	}
	t, err := m.captureWithin(ctx, v, id, keepPaused)
	if err != nil {
		return nil, err
	}
	if keepPaused {
		// Also when the client has left: the machine stands still.
		if err := m.update(context.WithoutCancel(ctx), v, func(r *VM) { r.State = string(StatePaused) }); err != nil {
			t.abort()
			return nil, err
		}
	}
	return t, nil
}
