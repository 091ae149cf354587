package catalog_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

var start = time.Date(2026, 4, 14, 10, 0, 0, 123456789, time.UTC)

func open(t *testing.T, path string) *catalog.Catalog {
	t.Helper()
	c, err := catalog.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// fresh opens an empty catalogue with one organisation.
func fresh(t *testing.T) (*catalog.Catalog, string) {
	t.Helper()
	// Characters that mean something in a URI must not matter in the path.
	c := open(t, filepath.Join(t.TempDir(), "data ?#%41 dir.db"))
	org := catalog.Organisation{ID: ident.New(), Name: "acme", GID: 70000, CreatedAt: start}
	must(t, c.InsertOrganisation(t.Context(), org))
	return c, org.ID
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func get[T any](t *testing.T) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		must(t, err)
		return value
	}
}

func same(t *testing.T, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("-want +got:\n%s", diff)
	}
}

func wantKind(t *testing.T, err error, kind fault.Kind) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Fatalf("got error %v, want kind %q", err, kind)
	}
}

func TestVMs(t *testing.T) {
	c, org := fresh(t)
	ctx := t.Context()
	bare := catalog.VM{ID: ident.New(), OrgID: org, OwnerID: "k", State: "creating", CreatedAt: start, UID: 1,
		Labels: map[string]string{}}
	must(t, c.InsertLayer(ctx, catalog.Layer{ID: "l1", OrgID: org, ImageFile: "default.ext4", CreatedAt: start}))
	full := catalog.VM{ID: ident.New(), OrgID: org, OwnerID: "k", State: "dead", Reason: "the guest panicked",
		CreatedAt: start.Add(time.Second), Labels: map[string]string{"a": "b"},
		Config:       catalog.VMConfig{MemSizeMiB: 512, VCPUCount: 2, FSSizeMiB: 1024, ImageName: "default", KernelName: "default.bin"},
		ParentCommit: "c1", GrandparentVM: "v1", MemoryBase: "c0", LayerID: "l1", UID: 2,
		Process: json.RawMessage(`{"pid":1}`), Spec: json.RawMessage(`{}`), SSHKey: "key", SSHHostKey: "host key"}
	must(t, c.InsertVM(ctx, bare))
	must(t, c.InsertVM(ctx, full))
	same(t, get[catalog.VM](t)(c.VM(ctx, bare.ID)), bare)
	same(t, get[[]catalog.VM](t)(c.VMs(ctx, org)), []catalog.VM{full, bare})
	same(t, get[[]catalog.VM](t)(c.AllVMs(ctx)), []catalog.VM{bare, full})
	same(t, get[[]catalog.VM](t)(c.VMsOfCommit(ctx, "c1")), []catalog.VM{full})
	same(t, get[[]catalog.VM](t)(c.VMsOfCommit(ctx, "c0")), []catalog.VM{full})

	full.ParentCommit, full.Reason, full.Process, full.State = "", "", nil, "running"
	full.Config.FSSizeMiB = 2048
	must(t, c.UpdateVM(ctx, full))
	must(t, c.SetVMState(ctx, bare.ID, "dead", "why"))
	must(t, c.SetVMLabels(ctx, bare.ID, map[string]string{"x": "y"}))
	bare.State, bare.Reason, bare.Labels = "dead", "why", map[string]string{"x": "y"}
	same(t, get[[]catalog.VM](t)(c.VMs(ctx, org)), []catalog.VM{full, bare})

	wantKind(t, c.InsertVM(ctx, full), fault.Conflict)
	clash := full
	clash.ID = ident.New() // the same user id
	wantKind(t, c.InsertVM(ctx, clash), fault.Conflict)
	wantKind(t, c.RemoveLayer(ctx, "l1"), fault.Conflict)
	must(t, c.DeleteVM(ctx, full.ID))
	must(t, c.RemoveLayer(ctx, "l1"))
	wantKind(t, c.DeleteVM(ctx, full.ID), fault.NotFound)
	wantKind(t, c.UpdateVM(ctx, full), fault.NotFound)
	_, err := c.VM(ctx, full.ID)
	wantKind(t, err, fault.NotFound)
}

