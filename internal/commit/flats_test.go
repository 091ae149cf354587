package commit_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vers/internal/catalog"
	"vers/internal/disk"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/memory"
)

const rebuilding = "rebuilding flat file"

// inode tells a file from one that was made in its place.
func (r *rig) inode(path string) uint64 {
	r.t.Helper()
	var st unix.Stat_t
	r.must(unix.Stat(path, &st))
	return st.Ino
}

// hollow puts holes where a file has data.
func (r *rig) hollow(path string) {
	r.t.Helper()
	r.must(os.Truncate(path, 0))
	r.must(os.Truncate(path, testRAM))
}

// reboot leaves flat files as they are when the host went down: recorded by another boot and, if they were not synced,
// perhaps with holes where data was.
func (r *rig) reboot(synced bool, commits ...catalog.Commit) {
	r.t.Helper()
	for _, c := range commits {
		r.must(r.catalog.PutFlat(r.t.Context(), catalog.Flat{CommitID: c.ID, BootID: "the boot before", Synced: synced, UsedAt: time.Now()}))
		if !synced {
			r.hollow(r.store.FlatPath(c.ID))
		}
	}
}

// A flat file is made of the base's and the delta, with holes where zeroes are, and written to by nobody afterwards.
func TestFlat(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	root := r.take(nil, map[int64][]byte{1: page(1), 2: page(2), 250: page(9)})
	c := r.take(&root, map[int64][]byte{1: nil, 3: page(3)})
	r.restores(root, c, root, c)
	if n := r.log.count(rebuilding); n != 2 {
		t.Errorf("%d flat files were built, not 2", n)
	}
	st, err := os.Stat(r.store.FlatPath(c.ID))
	r.must(err)
	if st.Mode() != 0o440 || st.Size() != testRAM {
		t.Errorf("%v, %d bytes", st.Mode(), st.Size())
	}
	if n, err := disk.Allocated(r.store.FlatPath(c.ID)); err != nil || n > testRAM/4 {
		t.Errorf("%d bytes are allocated for 4 pages: %v", n, err)
	}
	// The delta of root is not needed while its flat file is good.
	r.must(os.Remove(r.store.FlatPath(c.ID)))
	delta := r.dir + "/commits/" + root.ID + "/memory.delta"
	r.must(os.Rename(delta, delta+".away"))
	r.restores(c)
	r.must(os.Rename(delta+".away", delta))
	// Without any flat file, deltas are enough.
	r.must(os.Remove(r.store.FlatPath(c.ID)))
	r.must(os.Remove(r.store.FlatPath(root.ID)))
	r.restores(c)
	if _, err := os.Stat(r.store.FlatPath(root.ID)); err == nil {
		t.Error("a flat file of the base was made that nobody asked for")
	}
	if _, _, err := r.store.Flat(t.Context(), ident.New()); !fault.Is(err, fault.NotFound) {
		t.Errorf("of no commit: %v", err)
	}
	r.consistent()
}

// After a restart of the host only flat files that were synced are good.
func TestFlatAfterRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	root := r.take(nil, map[int64][]byte{1: page(1)})
	middle := r.take(&root, map[int64][]byte{2: page(2)})
	top := r.take(&middle, map[int64][]byte{1: nil, 3: page(3)})
	r.restores(root, middle, top)

	r.must(r.store.SyncFlat(ctx, top.ID))
	if f, err := r.catalog.Flat(ctx, top.ID); err != nil || !f.Synced {
		t.Errorf("%+v, %v", f, err)
	}
	r.reboot(true, top)
	before := r.inode(r.store.FlatPath(top.ID))
	r.restores(top)
	if r.inode(r.store.FlatPath(top.ID)) != before {
		t.Error("a synced flat file was made again")
	}

	r.reboot(false, root, middle, top)
	if err := r.store.SyncFlat(ctx, top.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("what the restart left was synced: %v", err)
	}
	built := r.log.count(rebuilding)
	r.restores(top) // not from what is left of the lower ones
	r.restores(middle, root)
	if n := r.log.count(rebuilding) - built; n != 3 {
		t.Errorf("%d flat files were built, not 3", n)
	}
	// A row whose file is gone, a file whose row is gone.
	r.must(os.Remove(r.store.FlatPath(middle.ID)))
	r.must(r.catalog.RemoveFlat(ctx, top.ID))
	r.hollow(r.store.FlatPath(top.ID))
	if err := r.store.SyncFlat(ctx, middle.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("no file was synced: %v", err)
	}
	r.restores(top, middle)
	r.consistent()
}

