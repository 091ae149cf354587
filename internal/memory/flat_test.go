package memory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
)

// model is guest memory kept in a map, what files are compared with.
type model map[int64][]byte

// randomSnapshot changes some pages of the model: data, zeroes over data, zeroes over nothing.
func (m model) randomSnapshot(r *rand.Rand, pages int64) *Snapshot {
	changed := map[int64][]byte{}
	for range 30 {
		page, count, zero := r.Int64N(pages), 1+r.Int64N(40), r.IntN(3) == 0
		seed := r.Int64N(1 << 20)
		for p := page; p < min(page+count, pages); p++ {
			if changed[p] = make([]byte, PageSize); !zero {
				pattern(changed[p], p, seed)
			}
		}
	}
	for p, data := range changed {
		m[p] = data
	}
	return NewSnapshot(pages*PageSize, changed)
}

func (m model) compare(t *testing.T, path string, pages int64) {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	if int64(len(data)) != pages*PageSize {
		t.Fatalf("%s has %d bytes", path, len(data))
	}
	for p := range pages {
		want := m[p]
		if want == nil {
			want = zeroPage[:]
		}
		if !bytes.Equal(data[p*PageSize:(p+1)*PageSize], want) {
			t.Fatalf("%s: page %d is wrong", filepath.Base(path), p)
		}
	}
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Blocks * 512
}

func onlyFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range entries {
		if e.Name() != "lost+found" {
			names = append(names, e.Name())
		}
	}
	if strings.Join(names, " ") != strings.Join(want, " ") {
		t.Errorf("files %q, want %q", names, want)
	}
}

func newFlat(t testing.TB, path, base string, size int64, s *Snapshot) {
	t.Helper()
	f, err := NewFlat(context.Background(), path, base, size)
	must(t, err)
	defer f.Abort()
	must(t, f.Apply(s))
	must(t, f.Finish())
}

// generations makes flats and deltas, each on top of the one before, in every way there is, and compares them all.
func generations(t *testing.T, dir string, seed uint64) {
	const pages = 2000
	r := rand.New(rand.NewPCG(seed, 1))
	m, base := model{}, ""
	var deltas, flats, models = []string{}, []string{}, []model{}
	for i := range 6 {
		s := m.randomSnapshot(r, pages)
		name := filepath.Join(dir, string(rune('a'+i)))
		newFlat(t, name+".ram", base, pages*PageSize, s)
		info, err := WriteDelta(name+".delta", s, base)
		must(t, err)
		if verified, err := VerifyDelta(name + ".delta"); err != nil || verified != info {
			t.Errorf("delta %d: %+v, %v, want %+v", i, verified, err, info)
		}
		if st, err := os.Stat(name + ".delta"); err != nil || st.Size() != info.FileBytes {
			t.Errorf("delta %d: %v, %v", i, st.Size(), err)
		}
		base = name + ".ram"
		deltas, flats = append(deltas, name+".delta"), append(flats, base)
		copied := model{}
		for p, data := range m {
			copied[p] = data
		}
		models = append(models, copied)
	}
	for i := range flats {
		models[i].compare(t, flats[i], pages) // later ones have changed nothing
		rebuilt := filepath.Join(dir, "rebuilt.ram")
		must(t, rebuild(context.Background(), rebuilt, pages*PageSize, deltas[:i+1]))
		models[i].compare(t, rebuilt, pages)
		must(t, os.Remove(rebuilt))
		if i == 0 {
			continue
		}
		f, err := NewFlat(context.Background(), rebuilt, flats[i-1], pages*PageSize)
		must(t, err)
		must(t, ApplyDelta(context.Background(), f, deltas[i]))
		must(t, f.Sync())
		must(t, f.Finish())
		models[i].compare(t, rebuilt, pages)
		must(t, os.Remove(rebuilt))
	}
	// The file systems' own tools find the same amount of data: holes are really holes.
	var data int64
	for _, page := range m {
		if !isZero(page) {
			data += PageSize
		}
	}
	if got := allocated(t, base); got > data+data/10+1<<20 {
		t.Errorf("%d bytes of data take %d bytes", data, got)
	}
}

func TestGenerations(t *testing.T) {
	for seed := range uint64(5) {
		generations(t, t.TempDir(), seed)
	}
}

// mount makes a file system of some MiB in a file, by the given mkfs command, or a tmpfs if there is none.
func mount(t *testing.T, mib int64, mkfs ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	args := []string{"-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", mib), "tmpfs", dir}
	if len(mkfs) > 0 {
		if _, err := exec.LookPath(mkfs[0]); err != nil {
			t.Skipf("%s is not installed", mkfs[0])
		}
		image := filepath.Join(t.TempDir(), "image")
		must(t, os.WriteFile(image, nil, 0o600))
		must(t, os.Truncate(image, mib<<20))
		if out, err := exec.Command(mkfs[0], append(mkfs[1:], image)...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", mkfs[0], err, out)
		}
		args = []string{"-o", "loop", image, dir}
	}
	if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
		t.Skipf("mount %v: %v: %s", args, err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v: %s", dir, err, out)
		}
	})
	return dir
}

