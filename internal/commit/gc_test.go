package commit_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

// chain makes commits on top of each other.
func (r *rig) chain(n int) []catalog.Commit {
	r.t.Helper()
	var commits []catalog.Commit
	var base *catalog.Commit
	for i := range n {
		commits = append(commits, r.take(base, map[int64][]byte{int64(i): page(byte(i) + 1), 100: page(byte(i) + 1)}))
		base = &commits[i]
	}
	return commits
}

// What somebody needs stays, for each way to need it, and goes when nobody does.
func TestRoots(t *testing.T) {
	t.Parallel()
	for name, need := range map[string]func(r *rig, c catalog.Commit) (release func()){
		"owner": func(r *rig, c catalog.Commit) func() { return func() { r.remove(c) } },
		"tag": func(r *rig, c catalog.Commit) func() { // who deletes a commit is refused while it has tags
			tag := catalog.PlainTag{ID: ident.New(), OrgID: c.OrgID, Name: "v1", CommitID: c.ID, CreatedAt: time.Now()}
			r.must(r.catalog.InsertPlainTag(r.t.Context(), tag))
			return func() {
				r.must(r.catalog.DeletePlainTag(r.t.Context(), tag.ID))
				r.remove(c)
			}
		},
		"VM": func(r *rig, c catalog.Commit) func() {
			v := r.vm(c)
			r.remove(c)
			return func() { r.must(r.catalog.DeleteVM(r.t.Context(), v.ID)) }
		},
		"VM's memory": func(r *rig, c catalog.Commit) func() {
			v := r.vm(c)
			v.LayerID = ""
			r.must(r.catalog.UpdateVM(r.t.Context(), v))
			r.remove(c)
			return func() { r.must(r.catalog.DeleteVM(r.t.Context(), v.ID)) }
		},
		"lease": func(r *rig, c catalog.Commit) func() {
			_, release, err := r.store.Lease(r.t.Context(), c.ID)
			r.must(err)
			r.remove(c)
			return release
		},
		"two leases": func(r *rig, c catalog.Commit) func() {
			_, one, err := r.store.Lease(r.t.Context(), c.ID)
			r.must(err)
			_, two, err := r.store.Flat(r.t.Context(), c.ID)
			r.must(err)
			r.remove(c)
			one()
			one()
			return two
		},
		"commit above": func(r *rig, c catalog.Commit) func() {
			above := r.take(&c, map[int64][]byte{9: page(9)})
			r.remove(c)
			return func() { r.remove(above) }
		},
		"VM above a commit above": func(r *rig, c catalog.Commit) func() {
			above := r.take(&c, map[int64][]byte{9: page(9)})
			v := r.vm(above)
			r.remove(c, above)
			return func() { r.must(r.catalog.DeleteVM(r.t.Context(), v.ID)) }
		},
		"template": func(r *rig, c catalog.Commit) func() {
			r.sql(`UPDATE commits SET template_key = 'boot' WHERE commit_id = ?`, c.ID)
			return func() { r.remove(c) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRigIn(t, t.TempDir(), 1<<30)
			commits := r.chain(3)
			other := r.take(&commits[0], map[int64][]byte{5: page(5)})
			r.restores(commits...)
			release := need(r, commits[2])
			r.remove(commits[0], commits[1], other)
			r.collect()
			r.has(commits[2], true, true, true)
			for _, c := range commits[:2] { // deleted, and below
				r.has(c, true, true, true)
				if _, err := r.catalog.VisibleCommit(t.Context(), c.ID); !fault.Is(err, fault.NotFound) {
					t.Errorf("a deleted commit is visible: %v", err)
				}
			}
			r.has(other, false, false, false)
			r.must(os.Remove(r.store.FlatPath(commits[0].ID)))
			r.consistent()
			release()
			r.collect()
			if left := r.files(); len(left) > 0 {
				t.Errorf("nobody needs %v", left)
			}
			if rows, err := r.catalog.Layers(t.Context()); err != nil || len(rows) > 0 {
				t.Errorf("layers in the catalogue: %v, %v", rows, err)
			}
		})
	}
}

// Organisations' commits live and go apart.
func TestCollectOrganisations(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var commits [2]catalog.Commit
	for i, org := range []catalog.Organisation{r.from, r.to} {
		m, err := r.begin(org, nil, map[int64][]byte{1: page(byte(i) + 1)})
		r.must(err)
		commits[i], err = m.write()
		r.must(err)
	}
	copied, err := r.store.Import(t.Context(), r.to, commits[0].ID)
	r.must(err)
	r.memory[copied.ID] = r.wanted(commits[0].ID)
	r.restores(commits[:]...)
	if os.Geteuid() == 0 {
		for _, c := range []catalog.Commit{commits[0], commits[1], copied} {
			org, err := r.catalog.Organisation(t.Context(), c.OrgID)
			r.must(err)
			for _, path := range []string{r.store.FlatPath(c.ID), r.store.LayerPath(c.LayerID)} {
				if gid := groupOf(t, path); gid != org.GID {
					t.Errorf("%s belongs to group %d, not %d", path, gid, org.GID)
				}
			}
		}
	}
	r.remove(commits[0])
	r.collect()
	r.has(commits[0], false, false, false)
	r.has(commits[1], true, true, true)
	r.has(copied, true, true, true)
	r.consistent()
	r.remove(commits[1], copied)
	r.collect()
	if left := r.files(); len(left) > 0 {
		t.Errorf("nobody needs %v", left)
	}
}

