package commit_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/fault"
	"vers/internal/ident"
)

func TestImport(t *testing.T) {
	t.Parallel()
	im := newRig(t)
	ctx := t.Context()
	root := im.commit(nil, 2, 3, 4, 5)
	middle := im.commit(&root, 3, 4, 9)
	source := im.commit(&middle, 0, 5) // zeroes over data
	wantMemory, wantDisk := im.memoryOf(source.ID), im.diskOf(source)

	release := im.store.Hold()
	copied, err := im.store.Import(ctx, im.to, source.ID)
	im.must(err)
	again, err := im.store.Import(ctx, im.to, source.ID)
	im.must(err)
	release()
	if again.ID != copied.ID {
		t.Errorf("the second import made %s, the first %s", again.ID, copied.ID)
	}
	if copied.OrgID != im.to.ID || copied.MemoryBase != "" || !copied.Durable || copied.ParentCommit != "" || copied.ParentVM != "" {
		t.Errorf("%+v", copied)
	}
	if _, err := im.catalog.VisibleCommit(ctx, copied.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("users see the import: %v", err)
	}
	layers, image, err := im.store.Chain(ctx, copied.LayerID)
	im.must(err)
	if len(layers) != 1 || image != "base.ext4" || layers[0].OrgID != im.to.ID || !layers[0].Frozen {
		t.Errorf("%+v on %s", layers, image)
	}

	// The source goes, with all its files. The copy is whole, from its delta alone too.
	for _, c := range []catalog.Commit{source, middle, root} {
		im.must(im.catalog.MarkCommitDeleted(ctx, c.ID))
	}
	im.collect()
	for _, sub := range []string{"commits", "layers"} {
		if entries, err := os.ReadDir(filepath.Join(im.dir, sub)); err != nil || len(entries) != 1 {
			t.Errorf("%s holds %v, want the copy only: %v", sub, entries, err)
		}
	}
	im.must(im.store.Verify(ctx, copied.ID))
	if !bytes.Equal(im.memoryOf(copied.ID), wantMemory) {
		t.Error("the copy's memory differs")
	}
	im.must(im.catalog.RemoveFlat(ctx, copied.ID))
	im.must(os.Remove(im.store.FlatPath(copied.ID)))
	if !bytes.Equal(im.memoryOf(copied.ID), wantMemory) {
		t.Error("the copy's memory, made again from its delta, differs")
	}
	if !bytes.Equal(im.diskOf(copied), wantDisk) {
		t.Error("the copy's disk differs")
	}
}

// An import goes when it was not used for a while and nothing stands on it, not before.
func TestImportsAreCollected(t *testing.T) {
	t.Parallel()
	im := newRig(t)
	ctx := t.Context()
	source := im.commit(nil, 2, 3)
	copied, err := im.store.Import(ctx, im.to, source.ID)
	im.must(err)
	gone := func() bool {
		t.Helper()
		im.collect()
		_, err := os.Stat(im.store.DeviceState(copied.ID))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return err != nil
	}
	im.clock.Store(int64(50 * time.Minute))
	im.memoryOf(copied.ID) // a use
	im.clock.Store(int64(100 * time.Minute))
	if gone() {
		t.Fatal("it went 50 minutes after its last use")
	}
	im.clock.Store(int64(3 * time.Hour))
	above := catalog.Commit{ID: ident.New(), OrgID: im.to.ID, Name: "fork", CreatedAt: time.Now(), MemoryBase: copied.ID, LayerID: copied.LayerID}
	im.must(im.catalog.InsertCommit(ctx, above))
	if gone() {
		t.Fatal("it went while a commit stands on it")
	}
	im.must(im.catalog.MarkCommitDeleted(ctx, above.ID))
	_, release, err := im.store.Lease(ctx, copied.ID)
	im.must(err)
	if gone() {
		t.Fatal("it went while it was leased")
	}
	release()
	if !gone() {
		t.Fatal("it stays for ever")
	}
	if _, err := im.catalog.CommitByTemplate(ctx, commit.ImportKey(im.to.ID, source.ID)); !fault.Is(err, fault.NotFound) {
		t.Errorf("its row stays: %v", err)
	}
	im.must(im.store.Verify(ctx, source.ID)) // the source is nobody's but its owner's
}

// Whatever fails, nothing of an import stays.
func TestFailedImportLeavesNothing(t *testing.T) {
	t.Parallel()
	im := newRig(t)
	source := im.commit(nil, 2, 3)
	im.memoryOf(source.ID)
	list := func() (names []string) {
		for _, sub := range []string{"commits", "layers", "flats"} {
			entries, err := os.ReadDir(filepath.Join(im.dir, sub))
			im.must(err)
			for _, e := range entries {
				names = append(names, sub+"/"+e.Name())
			}
		}
		return names
	}
	before := list()
	refused := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s: the import succeeded", what)
		}
		if after := list(); len(after) != len(before) {
			t.Errorf("%s: %v are there, %v were before", what, after, before)
		}
	}
	_, err := im.store.Import(t.Context(), im.to, ident.New())
	refused("unknown commit", err)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = im.store.Import(ended, im.to, source.ID)
	refused("cancelled", err)
	stranger := catalog.Organisation{ID: ident.New(), GID: im.to.GID}
	_, err = im.store.Import(t.Context(), stranger, source.ID)
	refused("the rows cannot be written", err)
	im.must(os.Chmod(im.store.DeviceState(source.ID), 0o600))
	im.must(os.WriteFile(im.store.DeviceState(source.ID), []byte("damaged"), 0o600))
	_, err = im.store.Import(t.Context(), im.to, source.ID)
	refused("damaged source", err)
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("damaged")) {
		t.Errorf("%v", err)
	}
}
