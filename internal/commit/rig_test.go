package commit_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/ident"
	"vers/internal/memory"
)

const (
	testRAM  = 1 << 20
	testDisk = 4 << 20
)

// rig is a store with an image, two organisations and a clock that can be set. It knows what the memory of each commit
// must be.
type rig struct {
	t        *testing.T
	dir      string // of the store
	catalog  *catalog.Catalog
	store    *commit.Store
	from, to catalog.Organisation
	clock    atomic.Int64 // added to the time, in nanoseconds
	log      messages

	database string
	mu       sync.Mutex
	memory   map[string][]byte // by commit id
}

func newRig(t *testing.T) *rig { return newRigIn(t, t.TempDir(), 0) }

// newRigIn has its store below dir and keeps that many bytes of flat files. The catalogue is elsewhere.
func newRigIn(t *testing.T, dir string, flatBudget int64) *rig {
	t.Helper()
	r := &rig{t: t, dir: dir, database: filepath.Join(t.TempDir(), "catalog.db"), memory: map[string][]byte{}}
	var err error
	r.catalog, err = catalog.Open(t.Context(), r.database)
	r.must(err)
	t.Cleanup(func() { r.catalog.Close() })
	r.open(flatBudget)
	r.must(os.Mkdir(filepath.Join(r.dir, "images"), 0o755))
	r.must(os.WriteFile(r.store.ImagePath("base.ext4"), bytes.Repeat([]byte{1}, testDisk), 0o644))
	r.from = catalog.Organisation{ID: ident.New(), Name: "from", GID: os.Getegid(), CreatedAt: time.Now()}
	r.to = catalog.Organisation{ID: ident.New(), Name: "to", GID: os.Getegid() + 1, CreatedAt: time.Now()}
	r.must(r.catalog.InsertOrganisation(t.Context(), r.from))
	r.must(r.catalog.InsertOrganisation(t.Context(), r.to))
	return r
}

// open is the start of a versd.
func (r *rig) open(flatBudget int64) {
	r.t.Helper()
	var err error
	r.store, err = commit.Open(commit.Options{Dir: r.dir, Catalog: r.catalog, Logger: slog.New(slog.NewTextHandler(&r.log, nil)),
		FlatBudget: flatBudget, Now: func() time.Time { return time.Now().Add(time.Duration(r.clock.Load())) }})
	r.must(err)
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) run(name string, args ...string) {
	r.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		r.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// sql changes the catalogue behind its back.
func (r *rig) sql(statement string, args ...any) {
	r.t.Helper()
	db, err := sql.Open("sqlite", r.database)
	r.must(err)
	defer db.Close()
	_, err = db.ExecContext(r.t.Context(), statement, args...)
	r.must(err)
}

// messages counts what is logged.
type messages struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (m *messages) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.text.Write(p)
}

func (m *messages) count(message string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Count(m.text.String(), message)
}

// making is a commit in the making: what a VM and its capture would give.
type making struct {
	*rig
	draft  *commit.Draft
	record commit.Record
	pages  *memory.Snapshot
	state  string // path
	want   []byte // its memory
}