func TestCommits(t *testing.T) {
	c, org := fresh(t)
	ctx := t.Context()
	other := catalog.Organisation{ID: ident.New(), Name: "other", GID: 70001, CreatedAt: start}
	must(t, c.InsertOrganisation(ctx, other))
	text := "what for"
	template := catalog.Commit{ID: "t", OrgID: org, TemplateKey: "key", CreatedAt: start, Manifest: json.RawMessage(`{}`)}
	root := catalog.Commit{ID: "root", OrgID: org, OwnerID: "k", Name: "first", CreatedAt: start.Add(1),
		ParentVM: "v", ParentCommit: "t", MemoryBase: "t", Durable: true, Manifest: json.RawMessage(`{"a":1}`)}
	child := catalog.Commit{ID: "child", OrgID: org, OwnerID: "k", Name: "second", Description: &text, IsPublic: true,
		CreatedAt: start.Add(2), ParentCommit: "root", MemoryBase: "root", Manifest: json.RawMessage(`{}`)}
	foreign := catalog.Commit{ID: "foreign", OrgID: other.ID, CreatedAt: start, Manifest: json.RawMessage(`{}`)}
	for _, commit := range []catalog.Commit{template, root, child, foreign} {
		must(t, c.InsertCommit(ctx, commit))
	}
	same(t, get[catalog.Commit](t)(c.Commit(ctx, "child")), child)
	same(t, get[catalog.Commit](t)(c.CommitByTemplate(ctx, "key")), template)
	same(t, get[[]catalog.Commit](t)(c.CommitChildren(ctx, "root")), []catalog.Commit{child})
	same(t, get[[]catalog.Commit](t)(c.CommitHistory(ctx, "child")), []catalog.Commit{child, root})
	same(t, len(get[[]catalog.Commit](t)(c.AllCommits(ctx))), 4)

	page, total, err := c.Commits(ctx, org, 1, 0)
	must(t, err)
	same(t, page, []catalog.Commit{child})
	same(t, total, int64(2))
	page, _, err = c.Commits(ctx, org, 10, 1)
	must(t, err)
	same(t, page, []catalog.Commit{root})
	page, total, err = c.PublicCommits(ctx, 10, 0)
	must(t, err)
	same(t, page, []catalog.Commit{child})
	same(t, total, int64(1))

	child.Name, child.Description, child.IsPublic = "renamed", nil, false
	must(t, c.UpdateCommit(ctx, child))
	must(t, c.SetCommitDurable(ctx, "child", json.RawMessage(`{"b":2}`)))
	must(t, c.SetCommitDurable(ctx, "child", nil))
	child.Durable, child.Manifest = true, json.RawMessage(`{"b":2}`)
	same(t, get[catalog.Commit](t)(c.VisibleCommit(ctx, "child")), child)
	must(t, c.SetCommitBase(ctx, "child", "", ""))
	child.MemoryBase = ""
	same(t, get[catalog.Commit](t)(c.Commit(ctx, "child")), child)
	must(t, c.SetCommitBase(ctx, "child", "", "root"))

	_, err = c.VisibleCommit(ctx, "t")
	wantKind(t, err, fault.NotFound)
	wantKind(t, c.InsertCommit(ctx, catalog.Commit{ID: "t2", OrgID: org, TemplateKey: "key", CreatedAt: start}), fault.Conflict)
	wantKind(t, c.InsertCommit(ctx, child), fault.Conflict)
	must(t, c.MarkCommitDeleted(ctx, "t"))
	must(t, c.InsertCommit(ctx, catalog.Commit{ID: "t2", OrgID: org, TemplateKey: "key", CreatedAt: start}))
	must(t, c.MarkCommitDeleted(ctx, "root"))
	_, err = c.VisibleCommit(ctx, "root")
	wantKind(t, err, fault.NotFound)
	wantKind(t, c.UpdateCommit(ctx, root), fault.NotFound)
	wantKind(t, c.RemoveCommit(ctx, "root"), fault.Conflict)
	must(t, c.RemoveCommit(ctx, "child"))
	must(t, c.RemoveCommit(ctx, "root"))
	wantKind(t, c.RemoveCommit(ctx, "root"), fault.NotFound)
}