// Where blocks can be shared, a flat file costs what it differs by.
func TestGenerationsOnReflinkFileSystems(t *testing.T) {
	for _, mkfs := range [][]string{{"mkfs.xfs", "-q", "-m", "reflink=1"}, {"mkfs.btrfs", "-q"}} {
		t.Run(mkfs[0], func(t *testing.T) {
			dir := mount(t, 400, mkfs...)
			generations(t, dir, 1)
			base := flatFile(t, dir, "large.ram", 20000, span{0, 15000})
			var before, after unix.Statfs_t
			must(t, exec.Command("sync", "-f", dir).Run())
			must(t, unix.Statfs(dir, &before))
			page := bytes.Repeat([]byte{9}, PageSize)
			newFlat(t, filepath.Join(dir, "clone.ram"), base, 20000*PageSize, NewSnapshot(20000*PageSize, map[int64][]byte{5: page, 7: nil}))
			must(t, exec.Command("sync", "-f", dir).Run())
			must(t, unix.Statfs(dir, &after))
			if used := int64(before.Bfree-after.Bfree) * before.Bsize; used > 4<<20 {
				t.Errorf("a clone that differs in two pages takes %d bytes", used)
			}
			got, err := os.ReadFile(filepath.Join(dir, "clone.ram"))
			must(t, err)
			if !bytes.Equal(got[5*PageSize:6*PageSize], page) || !isZero(got[7*PageSize:8*PageSize]) {
				t.Error("the clone has not what was applied")
			}
		})
	}
}

func TestFlatRules(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	base := flatFile(t, dir, "base.ram", 100, span{0, 50})
	path := filepath.Join(dir, "new.ram")

	f, err := NewFlat(ctx, path, base, 100*PageSize)
	must(t, err)
	if f.Path() == path || !IsTemporary(filepath.Base(f.Path())) {
		t.Errorf("before Finish the file is at %s", f.Path())
	}
	if st, err := os.Stat(f.Path()); err != nil || st.Size() != 100*PageSize {
		t.Errorf("before Finish: %v, %v", st, err)
	}
	if err := f.Apply(NewSnapshot(50*PageSize, nil)); err == nil {
		t.Error("a snapshot of another size was applied")
	}
	if err := f.Apply(NewSnapshot(100*PageSize, map[int64][]byte{100: nil})); err == nil {
		t.Error("a page beyond the end was applied")
	}
	must(t, f.Finish())
	f.Abort()
	if f.Path() != path {
		t.Errorf("after Finish the file is at %s", f.Path())
	}
	for what, err := range map[string]error{
		"apply": f.Apply(NewSnapshot(100*PageSize, nil)), "sync": f.Sync(), "finish": f.Finish(), "delta": ApplyDelta(ctx, f, base),
	} {
		if err == nil {
			t.Errorf("%s after Finish succeeded", what)
		}
	}
	onlyFiles(t, dir, "base.ram", "new.ram")

	if _, err := NewFlat(ctx, path, "", 100*PageSize); !fault.Is(err, fault.Conflict) {
		t.Errorf("over an existing file: %v", err)
	}
	if _, err := NewFlat(ctx, path+"2", base, 99*PageSize); err == nil || !strings.Contains(err.Error(), base) {
		t.Errorf("a base of another size: %v", err)
	}
	if _, err := NewFlat(ctx, path+"2", base+"no", 100*PageSize); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a base that is none: %v", err)
	}
	if _, err := NewFlat(ctx, path+"2", "", 100); err == nil {
		t.Error("a size of half a page was accepted")
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := NewFlat(cancelled, path+"2", base, 100*PageSize); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	} else if err == nil {
		t.Log("this file system clones, nothing to cancel")
	}

	// Somebody takes the name while the file is made: the other one stays, ours goes.
	late, err := NewFlat(ctx, filepath.Join(dir, "late.ram"), "", PageSize)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "late.ram"), []byte("first"), 0o600))
	if err := late.Finish(); !fault.Is(err, fault.Conflict) {
		t.Errorf("finish over an existing file: %v", err)
	}
	late.Abort()
	late.Abort()
	if got, _ := os.ReadFile(filepath.Join(dir, "late.ram")); string(got) != "first" {
		t.Error("a published file was changed")
	}
	onlyFiles(t, dir, "base.ram", "late.ram", "new.ram")
}

// A full disk is an error of its own kind that names the file and what it needs, and leaves nothing behind.
func TestFullDisk(t *testing.T) {
	const pages = 8 << 20 / PageSize
	source := t.TempDir()
	base := flatFile(t, source, "base.ram", pages, span{0, pages})
	changed := map[int64][]byte{}
	for p := range int64(pages) {
		changed[p] = make([]byte, PageSize)
		pattern(changed[p], p, 1)
	}
	s := NewSnapshot(pages*PageSize, changed)
	delta := filepath.Join(source, "delta")
	_, err := WriteDelta(delta, s, "")
	must(t, err)
	for name, mkfs := range map[string][]string{"tmpfs": nil, "ext4": {"mke2fs", "-q", "-t", "ext4", "-J", "size=1"}} {
		t.Run(name, func(t *testing.T) {
			dir := mount(t, 5, mkfs...)
			path := filepath.Join(dir, "x")
			full := func(what string, err error) {
				t.Helper()
				if !fault.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "bytes are needed") {
					t.Errorf("%s: %v", what, err)
				}
				onlyFiles(t, dir)
			}
			ctx := context.Background()
			_, err := NewFlat(ctx, path, base, pages*PageSize)
			full("copy of the base", err)
			f, err := NewFlat(ctx, path, "", pages*PageSize)
			must(t, err)
			err = f.Apply(s)
			f.Abort()
			full("apply", err)
			full("rebuild", rebuild(ctx, path, pages*PageSize, []string{delta}))
			_, err = WriteDelta(path, s, "")
			full("delta", err)
		})
	}
}

// rebuild makes a flat file of deltas alone.
func rebuild(ctx context.Context, path string, size int64, deltas []string) error {
	flat, err := Rebuild(ctx, path, "", size, deltas)
	if err != nil {
		return err
	}
	return flat.Finish()
}
