package commit_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vers/internal/fault"
	"vers/internal/ident"
)

// Every kind of damage is found, and the message says what is damaged and of which commit.
func TestVerify(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	root := r.commit(nil, 2, 3, 4)
	base := r.commit(&root, 3, 4, 5)
	c := r.commit(&base, 4, 6)
	beside := r.take(nil, map[int64][]byte{1: page(1)})
	r.consistent()
	path := func(id, name string) string { return filepath.Join(r.dir, "commits", id, name) }
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:len(b)-n] } }
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[(at+len(b))%len(b)] ^= 1; return b }
	}
	missing := func([]byte) []byte { return nil }
	foreign, err := os.ReadFile(path(root.ID, "memory.delta"))
	r.must(err)
	state, delta, manifest := path(c.ID, "device.state"), path(c.ID, "memory.delta"), path(c.ID, "manifest.json")
	layer, below := r.store.LayerPath(c.LayerID), r.store.LayerPath(root.LayerID)
	for what, d := range map[string]struct {
		path   string
		damage func([]byte) []byte
		says   string
	}{
		"device state, first byte":  {state, flip(0), "device state is damaged"},
		"device state, last byte":   {state, flip(-1), "device state is damaged"},
		"device state, cut off":     {state, cut(1), "device state is damaged"},
		"device state, longer":      {state, func(b []byte) []byte { return append(b, 0) }, "device state is damaged"},
		"device state, missing":     {state, missing, "device.state: no such file"},
		"delta, magic":              {delta, flip(0), delta},
		"delta, size of the memory": {delta, flip(17), delta},
		"delta, base":               {delta, flip(45), delta},
		"delta, run":                {delta, flip(64), delta},
		"delta, data":               {delta, flip(-1000), delta},
		"delta, hash":               {delta, flip(-1), delta},
		"delta, cut off":            {delta, cut(5), delta},
		"delta, empty":              {delta, func([]byte) []byte { return []byte{} }, delta},
		"delta, missing":            {delta, missing, delta},
		"delta of another commit":   {delta, func([]byte) []byte { return foreign }, "is not the one its manifest names"},
		"delta of the base":         {path(base.ID, "memory.delta"), flip(-1000), path(base.ID, "memory.delta")},
		"delta two below":           {path(root.ID, "memory.delta"), cut(1), path(root.ID, "memory.delta")},
		"manifest, a digit":         {manifest, flip(12), "manifest.json is damaged"},
		"manifest, cut off":         {manifest, cut(1), "manifest.json is damaged"},
		"manifest, missing":         {manifest, missing, "manifest.json: no such file"},
		"layer, missing":            {layer, missing, filepath.Base(layer) + " is missing"},
		"layer, magic":              {layer, flip(0), layer},
		"layer, empty":              {layer, func([]byte) []byte { return []byte{} }, layer},
		"layer, cut off":            {layer, cut(64 << 10), layer},
		"layer, cut off early":      {layer, func(b []byte) []byte { return b[:3<<16] }, layer},
		"layer, table":              {layer, flip(3<<16 + 3), layer},
		"layer below, missing":      {below, missing, filepath.Base(below) + " is missing"},
		"layer below, cut off":      {below, cut(2 << 16), below},
		"image, missing":            {r.store.ImagePath("base.ext4"), missing, "its image base.ext4 is missing"},
	} {
		good, err := os.ReadFile(d.path)
		r.must(err)
		st, err := os.Stat(d.path)
		r.must(err)
		r.must(os.Remove(d.path))
		if bad := d.damage(bytes.Clone(good)); bad != nil {
			r.must(os.WriteFile(d.path, bad, st.Mode()))
		}
		err = r.store.Verify(t.Context(), c.ID)
		if err == nil || !strings.Contains(err.Error(), d.says) || !strings.Contains(err.Error(), c.ID) {
			t.Errorf("%s: %v", what, err)
		}
		if err := r.store.Verify(t.Context(), beside.ID); err != nil && !strings.HasPrefix(what, "image") {
			t.Errorf("%s: another commit is not good: %v", what, err)
		}
		r.must(os.RemoveAll(d.path))
		r.must(os.WriteFile(d.path, good, st.Mode()))
	}
	r.consistent()

	for what, manifest := range map[string]string{
		"not JSON":       `{"version":1`,
		"later version":  strings.Replace(string(c.Manifest), `"version":1`, `"version":2`, 1),
		"another memory": strings.Replace(string(c.Manifest), `"data_pages":1`, `"data_pages":2`, 1),
	} {
		r.sql(`UPDATE commits SET manifest = ? WHERE commit_id = ?`, manifest, c.ID)
		if err := r.store.Verify(t.Context(), c.ID); err == nil || !strings.Contains(err.Error(), c.ID) {
			t.Errorf("the catalogue's manifest is %s: %v", what, err)
		}
	}
	r.sql(`UPDATE commits SET manifest = ? WHERE commit_id = ?`, string(c.Manifest), c.ID)
	if err := r.store.Verify(t.Context(), ident.New()); !fault.Is(err, fault.NotFound) {
		t.Errorf("no commit: %v", err)
	}
	// It needs no flat file, and holds nothing afterwards.
	r.consistent()
	r.remove(root, base, c, beside)
	r.collect()
	if left := r.files(); len(left) > 0 {
		t.Errorf("there are %v", left)
	}
}

// A deleted base is still verified with what stands on it, and what several stand on is told for each of them.
func TestVerifyBases(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	commits := r.chain(4)
	r.remove(commits[1])
	r.collect()
	path := filepath.Join(r.dir, "commits", commits[1].ID, "memory.delta")
	data, err := os.ReadFile(path)
	r.must(err)
	data[len(data)/2] ^= 1
	r.must(os.WriteFile(path, data, 0o600))
	verifier := r.store.Verifier()
	for _, i := range []int{2, 0, 3} {
		err := verifier.Verify(t.Context(), commits[i].ID)
		if (i == 0) != (err == nil) || err != nil && (!strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), commits[i].ID)) {
			t.Errorf("commit %d: %v", i, err)
		}
	}
}
