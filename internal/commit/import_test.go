package commit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/memory"
)

const (
	importRAM  = 1 << 20
	importDisk = 4 << 20
)

// importer is a store with an image, two organisations and a clock that can be set.
type importer struct {
	t        *testing.T
	dir      string
	catalog  *catalog.Catalog
	store    *commit.Store
	from, to catalog.Organisation
	clock    atomic.Int64 // added to the time, in nanoseconds
}

func newImporter(t *testing.T) *importer {
	t.Helper()
	im := &importer{t: t, dir: t.TempDir()}
	var err error
	im.catalog, err = catalog.Open(t.Context(), filepath.Join(im.dir, "catalog.db"))
	im.must(err)
	t.Cleanup(func() { im.catalog.Close() })
	im.store, err = commit.Open(commit.Options{Dir: im.dir, Catalog: im.catalog, Logger: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return time.Now().Add(time.Duration(im.clock.Load())) }})
	im.must(err)
	im.must(os.Mkdir(filepath.Join(im.dir, "images"), 0o755))
	im.must(os.WriteFile(im.store.ImagePath("base.ext4"), bytes.Repeat([]byte{1}, importDisk), 0o644))
	im.from = catalog.Organisation{ID: ident.New(), Name: "from", GID: os.Getegid(), CreatedAt: time.Now()}
	im.to = catalog.Organisation{ID: ident.New(), Name: "to", GID: os.Getegid() + 1, CreatedAt: time.Now()}
	if os.Geteuid() != 0 {
		im.to.GID = im.from.GID + 1 // only a number in the catalogue
	}
	im.must(im.catalog.InsertOrganisation(t.Context(), im.from))
	im.must(im.catalog.InsertOrganisation(t.Context(), im.to))
	return im
}

func (im *importer) must(err error) {
	im.t.Helper()
	if err != nil {
		im.t.Fatal(err)
	}
}

func (im *importer) run(name string, args ...string) {
	im.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		im.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// commit makes a commit of the organisation from on top of another one (nil: on the image): the pages and the disk
// clusters with these numbers hold mark.
func (im *importer) commit(base *catalog.Commit, mark byte, pages ...int64) catalog.Commit {
	im.t.Helper()
	ctx := im.t.Context()
	var below, baseID string
	if base != nil {
		below, baseID = base.LayerID, base.ID
	}
	layer, err := im.store.NewLayer(ctx, im.from.ID, below, "base.ext4", importDisk, os.Geteuid(), os.Getegid())
	im.must(err)
	content := map[int64][]byte{}
	for _, p := range pages {
		content[p] = bytes.Repeat([]byte{mark}, memory.PageSize)
		im.run("qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P %d %d 64k", mark, p<<16), im.store.LayerPath(layer.ID))
	}
	im.must(im.catalog.FreezeLayer(ctx, layer.ID))
	im.must(im.store.FreezeFile(layer.ID, im.from.GID))
	id := ident.New()
	state := filepath.Join(im.dir, id+".state")
	im.must(os.WriteFile(state, []byte("devices of "+id), 0o600))
	draft, err := im.store.Begin(ctx, id, baseID, importRAM, im.from.GID)
	im.must(err)
	im.must(draft.TakeState(state))
	c, err := draft.Write(ctx, commit.Record{
		Commit: catalog.Commit{ID: id, OrgID: im.from.ID, Name: "c", CreatedAt: time.Now(), LayerID: layer.ID},
		Manifest: commit.Manifest{Hardware: commit.Hardware{MemoryBytes: importRAM, VCPUs: 1}, Kernel: commit.FileDigest{Name: "kernel"},
			Config: json.RawMessage(`{}`), DiskBytes: importDisk},
	}, memory.NewSnapshot(importRAM, content))
	im.must(err)
	return c
}

// memoryOf gives the whole memory of a commit.
func (im *importer) memoryOf(id string) []byte {
	im.t.Helper()
	path, release, err := im.store.Flat(im.t.Context(), id)
	im.must(err)
	defer release()
	data, err := os.ReadFile(path)
	im.must(err)
	return data
}

// diskOf gives the content of a commit's disk.
func (im *importer) diskOf(c catalog.Commit) []byte {
	im.t.Helper()
	raw := filepath.Join(im.t.TempDir(), "disk")
	im.run("qemu-img", "convert", "-O", "raw", im.store.LayerPath(c.LayerID), raw)
	data, err := os.ReadFile(raw)
	im.must(err)
	return data
}

func (im *importer) collect() {
	im.t.Helper()
	done, err := im.store.Collect(im.t.Context())
	im.must(err)
	if !done {
		im.t.Fatal("nothing was collected: somebody holds the store")
	}
}

func TestImport(t *testing.T) {
	im := newImporter(t)
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
	im := newImporter(t)
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
	im := newImporter(t)
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
