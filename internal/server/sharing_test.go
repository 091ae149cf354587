package server

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"vers/api"
	"vers/internal/fault"
	"vers/internal/ident"
)

// newTag makes a commit and points a new tag of repository app at it; the repository is made if it is missing.
func (h *harness) newTag(tag string) string {
	h.t.Helper()
	commit := h.newCommit(h.newVM())
	if a := h.call("POST", "/repositories", `{"name":"app"}`); a.status != 201 && a.status != 409 {
		h.t.Fatalf("status %d: %s", a.status, a.body)
	}
	h.call("POST", "/repositories/app/tags", `{"tag_name":"`+tag+`","commit_id":"`+commit+`"}`).want(201)
	return commit
}

func (h *harness) publish() {
	h.t.Helper()
	h.call("PATCH", "/repositories/app/visibility", `{"is_public":true}`).want(204).empty()
}

func TestPlainTags(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	first, second := h.newCommit(vm), h.newCommit(vm)
	if a := h.call("GET", "/commit_tags", "").want(200); !strings.Contains(a.body, `"tags":[]`) {
		t.Errorf("%s", a.body)
	}
	created := read[api.TagCreated](h.call("POST", "/commit_tags", `{"tag_name":"golden","commit_id":"`+first+`","description":"d"}`).want(201))
	if created.TagID == "" || created.TagName != "golden" || created.CommitID != first {
		t.Errorf("%+v", created)
	}
	tag := func() api.Tag { return read[api.Tag](h.call("GET", "/commit_tags/golden", "").want(200)) }
	if got := tag(); got.CommitID != first || *got.Description != "d" || got.TagID != created.TagID || got.CreatedAt.IsZero() {
		t.Errorf("%+v", got)
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"POST", "/commit_tags", `{"tag_name":"golden","commit_id":"` + first + `"}`, 409, "already exists"},
		{"POST", "/commit_tags", `{"tag_name":"a b","commit_id":"` + first + `"}`, 400, "a b"},
		{"POST", "/commit_tags", `{"tag_name":"x","commit_id":"nonsense"}`, 400, "malformed"},
		{"POST", "/commit_tags", `{"tag_name":"x"}`, 400, "commit_id"},
		{"POST", "/commit_tags", `{"tag_name":"x","commit_id":"` + ident.New() + `"}`, 404, "commit"},
		{"GET", "/commit_tags/none", "", 404, "none"},
		{"PATCH", "/commit_tags/none", `{"description":null}`, 404, "none"},
		{"PATCH", "/commit_tags/golden", `{}`, 400, "nothing to change"},
		{"PATCH", "/commit_tags/golden", `{"commit_id":"` + ident.New() + `"}`, 404, "commit"},
		{"PATCH", "/commit_tags/golden", `{"commit_id":"` + second + `","expected_commit_id":"` + second + `"}`, 409, first},
		{"DELETE", "/commit_tags/none", "", 404, "none"},
	} {
		h.call(c.method, c.path, c.body).want(c.status).says(c.says)
	}
	h.call("PATCH", "/commit_tags/golden", `{"commit_id":"`+second+`"}`).want(204).empty()
	if got := tag(); got.CommitID != second || *got.Description != "d" {
		t.Errorf("%+v", got)
	}
	h.call("PATCH", "/commit_tags/golden", `{"description":null}`).want(204)
	if got := tag(); got.Description != nil {
		t.Errorf("%+v", got)
	}

	// Where a commit is named, a plain tag can be.
	for _, c := range []struct{ path, body string }{
		{"/vm/from_commit", `{"tag_name":"golden"}`}, {"/vm/from_commit", `{"commit_id":"golden"}`},
	} {
		if got := read[api.NewVM](h.call("POST", c.path, c.body).want(201)); got.CommitID != second {
			t.Errorf("%s: %+v", c.body, got)
		}
	}
	if got := read[api.NewVMs](h.call("POST", "/vm/branch/by_tag/golden?count=2", "").want(201)); len(got.VMs) != 2 || got.CommitID != second {
		t.Errorf("%+v", got)
	}
	h.call("POST", "/vm/from_commit", `{"tag_name":"none"}`).want(404).says("none")
	h.call("POST", "/vm/from_commit", `{"commit_id":"none"}`).want(404).says("none", "repo:tag")
	if a := h.call("POST", "/vm/branch/by_tag/none", "").want(404); !strings.Contains(a.body, `"vms":[]`) {
		t.Errorf("%s", a.body)
	}
	h.call("POST", "/vm/branch/by_tag/golden?count=0", "").want(400)
	h.callAs(h.otherKey, "POST", "/vm/from_commit", `{"tag_name":"golden"}`).want(404)
	h.callAs(h.otherKey, "POST", "/vm/branch/by_tag/golden", "").want(404)
	for _, method := range []string{"GET", "DELETE", "PATCH"} {
		h.callAs(h.otherKey, method, "/commit_tags/golden", `{"description":null}`).want(404)
	}
	h.callAs(h.otherKey, "POST", "/commit_tags", `{"tag_name":"x","commit_id":"`+first+`"}`).want(404)
	h.call("PATCH", "/commits/"+first, `{"is_public":true}`).want(200)
	h.callAs(h.otherKey, "POST", "/commit_tags", `{"tag_name":"x","commit_id":"`+first+`"}`).want(403).says("fork")

	h.call("DELETE", "/commits/"+second, "").want(409).says("golden")
	h.call("DELETE", "/commit_tags/golden", "").want(204).empty()
	h.call("DELETE", "/commits/"+second, "").want(204)
}