func TestLayersAndFlats(t *testing.T) {
	c, org := fresh(t)
	ctx := t.Context()
	bottom := catalog.Layer{ID: "a", OrgID: org, ImageFile: "i", CreatedAt: start, Frozen: true}
	middle := catalog.Layer{ID: "b", OrgID: org, ImageFile: "i", CreatedAt: start, ParentID: "a"}
	top := catalog.Layer{ID: "c", OrgID: org, ImageFile: "i", CreatedAt: start, ParentID: "b"}
	for _, layer := range []catalog.Layer{bottom, middle, top} {
		must(t, c.InsertLayer(ctx, layer))
	}
	must(t, c.FreezeLayer(ctx, "b"))
	middle.Frozen = true
	same(t, get[[]catalog.Layer](t)(c.LayerChain(ctx, "c")), []catalog.Layer{bottom, middle, top})
	same(t, get[[]catalog.Layer](t)(c.Layers(ctx)), []catalog.Layer{bottom, middle, top})
	same(t, get[catalog.Layer](t)(c.Layer(ctx, "b")), middle)
	wantKind(t, c.RemoveLayer(ctx, "b"), fault.Conflict)
	must(t, c.RemoveLayer(ctx, "c"))
	wantKind(t, c.FreezeLayer(ctx, "c"), fault.NotFound)

	must(t, c.InsertCommit(ctx, catalog.Commit{ID: "x", OrgID: org, CreatedAt: start}))
	must(t, c.InsertCommit(ctx, catalog.Commit{ID: "y", OrgID: org, CreatedAt: start}))
	x := catalog.Flat{CommitID: "x", BootID: "1", UsedAt: start}
	y := catalog.Flat{CommitID: "y", BootID: "1", UsedAt: start.Add(1)}
	must(t, c.PutFlat(ctx, x))
	must(t, c.PutFlat(ctx, y))
	same(t, get[[]catalog.Flat](t)(c.Flats(ctx)), []catalog.Flat{x, y})
	x.Synced, x.BootID, x.UsedAt = true, "2", start.Add(2)
	must(t, c.PutFlat(ctx, x))
	same(t, get[[]catalog.Flat](t)(c.Flats(ctx)), []catalog.Flat{y, x})
	y.UsedAt = start.Add(3)
	must(t, c.TouchFlat(ctx, y))
	same(t, get[catalog.Flat](t)(c.Flat(ctx, "y")), y)
	wantKind(t, c.RemoveCommit(ctx, "x"), fault.Conflict)
	must(t, c.RemoveFlat(ctx, "x"))
	must(t, c.RemoveFlat(ctx, "x"))
	_, err := c.Flat(ctx, "x")
	wantKind(t, err, fault.NotFound)
	wantKind(t, c.TouchFlat(ctx, x), fault.NotFound)
	wantKind(t, c.PutFlat(ctx, catalog.Flat{CommitID: "nobody", UsedAt: start}), fault.Conflict)
}

func TestImages(t *testing.T) {
	c, org := fresh(t)
	ctx := t.Context()
	public := catalog.Image{ID: "1", Name: "default", File: "f", Digest: "d", SizeMiB: 200, SourceType: "builtin",
		Config: json.RawMessage(`{}`), CreatedAt: start}
	own := catalog.Image{ID: "2", OrgID: org, Name: "app", File: "g", Digest: "e", SizeMiB: 300, SourceType: "docker",
		Config: json.RawMessage(`{"user":"app"}`), CreatedAt: start.Add(1)}
	must(t, c.InsertImage(ctx, public))
	must(t, c.InsertImage(ctx, own))
	again := public
	again.ID = "3"
	wantKind(t, c.InsertImage(ctx, again), fault.Conflict)
	same(t, get[catalog.Image](t)(c.Image(ctx, org, "default")), public)
	_, err := c.Image(ctx, "somebody", "app")
	wantKind(t, err, fault.NotFound)
	same(t, err.Error(), "rootfs image 'app' not found")
	page, total, err := c.Images(ctx, org, 10, 0)
	must(t, err)
	same(t, page, []catalog.Image{own, public})
	same(t, total, int64(2))
	public.Digest = "new"
	must(t, c.UpdateImage(ctx, public))
	again.OrgID = org // an organisation's own image hides everybody's
	must(t, c.InsertImage(ctx, again))
	same(t, get[catalog.Image](t)(c.Image(ctx, org, "default")), again)
	must(t, c.RemoveImage(ctx, "3"))
	same(t, get[[]catalog.Image](t)(c.AllImages(ctx)), []catalog.Image{public, own})
}

