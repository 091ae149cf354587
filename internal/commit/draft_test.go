package commit_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/memory"
)

// A draft adds to the disk step by step; given up after any of them, nothing of it stays, and nothing is held.
func TestDraftSteps(t *testing.T) {
	t.Parallel()
	steps := []struct {
		name string
		do   func(m *making) error
		adds func(id string) []string
	}{
		{"begin", func(*making) error { return nil }, func(string) []string { return nil }},
		{"state", func(m *making) error { return m.draft.TakeState(m.state) },
			func(id string) []string {
				return []string{"commits/" + id + ".tmp", "commits/" + id + ".tmp/device.state"}
			}},
		{"flat", func(m *making) error { return m.draft.BuildFlat(m.t.Context(), m.pages) },
			func(id string) []string {
				return []string{"commits/" + id + ".tmp", "commits/" + id + ".tmp/device.state", flatFile(id)}
			}},
		{"write", func(m *making) error { _, err := m.draft.Write(m.t.Context(), m.record, m.pages); return err },
			func(id string) []string { return append(commitFiles(id), flatFile(id)) }},
	}
	for last := range steps {
		t.Run("given up after "+steps[last].name, func(t *testing.T) {
			r := newRigIn(t, t.TempDir(), 1)
			root := r.take(nil, map[int64][]byte{1: page(1), 2: page(2)})
			m, err := r.begin(r.from, &root, map[int64][]byte{2: nil, 3: page(3)})
			r.must(err)
			before := r.files()
			for _, step := range steps[:last+1] {
				r.must(step.do(m))
				if step.name == "write" {
					break // nothing is held from here on
				}
				if done, err := r.store.Collect(t.Context()); done || err != nil {
					t.Errorf("%s: collected while the draft is in the making: %v, %v", step.name, done, err)
				}
			}
			want := append(slices.Clone(before), steps[last].adds(m.draft.ID)...)
			if now := r.files(); !slices.Equal(slices.Sorted(slices.Values(now)), slices.Sorted(slices.Values(want))) {
				t.Errorf("there are %v, not %v", now, want)
			}
			m.draft.Abort()
			m.draft.Abort()
			written := steps[last].name == "write"
			c, err := r.catalog.Commit(t.Context(), m.draft.ID)
			if written != (err == nil) {
				t.Errorf("in the catalogue: %v", err)
			}
			if !written {
				r.unchanged("given up", before)
			}
			r.collect()
			if _, err := os.Stat(r.store.FlatPath(root.ID)); err == nil {
				t.Error("the base is still leased: its flat file is beyond the budget and stays")
			}
			if written {
				r.mu.Lock()
				r.memory[c.ID] = m.want
				r.mu.Unlock()
				r.restores(c)
			}
			r.consistent()
		})
	}
}

