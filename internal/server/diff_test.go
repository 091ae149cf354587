package server

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"vers/api"
	"vers/internal/ext4"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/machine"
)

func TestDiff(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	from, to := h.newCommit(vm), h.newCommit(vm)
	h.machines.diff = machine.Diff{Truncated: true, Totals: ext4.Totals{Added: 1, Removed: 2, Changed: 3, BytesAdded: 4, BytesRemoved: 5}, Entries: []ext4.Entry{
		{Path: "/a\xff", Change: ext4.Added, To: &ext4.Node{Kind: ext4.File, Size: 7, Mode: 0o4755, UID: 70000, GID: 5}},
		{Path: "/b", Change: ext4.Removed, From: &ext4.Node{Kind: ext4.Symlink, Size: 1, Mode: 0o777, Target: "x"}},
		{Path: "/c", Change: ext4.Changed, What: []string{"type"}, From: &ext4.Node{Kind: ext4.Block, Mode: 0o600, Device: "3:4"},
			To: &ext4.Node{Kind: ext4.Directory, Mode: 0o755}},
	}}
	got := read[api.Diff](h.call("GET", "/commits/"+from+"/diff/"+to+"?path=/etc&limit=3", "").want(200))
	text := func(s string) *string { return &s }
	size := func(n int64) *int64 { return &n }
	want := api.Diff{From: from, To: to, Truncated: true, Added: 1, Removed: 2, Changed: 3, BytesAdded: 4, BytesRemoved: 5, Entries: []api.DiffEntry{
		{Path: "/a\uFFFD", PathBytes: []byte("/a\xff"), Change: "added", Kind: "file", SizeTo: size(7), ModeTo: text("4755"), OwnerTo: text("70000:5")},
		{Path: "/b", Change: "removed", Kind: "symlink", SizeFrom: size(1), ModeFrom: text("0777"), OwnerFrom: text("0:0"), TargetFrom: text("x")},
		{Path: "/c", Change: "changed", What: []string{"type"}, Kind: "directory", KindFrom: "block device", ModeFrom: text("0600"), ModeTo: text("0755"),
			OwnerFrom: text("0:0"), OwnerTo: text("0:0"), DeviceFrom: text("3:4")},
	}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]machine.DiffRequest{{From: from, To: to, Path: "/etc", Limit: 3}}, h.machines.diffed); d != "" {
		t.Error(d)
	}
	h.machines.diff = machine.Diff{}
	if answer := read[api.Diff](h.call("GET", "/commits/"+from+"/diff/"+from, "").want(200)); answer.Entries == nil || len(answer.Entries) > 0 {
		t.Errorf("entries %#v, not []", answer.Entries)
	}
	if h.machines.diffed[1].Limit != machine.DefaultDiffEntries {
		t.Errorf("default limit %d", h.machines.diffed[1].Limit)
	}
}

func TestDiffRefuses(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	from, to := h.newCommit(vm), h.newCommit(vm)
	for _, limit := range []string{"0", "-1", "100001", "many"} {
		h.call("GET", "/commits/"+from+"/diff/"+to+"?limit="+limit, "").want(400)
	}
	h.call("GET", "/commits/x/diff/"+to, "").want(400)
	h.call("GET", "/commits/"+from+"/diff/x", "").want(400)
	h.call("GET", "/commits/"+from+"/diff/"+ident.New(), "").want(404)
	h.call("GET", "/commits/"+ident.New()+"/diff/"+to, "").want(404)
	// Another organisation sees public commits only, and both must be.
	h.call("PATCH", "/commits/"+from, `{"is_public":true}`).want(200)
	h.callAs(h.otherKey, "GET", "/commits/"+from+"/diff/"+to, "").want(404)
	h.callAs(h.otherKey, "GET", "/commits/"+to+"/diff/"+from, "").want(404)
	if len(h.machines.diffed) > 0 {
		t.Errorf("asked for %v", h.machines.diffed)
	}
	h.call("PATCH", "/commits/"+to, `{"is_public":true}`).want(200)
	h.callAs(h.otherKey, "GET", "/commits/"+from+"/diff/"+to, "").want(200)
	h.failNext(fault.Conflictf("commit %s: no ext4", to))
	h.call("GET", "/commits/"+from+"/diff/"+to, "").want(409).says("no ext4")
}