// A flat file that somebody has is not touched, whatever happens.
func TestLeasedFlatStays(t *testing.T) {
	t.Parallel()
	r := newRigIn(t, t.TempDir(), 1)
	ctx := t.Context()
	root := r.take(nil, map[int64][]byte{1: page(1)})
	path, release, err := r.store.Flat(ctx, root.ID)
	r.must(err)
	before := r.inode(path)
	same := func(what string) {
		t.Helper()
		data, err := os.ReadFile(path)
		r.must(err)
		if r.inode(path) != before || !bytes.Equal(data, r.wanted(root.ID)) {
			t.Errorf("%s: the flat file is another one", what)
		}
	}
	r.restores(root)
	same("asked for again")
	r.take(&root, map[int64][]byte{1: page(7)})
	same("a commit on top of it")
	r.collect()
	same("it is beyond the budget")
	r.must(r.store.SyncFlat(ctx, root.ID))
	same("sync")
	r.sql(`ALTER TABLE flats RENAME TO away`)
	if _, _, err := r.store.Flat(ctx, root.ID); err == nil || fault.Is(err, fault.NotFound) {
		t.Errorf("the catalogue gives no answer: %v", err)
	}
	r.sql(`ALTER TABLE away RENAME TO flats`)
	same("the catalogue gave no answer")
	r.remove(root)
	r.collect()
	same("the commit is deleted")
	release()
	release() // once more does nothing
	r.collect()
	if _, err := os.Stat(path); err == nil {
		t.Error("it is beyond the budget, and stays")
	}
	r.consistent()
}

// Flat files beyond the budget go by recency. What a VM maps does not count, and stays.
func TestFlatBudget(t *testing.T) {
	t.Parallel()
	const pages = 50
	r := newRigIn(t, t.TempDir(), 2*(pages*memory.PageSize+64<<10))
	var commits []catalog.Commit
	for i := range 4 {
		content := map[int64][]byte{}
		for n := range int64(pages) {
			content[n] = page(byte(i) + 1)
		}
		commits = append(commits, r.take(nil, content))
		r.restores(commits[i])
		r.clock.Add(int64(2 * time.Minute))
	}
	r.restores(commits[0]) // used again
	kept := func(want ...int) {
		t.Helper()
		var have []int
		for i, c := range commits {
			_, err := os.Stat(r.store.FlatPath(c.ID))
			f, rowErr := r.catalog.Flat(t.Context(), c.ID)
			if (err == nil) != (rowErr == nil) {
				t.Errorf("file of commit %d: %v, its row: %+v, %v", i, err, f, rowErr)
			}
			if err == nil {
				have = append(have, i)
			}
		}
		if !slices.Equal(have, want) {
			t.Errorf("flat files of %v are there, not of %v", have, want)
		}
	}
	kept(0, 1, 2, 3)
	r.collect()
	kept(0, 3)
	vm := r.vm(commits[1])
	r.restores(commits[1], commits[2]) // made again
	r.collect()
	kept(0, 1, 2) // 1 does not count
	_, release, err := r.store.Flat(t.Context(), commits[3].ID)
	r.must(err)
	r.restores(commits[0])
	r.collect()
	kept(0, 1, 2, 3) // 3 is leased
	release()
	r.must(r.catalog.DeleteVM(t.Context(), vm.ID))
	r.collect()
	kept(2, 3)
	r.consistent()
}

// Many who want the same flat file at once wait for one who makes it. Who gives up waiting does not disturb the others.
func TestFlatIsBuiltOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	root := r.take(nil, map[int64][]byte{1: page(1)})
	c := r.take(&root, map[int64][]byte{2: page(2)})
	built := r.log.count(rebuilding)
	var group sync.WaitGroup
	for i := range 50 {
		group.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if i%5 == 0 {
				cancel()
			}
			path, release, err := r.store.Flat(ctx, c.ID)
			if i%5 == 0 {
				if err == nil {
					t.Error("who had given up got a file")
				}
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			defer release()
			if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, r.wanted(c.ID)) {
				t.Errorf("other memory, or %v", err)
			}
		})
	}
	group.Wait()
	if n := r.log.count(rebuilding) - built; n != 1 {
		t.Errorf("it was built %d times", n)
	}
	r.remove(c)
	r.collect() // nobody holds anything
	r.has(c, false, false, false)
}