// A device state that is shared stays readable until it is released: children of a branch may load it after Write has ended.
func TestSharedState(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m, err := r.begin(r.from, nil, map[int64][]byte{1: page(1)})
	r.must(err)
	defer m.draft.Abort()
	r.must(m.draft.TakeState(m.state))
	path, release, err := m.draft.ShareState()
	r.must(err)
	_, err = m.draft.Write(t.Context(), m.record, m.pages)
	r.must(err)
	if done, err := r.store.Collect(t.Context()); done || err != nil {
		t.Errorf("collected while the state is shared: %v, %v", done, err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "devices of "+m.draft.ID {
		t.Errorf("%q, %v", data, err)
	}
	release()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("released, and still there: %v", err)
	}
	r.collect()
}

// What Write gives back is what is in the catalogue, and on disk.
func TestWritten(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	root := r.take(nil, map[int64][]byte{1: page(1)})
	c := r.take(&root, map[int64][]byte{1: nil, 7: page(7)})
	row, err := r.catalog.Commit(t.Context(), c.ID)
	r.must(err)
	written, err := os.ReadFile(filepath.Join(r.dir, "commits", c.ID, "manifest.json"))
	r.must(err)
	if !bytes.Equal(row.Manifest, written) || !bytes.Equal(c.Manifest, written) {
		t.Errorf("the manifest is %s, in the catalogue %s", written, row.Manifest)
	}
	m, err := r.store.Manifest(row)
	r.must(err)
	if m.Version != commit.ManifestVersion || m.CommitID != c.ID || m.MemoryBase != root.ID || row.MemoryBase != root.ID || !row.Durable ||
		m.Memory.DataPages != 1 || m.Memory.ZeroPages != 1 || m.Memory.Base != root.ID || m.DeviceState.Size != int64(len("devices of "+c.ID)) {
		t.Errorf("%+v, %+v", m, row)
	}
	if flat, err := r.catalog.Flat(t.Context(), c.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("there is a flat file that nobody asked for: %+v, %v", flat, err)
	}
	for name, mode := range map[string]os.FileMode{"": os.ModeDir | 0o700, "/device.state": 0o600, "/memory.delta": 0o600, "/manifest.json": 0o600} {
		if st, err := os.Stat(filepath.Join(r.dir, "commits", c.ID) + name); err != nil || st.Mode() != mode {
			t.Errorf("%q: %v, %v", name, st, err)
		}
	}
}

// A commit is listed only when all of its files have their names and are on stable storage.
func TestVisibleWhenDurable(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	root := r.take(nil, map[int64][]byte{1: page(1)})
	m, err := r.begin(r.from, &root, map[int64][]byte{2: page(2)})
	r.must(err)
	defer m.draft.Abort()
	durable := true
	for range 100 { // the kernel may write it back by itself between the two calls
		r.must(os.Remove(m.state))
		r.must(os.WriteFile(m.state, bytes.Repeat([]byte("state"), 10000), 0o600))
		var known bool
		if known, durable = onStableStorage(t, m.state); !known {
			t.Skip("the file system of temporary files does not tell what is on stable storage")
		}
		if !durable {
			break
		}
	}
	if durable {
		t.Fatal("a file is always on stable storage as soon as it is written: nothing can be seen here")
	}
	r.must(m.draft.TakeState(m.state))
	called := false
	m.record.Publish = func(ctx context.Context, tx *catalog.Tx, c catalog.Commit) error {
		called = true
		if _, err := r.catalog.Commit(ctx, c.ID); !fault.Is(err, fault.NotFound) {
			t.Errorf("it is visible before the transaction ends: %v", err)
		}
		if _, err := tx.Commit(ctx, c.ID); err != nil {
			t.Errorf("its row is not there for those that refer to it: %v", err)
		}
		paths := []string{r.store.LayerPath(c.LayerID)}
		for _, name := range commitFiles(c.ID)[1:] {
			paths = append(paths, filepath.Join(r.dir, name))
		}
		for _, path := range paths {
			if _, durable := onStableStorage(t, path); !durable {
				t.Errorf("%s is not on stable storage when the row is written", path)
			}
		}
		return nil
	}
	_, err = m.draft.Write(t.Context(), m.record, m.pages)
	r.must(err)
	if !called {
		t.Error("what depends on the commit was not written")
	}
}

// onStableStorage reports whether all of a file's data have their place on disk: blocks that were never written back have
// none yet, or are marked as unwritten.
func onStableStorage(t *testing.T, path string) (known, durable bool) {
	t.Helper()
	const (
		fiemap    = 0xc020660b // linux/fiemap.h, FS_IOC_FIEMAP
		extents   = 256
		head      = 32
		extent    = 56
		unknown   = 0x2
		delayed   = 0x4
		unwritten = 0x800
	)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, head+extents*extent)
	le := binary.LittleEndian
	le.PutUint64(buf[8:], 1<<63)
	le.PutUint32(buf[24:], extents)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fiemap, uintptr(unsafe.Pointer(&buf[0]))); errno != 0 {
		return false, false
	}
	n := int(le.Uint32(buf[20:]))
	for i := range n {
		if le.Uint32(buf[head+i*extent+40:])&(unknown|delayed|unwritten) != 0 {
			return true, false
		}
	}
	return true, n > 0
}