func TestPublicRepositories(t *testing.T) {
	h := newHarness(t)
	commit := h.newTag("latest")
	for _, path := range []string{"/public/repositories/acme/app", "/public/repositories/acme/app/tags", "/public/repositories/acme/app/tags/latest"} {
		for _, key := range []string{"", h.key, h.otherKey} {
			h.callAs(key, "GET", path, "").want(404).says("acme/app")
		}
	}
	h.callAs(h.otherKey, "PATCH", "/repositories/app/visibility", `{"is_public":true}`).want(404)
	h.call("PATCH", "/repositories/app/visibility", `{}`).want(400).says("is_public")
	h.call("PATCH", "/repositories/none/visibility", `{"is_public":true}`).want(404)
	if a := h.callAs("", "GET", "/public/repositories", "").want(200); !strings.Contains(a.body, `"repositories":[]`) {
		t.Errorf("%s", a.body)
	}
	h.publish()
	for _, key := range []string{"", h.key, h.otherKey} {
		list := read[api.PublicRepositoryList](h.callAs(key, "GET", "/public/repositories", "").want(200))
		repo := read[api.PublicRepository](h.callAs(key, "GET", "/public/repositories/acme/app", "").want(200))
		if len(list.Repositories) != 1 || list.Repositories[0] != repo || repo.FullName != "acme/app" || repo.OrgName != "acme" ||
			repo.Name != "app" || repo.RepoID == "" || repo.CreatedAt.IsZero() || repo.TagCount != 1 {
			t.Errorf("%+v, %+v", list, repo)
		}
		tags := read[api.RepoTagList](h.callAs(key, "GET", "/public/repositories/acme/app/tags", "").want(200))
		tag := read[api.RepoTag](h.callAs(key, "GET", "/public/repositories/acme/app/tags/latest", "").want(200))
		if tags.Repository != "app" || len(tags.Tags) != 1 || tags.Tags[0] != tag || tag.Reference != "app:latest" || tag.CommitID != commit {
			t.Errorf("%+v, %+v", tags, tag)
		}
		h.callAs(key, "GET", "/public/repositories/acme/app/tags/none", "").want(404).says("tag 'none'")
		h.callAs(key, "GET", "/public/repositories/other/app", "").want(404)
	}
	for _, path := range []string{"/public/repositories", "/public/repositories/acme/app", "/public/repositories/acme/app/tags/latest"} {
		h.callAs(h.key[:99]+"x", "GET", path, "").want(401)
		h.callAs("", "POST", path, "").want(405)
	}
	h.callAs("", "GET", "/public", "").want(401)
	h.callAs("", "GET", "/public/repositoriesx", "").want(401)
	// A public repository makes its tags readable, not its commits restorable.
	h.callAs(h.otherKey, "POST", "/vm/from_commit", `{"commit_id":"`+commit+`"}`).want(404)
	h.callAs(h.otherKey, "GET", "/repositories/app", "").want(404)
	h.call("PATCH", "/repositories/app/visibility", `{"is_public":false}`).want(204)
	h.callAs("", "GET", "/public/repositories/acme/app", "").want(404)
}