// begin captures a VM of an organisation that stands on a commit (nil: on the image): these pages have changed, nil ones
// are zero now.
func (r *rig) begin(org catalog.Organisation, base *catalog.Commit, pages map[int64][]byte) (*making, error) {
	ctx, id := context.WithoutCancel(r.t.Context()), ident.New()
	var below, baseID string
	m := &making{rig: r, want: make([]byte, testRAM), state: filepath.Join(r.dir, id+".state"), pages: memory.NewSnapshot(testRAM, pages)}
	if base != nil {
		below, baseID = base.LayerID, base.ID
		copy(m.want, r.wanted(baseID))
	}
	for n, data := range pages {
		copy(m.want[n*memory.PageSize:(n+1)*memory.PageSize], make([]byte, memory.PageSize))
		copy(m.want[n*memory.PageSize:], data)
	}
	var err error
	if m.draft, err = r.store.Begin(ctx, id, baseID, testRAM, org.GID); err != nil {
		return nil, err
	}
	layer, err := r.store.NewLayer(ctx, org.ID, below, "base.ext4", testDisk, os.Geteuid(), os.Getegid())
	if err == nil {
		err = r.catalog.FreezeLayer(ctx, layer.ID)
	}
	if err == nil {
		err = r.store.FreezeFile(layer.ID, org.GID)
	}
	if err == nil {
		err = os.WriteFile(m.state, []byte("devices of "+id), 0o600)
	}
	if err != nil {
		m.draft.Abort()
		return nil, err
	}
	m.record = commit.Record{
		Commit: catalog.Commit{ID: id, OrgID: org.ID, Name: "c", CreatedAt: time.Now(), LayerID: layer.ID},
		Manifest: commit.Manifest{Hardware: commit.Hardware{MemoryBytes: testRAM, VCPUs: 1}, Kernel: commit.FileDigest{Name: "kernel"},
			Config: json.RawMessage(`{}`), DiskBytes: testDisk},
	}
	return m, nil
}

// write does the rest.
func (m *making) write() (c catalog.Commit, err error) {
	defer m.draft.Abort()
	if err := m.draft.TakeState(m.state); err != nil {
		return c, err
	}
	if c, err = m.draft.Write(context.WithoutCancel(m.t.Context()), m.record, m.pages); err != nil {
		return c, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.memory[c.ID] = m.want
	return c, nil
}

func (r *rig) wanted(id string) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.memory[id]
}

// take makes a commit of the organisation from.
func (r *rig) take(base *catalog.Commit, pages map[int64][]byte) catalog.Commit {
	r.t.Helper()
	m, err := r.begin(r.from, base, pages)
	r.must(err)
	c, err := m.write()
	r.must(err)
	return c
}

// page has data, apart from others.
func page(mark byte) []byte { return bytes.Repeat([]byte{mark}, memory.PageSize) }

// commit makes a commit of the organisation from on top of another one (nil: on the image): the pages and the disk
// clusters with these numbers hold mark.
func (r *rig) commit(base *catalog.Commit, mark byte, pages ...int64) catalog.Commit {
	r.t.Helper()
	content := map[int64][]byte{}
	for _, p := range pages {
		content[p] = page(mark)
	}
	m, err := r.begin(r.from, base, content)
	r.must(err)
	for _, p := range pages {
		r.run("qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P %d %d 64k", mark, p<<16), r.store.LayerPath(m.record.Commit.LayerID))
	}
	c, err := m.write()
	r.must(err)
	return c
}

// memoryOf gives the whole memory of a commit.
func (r *rig) memoryOf(id string) []byte {
	r.t.Helper()
	path, release, err := r.store.Flat(r.t.Context(), id)
	r.must(err)
	defer release()
	data, err := os.ReadFile(path)
	r.must(err)
	return data
}

// restores checks that a commit's memory is what it was.
func (r *rig) restores(commits ...catalog.Commit) {
	r.t.Helper()
	for _, c := range commits {
		if !bytes.Equal(r.memoryOf(c.ID), r.wanted(c.ID)) {
			r.t.Errorf("commit %s has other memory than when it was taken", c.ID)
		}
	}
}

// diskOf gives the content of a commit's disk.
func (r *rig) diskOf(c catalog.Commit) []byte {
	r.t.Helper()
	raw := filepath.Join(r.t.TempDir(), "disk")
	r.run("qemu-img", "convert", "-O", "raw", r.store.LayerPath(c.LayerID), raw)
	data, err := os.ReadFile(raw)
	r.must(err)
	return data
}

func (r *rig) collect() {
	r.t.Helper()
	done, err := r.store.Collect(r.t.Context())
	r.must(err)
	if !done {
		r.t.Fatal("nothing was collected: somebody holds the store")
	}
}