// Whatever fails while a commit is written, nothing of it stays and nothing is listed, and the next one succeeds.
func TestWriteFails(t *testing.T) {
	t.Parallel()
	faults := map[string]struct {
		cause func(m *making) (mend func())
		kind  fault.Kind
	}{
		"no device state": {func(m *making) func() { m.must(os.Remove(m.state)); return nil }, fault.Internal},
		"another request makes this commit": {func(m *making) func() {
			path := filepath.Join(m.dir, "commits", m.draft.ID+".tmp")
			m.must(os.Mkdir(path, 0o700))
			return func() { m.must(os.Remove(path)) } // not ours: it stays
		}, fault.Conflict},
		"this commit's folder is there": {func(m *making) func() {
			path := filepath.Join(m.dir, "commits", m.draft.ID)
			m.must(os.MkdirAll(path+"/x", 0o700))
			return func() { m.must(os.Remove(path + "/x")); m.must(os.Remove(path)) }
		}, fault.Conflict},
		"no base": {func(m *making) func() { m.must(os.Remove(m.store.FlatPath(m.base()))); return nil }, fault.Internal},
		"base of another size": {func(m *making) func() {
			m.must(os.Truncate(m.store.FlatPath(m.base()), testRAM/2))
			return func() { m.must(os.Remove(m.store.FlatPath(m.base()))) }
		}, fault.Internal},
		"no layer": {func(m *making) func() { m.record.Commit.LayerID = ident.New(); return nil }, fault.Internal},
		"a layer without row": {func(m *making) func() {
			m.sql(`DELETE FROM layers WHERE layer_id = ?`, m.record.Commit.LayerID)
			return nil
		}, fault.Conflict},
		"the catalogue refuses the commit": {func(m *making) func() {
			m.sql(`CREATE TRIGGER refuse BEFORE INSERT ON commits BEGIN SELECT RAISE(ABORT, 'refused'); END`)
			return func() { m.sql(`DROP TRIGGER refuse`) }
		}, fault.Internal},
		"the catalogue refuses the flat file": {func(m *making) func() {
			m.sql(`CREATE TRIGGER refuse BEFORE INSERT ON flats BEGIN SELECT RAISE(ABORT, 'refused'); END`)
			return func() { m.sql(`DROP TRIGGER refuse`) }
		}, fault.Internal},
		"what depends on it is refused": {func(m *making) func() {
			m.record.Publish = func(ctx context.Context, tx *catalog.Tx, c catalog.Commit) error {
				if err := tx.InsertPlainTag(ctx, catalog.PlainTag{ID: ident.New(), OrgID: c.OrgID, Name: "v1", CommitID: c.ID}); err != nil {
					return err
				}
				return fault.Conflictf("taken")
			}
			return nil
		}, fault.Conflict},
		"pages beyond the memory": {func(m *making) func() {
			m.pages = memory.NewSnapshot(testRAM, map[int64][]byte{testRAM / memory.PageSize: page(1)})
			return nil
		}, fault.Internal},
	}
	for name, f := range faults {
		for _, withFlat := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				if name == "the catalogue refuses the flat file" && !withFlat {
					return // has none
				}
				r := newRig(t)
				root := r.take(nil, map[int64][]byte{1: page(1)})
				m, err := r.begin(r.from, &root, map[int64][]byte{1: nil, 2: page(2)})
				r.must(err)
				before := r.files()
				if withFlat {
					r.must(m.draft.BuildFlat(t.Context(), m.pages))
				}
				mend := f.cause(m)
				if _, err = m.write(); !fault.Is(err, f.kind) {
					t.Errorf("%v, want kind %v", err, f.kind)
				}
				if mend != nil {
					mend()
				}
				before = slices.DeleteFunc(before, func(name string) bool { // what the fault itself removed
					_, err := os.Stat(filepath.Join(r.dir, name))
					return name == flatFile(root.ID) && err != nil
				})
				r.unchanged("refused", before)
				if _, err := r.catalog.Commit(t.Context(), m.draft.ID); !fault.Is(err, fault.NotFound) {
					t.Errorf("it is in the catalogue: %v", err)
				}
				if tags, err := r.catalog.PlainTags(t.Context(), r.from.ID); err != nil || len(tags) > 0 {
					t.Errorf("its tag is there: %v, %v", tags, err)
				}
				r.take(&root, map[int64][]byte{3: page(3)})
				r.collect()
				r.consistent()
			})
		}
	}
}

// base is the commit that the draft's memory stands on.
func (m *making) base() string {
	commits, err := m.catalog.AllCommits(m.t.Context())
	m.must(err)
	return commits[0].ID
}