func TestFork(t *testing.T) {
	h := newHarness(t)
	commit := h.newTag("latest")
	body := func(more string) string {
		return `{"source_org":"acme","source_repo":"app","source_tag":"latest"` + more + `}`
	}
	h.callAs(h.otherKey, "POST", "/repositories/fork", body("")).want(404).says("acme/app")
	h.publish()
	got := read[api.Fork](h.callAs(h.otherKey, "POST", "/repositories/fork", body("")).want(201))
	if got.CommitID == "" || got.CommitID == commit || got.RepoName != "app" || got.TagName != "latest" || got.Reference != "app:latest" {
		t.Errorf("%+v", got)
	}
	if vm := read[api.VM](h.callAs(h.otherKey, "GET", "/vm/"+got.VMID+"/status", "").want(200)); vm.State != "running" || vm.Parent != nil {
		t.Errorf("%+v", vm)
	}
	if repo := read[api.Repository](h.callAs(h.otherKey, "GET", "/repositories/app", "").want(200)); repo.IsPublic || repo.OwnerOrg != "other" {
		t.Errorf("%+v", repo)
	}
	if tag := read[api.RepoTag](h.callAs(h.otherKey, "GET", "/repositories/app/tags/latest", "").want(200)); tag.CommitID != got.CommitID {
		t.Errorf("%+v", tag)
	}
	h.call("GET", "/vm/"+got.VMID+"/status", "").want(404)

	vms := len(h.machines.order)
	a := h.callAs(h.otherKey, "POST", "/repositories/fork", body("")).want(409).says("--tag-name", "app:latest", "repo tag delete")
	if a.header.Get(api.HeaderShouldRetry) != "false" || len(h.machines.order) != vms {
		t.Errorf("%v, %d VMs, want %d", a.header, len(h.machines.order), vms)
	}
	second := read[api.Fork](h.callAs(h.otherKey, "POST", "/repositories/fork", body(`,"tag_name":"v2"`)).want(201))
	if second.Reference != "app:v2" || second.CommitID == got.CommitID {
		t.Errorf("%+v", second)
	}
	if own := read[api.Fork](h.call("POST", "/repositories/fork", body(`,"repo_name":"mine","tag_name":null`)).want(201)); own.Reference != "mine:latest" {
		t.Errorf("%+v", own)
	}
	for name, c := range map[string]struct {
		body   string
		status int
	}{
		"unknown org":  {`{"source_org":"none","source_repo":"app","source_tag":"latest"}`, 404},
		"unknown repo": {`{"source_org":"acme","source_repo":"none","source_tag":"latest"}`, 404},
		"unknown tag":  {`{"source_org":"acme","source_repo":"app","source_tag":"none"}`, 404},
		"no tag":       {`{"source_org":"acme","source_repo":"app"}`, 400},
		"bad target":   {body(`,"repo_name":"../x"`), 400},
		"empty target": {body(`,"tag_name":""`), 400},
		"nothing":      {`{}`, 400},
	} {
		t.Run(name, func(t *testing.T) { h.in(t).callAs(h.otherKey, "POST", "/repositories/fork", c.body).want(c.status) })
	}
	h.callAs("", "POST", "/repositories/fork", body("")).want(401)
	h.failNext(fault.Exhaustedf("Insufficient system resources"))
	a = h.callAs(h.otherKey, "POST", "/repositories/fork", body(`,"repo_name":"fresh"`)).want(507)
	if a.header.Get(api.HeaderShouldRetry) != "false" {
		t.Error("a failed fork must not be tried again")
	}
	h.callAs(h.otherKey, "GET", "/repositories/fresh", "").want(404)
	h.call("GET", "/repositories/fork", "").want(404).says("repository 'fork'") // a name like any other
}