func TestAccounts(t *testing.T) {
	c, org := fresh(t)
	ctx := t.Context()
	same(t, get[catalog.Organisation](t)(c.OrganisationByName(ctx, "acme")).ID, org)
	same(t, len(get[[]catalog.Organisation](t)(c.Organisations(ctx))), 1)
	wantKind(t, c.InsertOrganisation(ctx, catalog.Organisation{ID: "o", Name: "acme", GID: 3, CreatedAt: start}), fault.Conflict)

	expires := start.Add(time.Hour)
	local := catalog.Key{ID: "local", OrgID: org, Name: "local", IsLocal: true, CreatedAt: start}
	remote := catalog.Key{ID: "remote", OrgID: org, Name: "ci", Hash: []byte{1, 2}, CreatedAt: start, ExpiresAt: &expires}
	must(t, c.InsertKey(ctx, local))
	must(t, c.InsertKey(ctx, remote))
	same(t, get[catalog.Key](t)(c.LocalKey(ctx)), local)
	must(t, c.RevokeKey(ctx, "remote", start.Add(1)))
	must(t, c.RevokeKey(ctx, "remote", start.Add(2)))
	revoked := start.Add(1)
	remote.RevokedAt = &revoked
	same(t, get[[]catalog.Key](t)(c.Keys(ctx, org)), []catalog.Key{local, remote})
	_, err := c.Key(ctx, "nobody")
	wantKind(t, err, fault.NotFound)

	same(t, get[map[string]string](t)(c.Env(ctx, org)), map[string]string{})
	must(t, c.PutEnv(ctx, org, map[string]string{"A": "1", "B": "2"}))
	must(t, c.PutEnv(ctx, org, map[string]string{"B": "3"}))
	same(t, get[map[string]string](t)(c.Env(ctx, org)), map[string]string{"A": "1", "B": "3"})
	must(t, c.DeleteEnv(ctx, org, "A"))
	wantKind(t, c.DeleteEnv(ctx, org, "A"), fault.NotFound)
	must(t, c.ClearEnv(ctx, org))
	same(t, get[map[string]string](t)(c.Env(ctx, org)), map[string]string{})
}

func TestRepositories(t *testing.T) {
	c, org := fresh(t)
	ctx := t.Context()
	text := "what for"
	must(t, c.InsertCommit(ctx, catalog.Commit{ID: "c1", OrgID: org, CreatedAt: start}))
	must(t, c.InsertCommit(ctx, catalog.Commit{ID: "c2", OrgID: org, CreatedAt: start}))
	repo := catalog.Repository{ID: "r", OrgID: org, Name: "my-app", Description: &text, CreatedAt: start}
	must(t, c.InsertRepository(ctx, repo))
	wantKind(t, c.InsertRepository(ctx, catalog.Repository{ID: "r2", OrgID: org, Name: "my-app", CreatedAt: start}), fault.Conflict)
	_, err := c.Repository(ctx, org, "My-App") // case-sensitive
	wantKind(t, err, fault.NotFound)

	tag := catalog.RepositoryTag{ID: "t", RepoID: "r", Name: "latest", CommitID: "c1", CreatedAt: start, UpdatedAt: start}
	must(t, c.InsertTag(ctx, tag))
	again := tag
	again.ID = "t2"
	wantKind(t, c.InsertTag(ctx, again), fault.Conflict)
	tag.CommitID, tag.Description, tag.UpdatedAt = "c2", &text, start.Add(1)
	must(t, c.UpdateTag(ctx, tag))
	same(t, get[catalog.RepositoryTag](t)(c.Tag(ctx, "r", "latest")), tag)
	same(t, get[[]catalog.RepositoryTag](t)(c.Tags(ctx, "r")), []catalog.RepositoryTag{tag})
	same(t, get[[]string](t)(c.TagsOfCommit(ctx, "c2")), []string{"my-app:latest"})
	wantKind(t, c.RemoveCommit(ctx, "c2"), fault.Conflict)

	repo.TagCount, repo.IsPublic, repo.Description = 1, true, nil
	must(t, c.UpdateRepository(ctx, repo))
	same(t, get[[]catalog.Repository](t)(c.Repositories(ctx, org)), []catalog.Repository{repo})
	must(t, c.DeleteRepository(ctx, "r"))
	_, err = c.Tag(ctx, "r", "latest")
	wantKind(t, err, fault.NotFound)
	must(t, c.RemoveCommit(ctx, "c2"))
}