// A flat file that cannot be made is not there, and is made when its reason is gone.
func TestFlatFails(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	root := r.take(nil, map[int64][]byte{1: page(1)})
	c := r.take(&root, map[int64][]byte{2: page(2)})
	r.restores(root)
	before := r.files()
	refused := func(what string) {
		t.Helper()
		if _, _, err := r.store.Flat(t.Context(), c.ID); err == nil || !strings.Contains(err.Error(), c.ID) {
			t.Errorf("%s: %v", what, err)
		}
		r.unchanged(what, before)
	}
	delta := r.dir + "/commits/" + c.ID + "/memory.delta"
	good, err := os.ReadFile(delta)
	r.must(err)
	bad := bytes.Clone(good)
	bad[len(bad)-100] ^= 1
	r.must(os.WriteFile(delta, bad, 0o600))
	refused("damaged delta")
	r.must(os.WriteFile(delta, good[:len(good)-1], 0o600))
	refused("truncated delta")
	r.must(os.WriteFile(delta, good, 0o600))
	r.restores(c)
	r.consistent()
}

// However deep commits stand on each other, and whatever flat files are there, each has its own bytes.
func TestDepth(t *testing.T) {
	t.Parallel()
	const depth = 60
	r := newRig(t)
	random := rand.New(rand.NewPCG(1, 2))
	commits := make([]catalog.Commit, 0, depth)
	var base *catalog.Commit
	for range depth {
		commits = append(commits, r.take(base, randomPages(random)))
		base = &commits[len(commits)-1]
	}
	for _, c := range commits {
		if err := os.Remove(r.store.FlatPath(c.ID)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	r.restores(commits[depth-1]) // 60 deltas
	for _, i := range random.Perm(depth) {
		r.restores(commits[i])
		if random.IntN(3) == 0 {
			r.reboot(false, commits[i])
		}
	}
	r.consistent()
}

// randomPages changes some pages: to data, to zeroes over what is there, to zeroes written as data.
func randomPages(random *rand.Rand) map[int64][]byte {
	pages := map[int64][]byte{}
	for range 1 + random.IntN(20) {
		start, kind := random.Int64N(testRAM/memory.PageSize), random.IntN(4)
		for n := start; n < min(start+1+random.Int64N(8), testRAM/memory.PageSize); n++ {
			switch kind {
			case 0:
				pages[n] = nil
			case 1:
				pages[n] = page(0)
			default:
				data := page(0)
				data[random.IntN(len(data))] = byte(1 + random.IntN(255))
				pages[n] = data
			}
		}
	}
	return pages
}

// Histories of random operations: whatever comes after whatever, commits have the memory they were taken with, and a last
// collection leaves nothing that is not needed.
func TestRandomHistories(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := newRigIn(t, t.TempDir(), 1<<20)
			random := rand.New(rand.NewPCG(seed, 0))
			var commits []catalog.Commit
			any := func() catalog.Commit { return commits[random.IntN(len(commits))] }
			for range 40 {
				if len(commits) == 0 {
					commits = append(commits, r.take(nil, randomPages(random)))
				}
				switch c := any(); random.IntN(8) {
				case 0:
					commits = append(commits, r.take(nil, randomPages(random)))
				case 1, 2, 3:
					commits = append(commits, r.take(&c, randomPages(random)))
				case 4:
					r.remove(c)
					commits = slices.DeleteFunc(commits, func(o catalog.Commit) bool { return o.ID == c.ID })
				case 5:
					r.collect()
				case 6:
					r.restores(c)
					r.reboot(random.IntN(2) == 0, c)
				case 7:
					r.clock.Add(int64(2 * time.Minute))
					r.restores(c)
				}
			}
			r.restores(commits...)
			r.collect()
			r.consistent()
			r.remove(commits...)
			r.collect()
			if left := r.files(); len(left) > 0 {
				t.Errorf("everything is deleted, and there are %v", left)
			}
		})
	}
}
