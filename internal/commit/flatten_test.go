package commit_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"vers/internal/catalog"
	"vers/internal/disk"
	"vers/internal/fault"
	"vers/internal/ident"
)

// layered makes commits on top of each other whose disks change at random places: data, zeroes, data over zeroes.
func (r *rig) layered(random *rand.Rand, n int) []catalog.Commit {
	r.t.Helper()
	var commits []catalog.Commit
	var base *catalog.Commit
	for range n {
		m, err := r.begin(r.from, base, map[int64][]byte{1: page(byte(n))})
		r.must(err)
		args := []string{"-f", "qcow2"}
		for range 1 + random.IntN(5) {
			at, length := random.Int64N(testDisk/512-600)*512, (1+random.Int64N(600))*512
			command := fmt.Sprintf("write -P %d %d %d", 1+random.IntN(255), at, length)
			if random.IntN(3) == 0 {
				command = fmt.Sprintf("write -z %d %d", at, length)
			}
			args = append(args, "-c", command)
		}
		r.run("qemu-io", append(args, r.store.LayerPath(m.record.Commit.LayerID))...)
		c, err := m.write()
		r.must(err)
		commits = append(commits, c)
		base = &commits[len(commits)-1]
	}
	return commits
}

func (r *rig) again(c catalog.Commit) catalog.Commit {
	r.t.Helper()
	c, err := r.catalog.Commit(r.t.Context(), c.ID)
	r.must(err)
	return c
}

func (r *rig) layerCount(c catalog.Commit) int {
	r.t.Helper()
	layers, _, err := r.store.Chain(r.t.Context(), c.LayerID)
	r.must(err)
	return len(layers)
}

// Many layers become one with the same content. Whoever stands on the old ones keeps them.
func TestFlatten(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	commits := r.layered(rand.New(rand.NewPCG(3, 4)), 10)
	var disks [][]byte
	for _, c := range commits {
		disks = append(disks, r.diskOf(c))
	}
	before := r.files()
	r.must(r.store.Flatten(ctx, commits[7].ID)) // eight
	r.unchanged("few enough", before)
	top := commits[9]
	vm := r.vm(top)
	_, release, err := r.store.Lease(ctx, top.ID)
	r.must(err)
	content := map[string][]byte{}
	for _, c := range commits {
		content[c.LayerID], err = os.ReadFile(r.store.LayerPath(c.LayerID))
		r.must(err)
	}

	r.must(r.store.Flatten(ctx, top.ID))
	merged := r.again(top)
	if n := r.layerCount(merged); n != 1 || merged.LayerID == top.LayerID || merged.MemoryBase != top.MemoryBase {
		t.Errorf("%d layers, %+v", n, merged)
	}
	if !bytes.Equal(r.diskOf(merged), disks[9]) {
		t.Error("the merged disk has another content")
	}
	info, err := disk.Stat(r.store.LayerPath(merged.LayerID))
	if err != nil || info.VirtualSize != testDisk || info.Backing != "../images/base.ext4" {
		t.Errorf("%+v, %v", info, err)
	}
	if st, err := os.Stat(r.store.LayerPath(merged.LayerID)); err != nil || st.Mode() != 0o440 || groupOf(t, r.store.LayerPath(merged.LayerID)) != r.from.GID {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if l, err := r.catalog.Layer(ctx, merged.LayerID); err != nil || !l.Frozen || l.OrgID != r.from.ID || l.ImageFile != "base.ext4" {
		t.Errorf("%+v, %v", l, err)
	}
	r.must(r.store.Flatten(ctx, top.ID)) // nothing to do
	if r.again(top).LayerID != merged.LayerID {
		t.Error("one layer was merged")
	}
	r.collect()
	for i, c := range commits {
		now, err := os.ReadFile(r.store.LayerPath(c.LayerID))
		if err != nil || !bytes.Equal(now, content[c.LayerID]) {
			t.Errorf("layer of commit %d has changed: %v", i, err)
		}
		if !bytes.Equal(r.diskOf(r.again(c)), disks[i]) {
			t.Errorf("the disk of commit %d has changed", i)
		}
	}
	r.consistent()

	// The top layer goes with the last who stands on it: the VM, the lease that was taken before the merge.
	r.must(r.catalog.DeleteVM(ctx, vm.ID))
	r.collect()
	if _, err := os.Stat(r.store.LayerPath(top.LayerID)); err != nil {
		t.Errorf("leased: %v", err)
	}
	release()
	r.collect()
	if _, err := os.Stat(r.store.LayerPath(top.LayerID)); err == nil {
		t.Error("the old layer stays without anybody on it")
	}
	r.remove(commits[:9]...)
	r.collect()
	if !bytes.Equal(r.diskOf(merged), disks[9]) {
		t.Error("the merged disk needs what was below")
	}
	r.consistent()
}

// A merge that fails leaves the commit as it was.
func TestFlattenFails(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	commits := r.layered(rand.New(rand.NewPCG(5, 6)), 9)
	top := commits[8]
	want, before := r.diskOf(top), r.files()
	refused := func(what string) {
		t.Helper()
		if err := r.store.Flatten(t.Context(), top.ID); err == nil {
			t.Errorf("%s: merged", what)
		}
		r.unchanged(what, before)
		if now := r.again(top); now.LayerID != top.LayerID {
			t.Errorf("%s: it has another layer", what)
		}
	}
	r.sql(`CREATE TRIGGER refuse BEFORE UPDATE ON commits BEGIN SELECT RAISE(ABORT, 'refused'); END`)
	refused("the catalogue refuses")
	r.sql(`DROP TRIGGER refuse`)
	if rows, err := r.catalog.Layers(t.Context()); err != nil || len(rows) != 9 {
		t.Errorf("%d layers in the catalogue, %v", len(rows), err)
	}
	lower := r.store.LayerPath(commits[3].LayerID)
	r.must(os.Rename(lower, r.dir+"/away"))
	before = slices.DeleteFunc(before, func(name string) bool { return strings.Contains(name, commits[3].LayerID) })
	refused("a layer is missing")
	r.must(os.Rename(r.dir+"/away", lower))
	if err := r.store.Flatten(t.Context(), ident.New()); !fault.Is(err, fault.NotFound) {
		t.Errorf("no commit: %v", err)
	}
	r.must(r.store.Flatten(t.Context(), top.ID))
	if !bytes.Equal(r.diskOf(r.again(top)), want) {
		t.Error("the merged disk has another content")
	}
	r.collect()
	r.consistent()
}

// Merges of one commit at the same time, beside commits on top of it and collections: every disk keeps its content.
func TestFlattenBesideOthers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	commits := r.layered(rand.New(rand.NewPCG(7, 8)), 9)
	top := commits[8]
	want := r.diskOf(top)
	r.remove(commits[:8]...)
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			if err := r.store.Flatten(t.Context(), top.ID); err != nil {
				t.Error(err)
			}
		})
	}
	stop, collector := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(collector)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := r.store.Collect(t.Context()); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	var above []catalog.Commit
	for i := range 5 {
		c, release, err := r.store.Lease(t.Context(), top.ID)
		r.must(err)
		above = append(above, r.take(&c, map[int64][]byte{int64(i): page(byte(i) + 1)}))
		release()
	}
	group.Wait()
	close(stop)
	<-collector
	r.collect()
	for _, c := range append(above, r.again(top)) {
		if !bytes.Equal(r.diskOf(c), want) {
			t.Errorf("the disk of %s has another content", c.ID)
		}
	}
	if n := r.layerCount(r.again(top)); n != 1 {
		t.Errorf("%d layers", n)
	}
	r.consistent()
}