// Of two that make the same commit, one does, and the other one takes nothing from it.
func TestOneOfTwo(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} { // the second one begins when the first one's folder has its name
		r := newRig(t)
		first, err := r.begin(r.from, nil, map[int64][]byte{1: page(1)})
		r.must(err)
		second, err := r.store.Begin(t.Context(), first.draft.ID, "", testRAM, r.from.GID)
		r.must(err)
		state := filepath.Join(r.dir, "second.state")
		r.must(os.WriteFile(state, []byte("second"), 0o600))
		try := func() error {
			defer second.Abort()
			if err := second.TakeState(state); err != nil {
				return err
			}
			_, err := second.Write(t.Context(), first.record, memory.NewSnapshot(testRAM, map[int64][]byte{1: page(2)}))
			return err
		}
		r.must(first.draft.TakeState(first.state))
		if late {
			first.record.Publish = func(context.Context, *catalog.Tx, catalog.Commit) error {
				if err := try(); err == nil {
					t.Error("both made the commit")
				}
				return nil
			}
		} else if err := try(); !fault.Is(err, fault.Conflict) {
			t.Errorf("both make the commit: %v", err)
		}
		c, err := first.draft.Write(t.Context(), first.record, first.pages)
		r.must(err)
		r.memory[c.ID] = first.want
		r.collect()
		r.consistent()
	}
}

func TestBegin(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	root := r.take(nil, map[int64][]byte{1: page(1)})
	before := r.files()
	if _, err := r.store.Begin(t.Context(), ident.New(), ident.New(), testRAM, r.from.GID); !fault.Is(err, fault.NotFound) {
		t.Errorf("on a commit that is not there: %v", err)
	}
	r.must(os.Truncate(filepath.Join(r.dir, "commits", root.ID, "memory.delta"), 100))
	if _, err := r.store.Begin(t.Context(), ident.New(), root.ID, testRAM, r.from.GID); err == nil || !strings.Contains(err.Error(), root.ID) {
		t.Errorf("on a damaged commit: %v", err)
	}
	r.unchanged("refused", before)
	r.collect() // nothing is held
}

// A disk that becomes full at any point of a commit leaves nothing of it, and enough room makes it.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	r := newRigIn(t, filepath.Join(dir, "store"), 0)
	r.run("mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", dir)
	t.Cleanup(func() { r.run("umount", dir) })
	r.must(os.Mkdir(r.dir, 0o755))
	r.open(0)
	r.must(os.Mkdir(filepath.Join(r.dir, "images"), 0o755))
	r.must(os.WriteFile(r.store.ImagePath("base.ext4"), nil, 0o644))
	root := r.take(nil, map[int64][]byte{1: page(1), 2: page(2)})
	r.restores(root)
	pages := map[int64][]byte{2: nil}
	for n := range int64(40) {
		pages[10+n] = page(byte(n) + 1)
	}
	filler, failures := filepath.Join(dir, "filler"), 0
	for free := 0; ; free += 4 * memory.PageSize {
		if free > 1<<20 {
			t.Fatal("there is room, and no commit")
		}
		m, err := r.begin(r.from, &root, pages)
		r.must(err)
		before := r.files()
		err = os.WriteFile(filler, make([]byte, 4<<20), 0o600)
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("the disk is not full: %v", err)
		}
		st, err := os.Stat(filler)
		r.must(err)
		r.must(os.Truncate(filler, max(0, st.Size()-int64(free))))
		err = m.draft.TakeState(m.state)
		if err == nil {
			err = m.draft.BuildFlat(t.Context(), m.pages)
		}
		if err == nil {
			_, err = m.draft.Write(t.Context(), m.record, m.pages)
		}
		if err == nil {
			r.memory[m.draft.ID] = m.want
			break
		}
		failures++
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%d bytes are free: %v", free, err)
		}
		m.draft.Abort()
		r.unchanged("full disk", before)
		r.must(os.RemoveAll(m.state))
		r.collect() // the layer
		if _, err := r.catalog.Commit(t.Context(), m.draft.ID); !fault.Is(err, fault.NotFound) {
			t.Errorf("%d bytes are free: it is in the catalogue: %v", free, err)
		}
	}
	if failures < 10 {
		t.Errorf("only %d points were tried", failures)
	}
	r.must(os.Remove(filler))
	r.collect()
	r.consistent()
}