// Of equal forks at once one wins; tags, repositories, commits and VMs are those of one fork.
func TestForksRace(t *testing.T) {
	h := newHarness(t)
	h.newTag("latest")
	h.publish()
	const racers = 20
	statuses := make([]int, racers)
	var group sync.WaitGroup
	for i := range racers {
		group.Go(func() {
			req := h.request(h.otherKey, "POST", "/repositories/fork", `{"source_org":"acme","source_repo":"app","source_tag":"latest"}`)
			statuses[i] = h.send(http.DefaultClient, req).status
		})
	}
	group.Wait()
	won := 0
	for _, status := range statuses {
		switch status {
		case 201:
			won++
		case 409:
		default:
			t.Errorf("status %d", status)
		}
	}
	commits := read[api.CommitList](h.callAs(h.otherKey, "GET", "/commits", "").want(200))
	vms := read[[]api.VM](h.callAs(h.otherKey, "GET", "/vms", "").want(200))
	if won != 1 || commits.Total != 1 || len(vms) != 1 {
		t.Errorf("%d forks, %d commits, %d VMs; want 1 of each", won, commits.Total, len(vms))
	}
}

func TestTagHistory(t *testing.T) {
	h := newHarness(t)
	first := h.newTag("latest")
	second := h.newCommit(h.newVM())
	const tag = "/repositories/app/tags/latest"
	h.call("PATCH", tag, `{"commit_id":"`+second+`","expected_commit_id":"`+second+`"}`).want(409).says(first, second)
	h.call("PATCH", tag, `{"expected_commit_id":"`+first+`"}`).want(400).says("nothing to change")
	h.call("PATCH", tag, `{"commit_id":"`+second+`","expected_commit_id":"x"}`).want(400).says("malformed")
	h.call("PATCH", tag, `{"commit_id":"`+second+`","expected_commit_id":"`+first+`"}`).want(204)
	history := func() []api.TagEvent {
		got := read[api.TagHistory](h.call("GET", tag+"/history", "").want(200))
		if got.Reference != "app:latest" || got.Repository != "app" || got.TagName != "latest" {
			t.Errorf("%+v", got)
		}
		return got.Entries
	}
	events := history()
	if len(events) != 2 || events[0].Action != api.TagMove || *events[0].FromCommitID != first || *events[0].ToCommitID != second ||
		events[0].KeyID != h.key[:36] || events[0].KeyName != "first key" || !events[0].Available || events[0].At.IsZero() ||
		events[1].Action != api.TagCreate || events[1].FromCommitID != nil {
		t.Errorf("%+v", events)
	}
	rolled := read[api.TagRollbackResult](h.call("POST", tag+"/rollback", "").want(200))
	if rolled.CommitID != first || rolled.FromCommitID != second || rolled.Reference != "app:latest" {
		t.Errorf("%+v", rolled)
	}
	h.call("POST", tag+"/rollback", "").want(409).says("nothing to go back to")
	rolled = read[api.TagRollbackResult](h.call("POST", tag+"/rollback", fmt.Sprintf(`{"entry_id":%d,"expected_commit_id":%q}`, events[0].EntryID, first)).want(200))
	if rolled.CommitID != second {
		t.Errorf("%+v", rolled)
	}
	for body, status := range map[string]int{
		`{"entry_id":0}`: 400, `{"entry_id":-1}`: 400, `{"entry_id":999}`: 404, `{"expected_commit_id":"x"}`: 400,
		`{"expected_commit_id":"` + first + `"}`: 409, `{"entry_id":"x"}`: 400,
	} {
		h.call("POST", tag+"/rollback", body).want(status)
	}
	for _, c := range []struct{ method, path string }{{"GET", "/history"}, {"POST", "/rollback"}, {"GET", "/protection"}, {"PATCH", "/protection"}} {
		h.callAs(h.otherKey, c.method, tag+c.path, `{"keys":[]}`).want(404)
		h.call(c.method, "/repositories/app/tags/none"+c.path, `{"keys":[]}`).want(404)
	}
	h.call("DELETE", tag+"?expected_commit_id="+first, "").want(409).says(second)
	h.call("DELETE", tag+"?expected_commit_id=x", "").want(400)
	h.call("DELETE", tag+"?expected_commit_id="+second, "").want(204).empty()
	if events = history(); len(events) != 5 || events[0].Action != api.TagDelete || events[0].ToCommitID != nil {
		t.Errorf("%+v", events)
	}
	h.call("DELETE", "/commits/"+second, "").want(204) // only the history mentions it
	if events = history(); events[1].Available {
		t.Errorf("%+v", events[1])
	}
}