// files lists what the store has.
func (r *rig) files() (names []string) {
	r.t.Helper()
	for _, sub := range []string{"commits", "layers", "flats"} {
		r.must(filepath.WalkDir(filepath.Join(r.dir, sub), func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() || filepath.Dir(path) == filepath.Join(r.dir, sub) && path != filepath.Join(r.dir, sub) {
				name, _ := filepath.Rel(r.dir, path)
				names = append(names, name)
			}
			return err
		}))
	}
	return names
}

// unchanged checks that there are the same files as before.
func (r *rig) unchanged(what string, before []string) {
	r.t.Helper()
	if now := r.files(); !slices.Equal(now, before) {
		r.t.Errorf("%s: there are %v, there were %v", what, now, before)
	}
}

// commitFiles are the names of what a commit consists of, without its layers.
func commitFiles(id string) []string {
	return []string{"commits/" + id, "commits/" + id + "/device.state", "commits/" + id + "/manifest.json", "commits/" + id + "/memory.delta"}
}

func flatFile(id string) string { return "flats/" + id + ".ram" }

// has checks which of a commit's files there are.
func (r *rig) has(c catalog.Commit, files, layer, flat bool) {
	r.t.Helper()
	now := r.files()
	for what, want := range map[string]bool{
		"commits/" + c.ID: files, "commits/" + c.ID + "/memory.delta": files, "commits/" + c.ID + "/device.state": files,
		"layers/" + c.LayerID + ".qcow2": layer, flatFile(c.ID): flat,
	} {
		if slices.Contains(now, what) != want {
			r.t.Errorf("%s is there: %v", what, !want)
		}
	}
	if _, err := r.catalog.Commit(r.t.Context(), c.ID); (err == nil) != files {
		r.t.Errorf("row of commit %s: %v", c.ID, err)
	}
}

// consistent checks that every commit in the catalogue is complete and what it was, and that there is no file that the
// catalogue does not name.
func (r *rig) consistent() {
	r.t.Helper()
	ctx := r.t.Context()
	commits, err := r.catalog.AllCommits(ctx)
	r.must(err)
	layers, err := r.catalog.Layers(ctx)
	r.must(err)
	verifier, named := r.store.Verifier(), map[string]bool{}
	for _, c := range commits {
		for _, name := range commitFiles(c.ID) {
			named[name] = true
		}
		if err := verifier.Verify(ctx, c.ID); err != nil {
			r.t.Error(err)
		}
		r.restores(c)
	}
	for _, l := range layers {
		named["layers/"+l.ID+".qcow2"] = true
	}
	flats, err := r.catalog.Flats(ctx)
	r.must(err)
	for _, f := range flats {
		named[flatFile(f.CommitID)] = true
	}
	now := r.files()
	if want := slices.Sorted(maps.Keys(named)); !slices.Equal(slices.Sorted(slices.Values(now)), want) {
		r.t.Errorf("there are %v, the catalogue names %v", now, want)
	}
}

func (r *rig) remove(commits ...catalog.Commit) {
	r.t.Helper()
	for _, c := range commits {
		r.must(r.catalog.MarkCommitDeleted(r.t.Context(), c.ID))
	}
}

// vm adds the row of a VM that stands on a commit.
func (r *rig) vm(c catalog.Commit) catalog.VM {
	r.t.Helper()
	l, err := r.store.NewLayer(r.t.Context(), c.OrgID, c.LayerID, "base.ext4", testDisk, os.Geteuid(), os.Getegid())
	r.must(err)
	v := catalog.VM{ID: ident.New(), OrgID: c.OrgID, State: "running", CreatedAt: time.Now(), ParentCommit: c.ID,
		MemoryBase: c.ID, LayerID: l.ID, UID: int(time.Now().UnixNano())}
	r.must(r.catalog.InsertVM(r.t.Context(), v))
	return v
}

func groupOf(t *testing.T, path string) int {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return int(st.Sys().(*syscall.Stat_t).Gid)
}
