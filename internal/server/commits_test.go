package server

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vers/api"
	"vers/internal/ident"
)

func TestCommitVM(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	got := read[api.CommitCreated](h.call("POST", "/vm/"+vm+"/commit", "").want(201))
	if got.CommitID == "" || got.HostArchitecture != "x86_64" || got.Name == "" || got.Timing == nil {
		t.Errorf("%+v", got)
	}
	chosen := ident.New()
	got = read[api.CommitCreated](h.call("POST", "/vm/"+vm+"/commit?keep_paused=true",
		`{"commit_id":"`+chosen+`","name":"release 1","description":"what for"}`).want(201))
	if got.CommitID != chosen || got.Name != "release 1" {
		t.Errorf("%+v", got)
	}
	if state := read[api.VM](h.call("GET", "/vm/"+vm, "").want(200)).State; state != "paused" {
		t.Errorf("state %s after keep_paused", state)
	}
	h.call("POST", "/vm/"+vm+"/commit", `{"commit_id":"`+chosen+`"}`).want(409)
	h.call("POST", "/vm/"+vm+"/commit", `{"commit_id":null,"name":null,"description":null}`).want(201)
	h.call("POST", "/vm/"+vm+"/commit", `{"name":"`+strings.Repeat("a", 129)+`"}`).want(400).says("name")
	h.call("POST", "/vm/"+vm+"/commit", `{"name":1}`).want(400)
	h.call("POST", "/vm/"+ident.New()+"/commit", "").want(404)
}

func TestCommitLists(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	var newest []string
	for range 3 {
		newest = append([]string{h.newCommit(vm)}, newest...)
	}
	ids := func(list api.CommitList) (ids []string) {
		for _, c := range list.Commits {
			if created, err := time.Parse(time.RFC3339Nano, c.CreatedAt); err != nil || created.IsZero() {
				t.Errorf("created_at %q: %v", c.CreatedAt, err)
			}
			ids = append(ids, c.CommitID)
		}
		return ids
	}
	list := read[api.CommitList](h.call("GET", "/commits", "").want(200))
	if diff := cmp.Diff(newest, ids(list)); diff != "" || list.Total != 3 || list.Limit != 50 || list.Offset != 0 {
		t.Errorf("%+v %s", list, diff)
	}
	list = read[api.CommitList](h.call("GET", "/commits?limit=1&offset=1", "").want(200))
	if diff := cmp.Diff(newest[1:2], ids(list)); diff != "" || list.Total != 3 || list.Limit != 1 || list.Offset != 1 {
		t.Errorf("%+v %s", list, diff)
	}
	if list = read[api.CommitList](h.call("GET", "/commits?limit=1000", "").want(200)); list.Limit != 100 {
		t.Errorf("limit %d", list.Limit)
	}
	for _, query := range []string{"limit=0", "limit=-1", "offset=-1", "limit=a"} {
		h.call("GET", "/commits?"+query, "").want(400)
		h.call("GET", "/images?"+query, "").want(400)
	}
	h.call("PATCH", "/commits/"+newest[0], `{"is_public":true}`).want(200)
	list = read[api.CommitList](h.callAs(h.otherKey, "GET", "/commits/public", "").want(200))
	if diff := cmp.Diff(newest[:1], ids(list)); diff != "" {
		t.Error(diff)
	}
}

func TestCommitHistory(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	first := h.newCommit(vm)
	child := read[api.NewVM](h.call("POST", "/vm/from_commit", `{"commit_id":"`+first+`"}`).want(201)).VMID
	second := h.newCommit(child)
	line := read[[]api.CommitEntity](h.call("GET", "/vm/commits/"+second+"/parents", "").want(200))
	if len(line) != 2 || line[0].ID != second || line[1].ID != first {
		t.Fatalf("%+v", line)
	}
	if *line[0].ParentVMID != child || *line[0].GrandparentCommitID != first || *line[1].ParentVMID != vm || line[1].GrandparentCommitID != nil {
		t.Errorf("%+v", line)
	}
	h.call("GET", "/vm/commits/"+ident.New()+"/parents", "").want(404)
}

func TestUpdateAndDeleteCommit(t *testing.T) {
	h := newHarness(t)
	commit := h.newCommit(h.newVM())
	update := func(body string) api.CommitInfo {
		return read[api.CommitInfo](h.call("PATCH", "/commits/"+commit, body).want(200))
	}
	got := update(`{"is_public":true,"name":"n","description":"d"}`)
	if !got.IsPublic || got.Name != "n" || got.Description == nil || *got.Description != "d" {
		t.Errorf("%+v", got)
	}
	if got = update(`{"is_public":false,"name":null}`); got.IsPublic || got.Name != "n" || got.Description == nil {
		t.Errorf("absent fields changed: %+v", got)
	}
	if got = update(`{"is_public":true,"description":null}`); got.Description != nil {
		t.Errorf("null did not clear: %+v", got)
	}
	h.call("PATCH", "/commits/"+commit, `{"name":"n"}`).want(400).says("is_public")
	h.call("PATCH", "/commits/"+ident.New(), `{"is_public":true}`).want(404)
	// It is public: another organisation sees it, but may not change it.
	h.callAs(h.otherKey, "PATCH", "/commits/"+commit, `{"is_public":false}`).want(403)
	h.callAs(h.otherKey, "DELETE", "/commits/"+commit, "").want(403)

	h.call("POST", "/repositories", `{"name":"app"}`).want(201)
	h.call("POST", "/repositories/app/tags", `{"tag_name":"v1","commit_id":"`+commit+`"}`).want(201)
	h.call("DELETE", "/commits/"+commit, "").want(409).says("app:v1")
	h.call("DELETE", "/repositories/app/tags/v1", "").want(204).empty()
	h.call("DELETE", "/commits/"+commit, "").want(204).empty()
	h.call("DELETE", "/commits/"+commit, "").want(404)
}