func TestAnswers(t *testing.T) {
	c, _ := fresh(t)
	ctx := t.Context()
	old := catalog.Answer{KeyID: "k", Request: "POST /a 1", Status: 201, Digest: []byte{1}, Body: []byte("{}"), CreatedAt: start}
	recent := old
	recent.Request, recent.CreatedAt = "POST /a 2", start.Add(time.Hour)
	must(t, c.PutAnswer(ctx, old))
	must(t, c.PutAnswer(ctx, recent))
	wantKind(t, c.PutAnswer(ctx, old), fault.Conflict)
	must(t, c.RemoveAnswersBefore(ctx, recent.CreatedAt))
	_, err := c.Answer(ctx, "k", old.Request)
	wantKind(t, err, fault.NotFound)
	same(t, get[catalog.Answer](t)(c.Answer(ctx, "k", recent.Request)), recent)
}

func TestTransactions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	c := open(t, path)
	ctx := t.Context()
	boom := errors.New("boom")
	org := catalog.Organisation{ID: "o", Name: "acme", GID: 1, CreatedAt: start}
	err := c.InTx(ctx, func(tx *catalog.Tx) error {
		must(t, tx.InsertOrganisation(ctx, org))
		same(t, get[catalog.Organisation](t)(tx.Organisation(ctx, "o")), org) // sees its own writes
		_, err := c.Organisation(ctx, "o")                                    // nobody else does
		wantKind(t, err, fault.NotFound)
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatalf("got %v", err)
	}
	_, err = c.Organisation(ctx, "o")
	wantKind(t, err, fault.NotFound)
	must(t, c.InTx(ctx, func(tx *catalog.Tx) error { return tx.InsertOrganisation(ctx, org) }))

	// Another process sees it: opened a second time, with the schema already there.
	same(t, get[catalog.Organisation](t)(open(t, path).Organisation(ctx, "o")), org)
}

// The catalogue holds secrets: nobody but its owner may read it, nor the files beside it.
func TestFileModes(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "catalog.db")
	must(t, os.WriteFile(path, nil, 0o644))
	c := open(t, path)
	must(t, c.InsertOrganisation(t.Context(), catalog.Organisation{ID: "o", Name: "acme", GID: 1, CreatedAt: start}))
	entries := get[[]os.DirEntry](t)(os.ReadDir(dir))
	if len(entries) < 2 {
		t.Fatalf("%d files, expected a write-ahead log too", len(entries))
	}
	for _, entry := range entries {
		if mode := get[os.FileInfo](t)(entry.Info()).Mode(); mode.Perm() != 0o600 {
			t.Errorf("%s has mode %s", entry.Name(), mode)
		}
	}
}

// Writers queue; nobody gets an error because the database is busy, and no increment is lost.
func TestConcurrentWriters(t *testing.T) {
	c, org := fresh(t)
	ctx := t.Context()
	must(t, c.PutEnv(ctx, org, map[string]string{"N": "0"}))
	const writers, rounds = 8, 10
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range rounds {
				if err := increment(ctx, c, org); err != nil {
					t.Error(err)
				}
				if _, err := c.Env(ctx, org); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	same(t, get[map[string]string](t)(c.Env(ctx, org))["N"], fmt.Sprint(writers*rounds))
}

func increment(ctx context.Context, c *catalog.Catalog, org string) error {
	return c.InTx(ctx, func(tx *catalog.Tx) error {
		vars, err := tx.Env(ctx, org)
		if err != nil {
			return err
		}
		var n int
		if _, err := fmt.Sscan(vars["N"], &n); err != nil {
			return err
		}
		return tx.PutEnv(ctx, org, map[string]string{"N": fmt.Sprint(n + 1)})
	})
}