// While something is held nothing is collected, and nobody waits for it.
func TestHold(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	root := r.take(nil, map[int64][]byte{1: page(1)})
	r.remove(root)
	before := r.files()
	one, two := r.store.Hold(), r.store.Hold()
	for _, release := range []func(){one, two} {
		if done, err := r.store.Collect(t.Context()); done || err != nil {
			t.Errorf("collected: %v, %v", done, err)
		}
		r.unchanged("held", before)
		release()
	}
	r.collect()
	r.has(root, false, false, false)
}

// Rows go before what they refer to, whatever the clock said when they were made.
func TestCollectAfterClockSetBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	commits := r.chain(5)
	for i, c := range commits {
		at := time.Now().Add(time.Duration(-i) * time.Hour).UTC().Format("2006-01-02T15:04:05.000000000Z07:00")
		r.sql(`UPDATE commits SET created_at = ? WHERE commit_id = ?`, at, c.ID)
		r.sql(`UPDATE layers SET created_at = ? WHERE layer_id = ?`, at, c.LayerID)
	}
	r.remove(commits...)
	r.collect()
	if left := r.files(); len(left) > 0 {
		t.Errorf("nobody needs %v", left)
	}
}

// A collection that fails half way leaves nothing incomplete, and the next one goes on.
func TestCollectFails(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	commits := r.chain(3)
	r.restores(commits...)
	r.remove(commits...)
	tables := []string{"flats", "commits", "layers"}
	for _, table := range tables {
		r.sql(`CREATE TRIGGER refuse_` + table + ` BEFORE DELETE ON ` + table + ` BEGIN SELECT RAISE(ABORT, 'refused'); END`)
	}
	for _, table := range tables {
		if _, err := r.store.Collect(t.Context()); err == nil {
			t.Errorf("rows of %s cannot be removed, and all is well", table)
		}
		if table != "layers" {
			for _, c := range commits {
				if err := r.store.Verify(t.Context(), c.ID); err != nil && !fault.Is(err, fault.NotFound) {
					t.Error(err)
				}
			}
		}
		layers, err := r.catalog.Layers(t.Context())
		r.must(err)
		for _, l := range layers {
			if _, err := os.Stat(r.store.LayerPath(l.ID)); err != nil {
				t.Error(err)
			}
		}
		r.sql(`DROP TRIGGER refuse_` + table)
	}
	r.collect()
	if left := r.files(); len(left) > 0 {
		t.Errorf("nobody needs %v", left)
	}
}

// What a crash left half made goes with the first collection of the next process. What it took from a commit is told.
func TestCrash(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	commits := r.chain(2)
	r.restores(commits...)
	good := r.files()
	left := func(name string) {
		path := filepath.Join(r.dir, name)
		r.must(os.MkdirAll(filepath.Dir(path), 0o700))
		r.must(os.WriteFile(path, []byte("half"), 0o600))
	}
	half := ident.New()
	for _, name := range []string{
		"commits/" + half + ".tmp/memory.delta", "commits/" + half + ".tmp/device.state", "commits/" + half + ".state", // before the rename
		"commits/" + ident.New() + "/manifest.json",                         // before the row
		"flats/" + half + ".ram", "flats/" + commits[0].ID + ".ram.123.tmp", // of the first, and of a rebuild
		"layers/" + ident.New() + ".qcow2", "layers/" + ident.New() + ".qcow2.tmp", "layers/x", // before the row, of a merge
	} {
		left(name)
	}
	unused, err := r.store.NewLayer(ctx, r.from.ID, commits[1].LayerID, "base.ext4", testDisk, os.Geteuid(), os.Getegid())
	r.must(err) // of a VM that never was
	r.open(0)
	r.restores(commits...) // at once
	r.collect()
	r.unchanged("after the crash", good)
	if _, err := r.catalog.Layer(ctx, unused.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("a layer of nobody is in the catalogue: %v", err)
	}
	r.consistent()

	// Rows without files: told, kept from nobody's way, and gone when they are deleted.
	lost := r.take(&commits[1], map[int64][]byte{7: page(7)})
	r.must(os.RemoveAll(filepath.Join(r.dir, "commits", lost.ID)))
	if err := r.store.Verify(ctx, lost.ID); err == nil {
		t.Error("a commit without files is good")
	}
	if _, _, err := r.store.Flat(ctx, lost.ID); err == nil {
		t.Error("a commit without files has memory")
	}
	r.collect()
	r.must(r.store.Verify(ctx, commits[1].ID))
	r.remove(lost)
	r.must(os.Remove(r.store.LayerPath(lost.LayerID)))
	r.collect()
	r.unchanged("the lost one is deleted", good)
	r.consistent()

	// A flat file that is recorded and gone.
	r.must(os.Remove(r.store.FlatPath(commits[0].ID)))
	r.collect()
	r.restores(commits...)
}

// A collection in which the last use of a commit is at the same time: either it was early enough and the commit stays, or
// the commit is gone and nobody gets it.
func TestLeaseOrGone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for range 20 {
		c := r.take(nil, map[int64][]byte{1: page(1)})
		r.restores(c)
		r.remove(c)
		collected := make(chan error, 1)
		go func() {
			_, err := r.store.Collect(t.Context())
			collected <- err
		}()
		_, release, err := r.store.Flat(t.Context(), c.ID)
		r.must(<-collected)
		switch {
		case err == nil:
			r.has(c, true, true, true)
			release()
		case !fault.Is(err, fault.NotFound):
			t.Error(err)
		}
		r.collect()
		r.has(c, false, false, false)
	}
	if left := r.files(); len(left) > 0 {
		t.Errorf("nobody needs %v", slices.Compact(left))
	}
}