func TestTagProtection(t *testing.T) {
	h := newHarness(t)
	h.newTag("latest")
	second := h.newCommit(h.newVM())
	_, ci, err := h.server.Registry.CreateKey(t.Context(), h.caller.OrgID, "ci")
	h.must(err)
	const tag = "/repositories/app/tags/latest"
	if got := read[api.TagProtection](h.call("GET", tag+"/protection", "").want(200)); got.Protected || got.Keys == nil || len(got.Keys) != 0 {
		t.Errorf("%+v", got)
	}
	h.call("PATCH", tag+"/protection", `{"keys":["nobody"]}`).want(404).says("nobody")
	h.call("PATCH", tag+"/protection", `{}`).want(400)
	got := read[api.TagProtection](h.call("PATCH", tag+"/protection", `{"keys":["ci"]}`).want(200))
	if !got.Protected || len(got.Keys) != 1 || got.Keys[0] != (api.KeyRef{KeyID: ci[:36], KeyName: "ci"}) || got.Reference != "app:latest" {
		t.Errorf("%+v", got)
	}
	if !read[api.RepoTag](h.call("GET", tag, "").want(200)).Protected {
		t.Error("the tag does not say that it is protected")
	}
	move := `{"commit_id":"` + second + `"}`
	h.call("PATCH", tag, move).want(403).says("app:latest", "'ci'", ci[:36])
	h.call("DELETE", tag, "").want(403).says("ci")
	h.call("POST", tag+"/rollback", "").want(403).says("ci")
	h.call("PATCH", tag+"/protection", `{"keys":[]}`).want(403).says("ci")
	h.call("DELETE", "/repositories/app", "").want(403).says("ci")
	h.callAs(ci, "PATCH", tag, move).want(204)
	h.callAs(ci, "POST", tag+"/rollback", "").want(200)
	h.callAs(ci, "PATCH", tag+"/protection", `{"keys":[]}`).want(200)
	h.call("PATCH", tag, move).want(204)
}

// Of many clients that move a tag at once from where they saw it, one succeeds.
func TestTagMovesRace(t *testing.T) {
	h := newHarness(t)
	seen := h.newTag("latest")
	vm := h.newVM()
	const racers = 40
	commits := make([]string, racers)
	for i := range commits {
		commits[i] = h.newCommit(vm)
	}
	var mu sync.Mutex
	var winners []string
	var group sync.WaitGroup
	for _, commit := range commits {
		group.Go(func() {
			req := h.request(h.key, "PATCH", "/repositories/app/tags/latest", `{"commit_id":"`+commit+`","expected_commit_id":"`+seen+`"}`)
			switch a := h.send(http.DefaultClient, req); a.status {
			case 204:
				mu.Lock()
				winners = append(winners, commit)
				mu.Unlock()
			case 409:
			default:
				t.Errorf("status %d: %s", a.status, a.body)
			}
		})
	}
	group.Wait()
	tag := read[api.RepoTag](h.call("GET", "/repositories/app/tags/latest", "").want(200))
	if len(winners) != 1 || tag.CommitID != winners[0] {
		t.Errorf("%v won, the tag points at %s", winners, tag.CommitID)
	}
}
