package server

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vers/api"
	"vers/internal/catalog"
	"vers/internal/ident"
)

func TestRepositories(t *testing.T) {
	h := newHarness(t)
	created := read[api.RepositoryCreated](h.call("POST", "/repositories", `{"name":"my-app","description":"what for"}`).want(201))
	if created.Name != "my-app" || created.RepoID == "" {
		t.Errorf("%+v", created)
	}
	h.call("POST", "/repositories", `{"name":"my-app"}`).want(409).says("repository already exists")
	for _, name := range []string{"", "a b", "a/b", "ä", strings.Repeat("a", 65), ".."} {
		h.call("POST", "/repositories", `{"name":"`+name+`"}`).want(400)
	}
	h.call("POST", "/repositories", `{"name":"second","description":null}`).want(201)

	got := read[api.Repository](h.call("GET", "/repositories/my-app", "").want(200))
	if got.RepoID != created.RepoID || got.IsPublic || got.Description == nil || *got.Description != "what for" || got.OwnerOrg != "acme" || got.TagCount != 0 {
		t.Errorf("%+v", got)
	}
	list := read[api.RepositoryList](h.call("GET", "/repositories", "").want(200))
	if len(list.Repositories) != 2 || list.Repositories[0].Name != "second" {
		t.Errorf("%+v", list)
	}
	h.call("PATCH", "/repositories/my-app/visibility", `{"is_public":true}`).want(204).empty()
	if got = read[api.Repository](h.call("GET", "/repositories/my-app", "").want(200)); !got.IsPublic {
		t.Errorf("%+v", got)
	}
	h.call("PATCH", "/repositories/my-app/visibility", `{}`).want(400)
	h.call("DELETE", "/repositories/my-app", "").want(204).empty()
	for _, path := range []string{"/repositories/my-app", "/repositories/My-App", "/repositories/my-app/tags", "/repositories/fork"} {
		h.call("GET", path, "").want(404)
	}
	h.call("DELETE", "/repositories/my-app", "").want(404)
	h.call("PATCH", "/repositories/my-app/visibility", `{"is_public":true}`).want(404)
}

func TestRepositoryTags(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	first, second := h.newCommit(vm), h.newCommit(vm)
	h.call("POST", "/repositories", `{"name":"app"}`).want(201)
	created := read[api.RepoTagCreated](h.call("POST", "/repositories/app/tags",
		`{"tag_name":"latest","commit_id":"`+first+`","description":"d"}`).want(201))
	if created.Reference != "app:latest" || created.CommitID != first || created.TagID == "" || created.TagName != "latest" {
		t.Errorf("%+v", created)
	}
	tag := func() api.RepoTag {
		return read[api.RepoTag](h.call("GET", "/repositories/app/tags/latest", "").want(200))
	}
	before := tag()
	if before.Reference != "app:latest" || before.CommitID != first || *before.Description != "d" || before.CreatedAt.IsZero() {
		t.Errorf("%+v", before)
	}
	list := read[api.RepoTagList](h.call("GET", "/repositories/app/tags", "").want(200))
	if diff := cmp.Diff(api.RepoTagList{Repository: "app", Tags: []api.RepoTag{before}}, list); diff != "" {
		t.Error(diff)
	}
	if repo := read[api.Repository](h.call("GET", "/repositories/app", "").want(200)); repo.TagCount != 1 {
		t.Errorf("tag count %d", repo.TagCount)
	}

	h.call("PATCH", "/repositories/app/tags/latest", `{"commit_id":"`+second+`"}`).want(204).empty()
	if got := tag(); got.CommitID != second || *got.Description != "d" || !got.UpdatedAt.After(before.UpdatedAt) || !got.CreatedAt.Equal(before.CreatedAt) {
		t.Errorf("%+v", got)
	}
	h.call("PATCH", "/repositories/app/tags/latest", `{"description":null}`).want(204)
	if got := tag(); got.CommitID != second || got.Description != nil {
		t.Errorf("%+v", got)
	}
	h.call("PATCH", "/repositories/app/tags/latest", `{"description":"new","commit_id":null}`).want(204)
	if got := tag(); *got.Description != "new" {
		t.Errorf("%+v", got)
	}

	foreign := catalog.Commit{ID: ident.New(), OrgID: h.otherOrg(), IsPublic: true, CreatedAt: before.CreatedAt}
	h.must(h.catalog.InsertCommit(t.Context(), foreign))
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"POST", "/repositories/app/tags", `{"tag_name":"latest","commit_id":"` + first + `"}`, 409, "app:latest"},
		{"POST", "/repositories/app/tags", `{"tag_name":"a b","commit_id":"` + first + `"}`, 400, "a b"},
		{"POST", "/repositories/app/tags", `{"tag_name":"` + strings.Repeat("a", 129) + `","commit_id":"` + first + `"}`, 400, "tag name"},
		{"POST", "/repositories/app/tags", `{"tag_name":"x","commit_id":"nonsense"}`, 400, "nonsense"},
		{"POST", "/repositories/app/tags", `{"tag_name":"x"}`, 400, "commit_id"},
		{"POST", "/repositories/app/tags", `{"tag_name":"x","commit_id":"` + ident.New() + `"}`, 404, "commit"},
		{"POST", "/repositories/none/tags", `{"tag_name":"x","commit_id":"` + first + `"}`, 404, "repository 'none'"},
		{"POST", "/repositories/app/tags", `{"tag_name":"x","commit_id":"` + foreign.ID + `"}`, 403, "fork"},
		{"PATCH", "/repositories/app/tags/latest", `{"commit_id":"` + foreign.ID + `"}`, 403, "fork"},
		{"PATCH", "/repositories/app/tags/latest", `{}`, 400, "nothing to change"},
		{"PATCH", "/repositories/app/tags/latest", `{"commit_id":"x"}`, 400, "malformed"},
		{"PATCH", "/repositories/app/tags/latest", `{"commit_id":"` + ident.New() + `"}`, 404, "commit"},
		{"PATCH", "/repositories/app/tags/none", `{"description":null}`, 404, "tag 'none'"},
		{"GET", "/repositories/app/tags/none", "", 404, "tag 'none'"},
		{"GET", "/repositories/none/tags/latest", "", 404, "repository 'none'"},
		{"DELETE", "/repositories/app/tags/none", "", 404, "tag 'none'"},
	} {
		t.Run(c.method+" "+c.says, func(t *testing.T) { h.in(t).call(c.method, c.path, c.body).want(c.status).says(c.says) })
	}
	if got := tag(); got.CommitID != second {
		t.Errorf("a refused change moved the tag: %+v", got)
	}
	h.call("DELETE", "/repositories/app/tags/latest", "").want(204).empty()
	h.call("GET", "/vm/commits/"+second+"/parents", "").want(200) // the commit stays
}

// otherOrg gives the id of the second organisation.
func (h *harness) otherOrg() string {
	return read[api.Whoami](h.callAs(h.otherKey, "GET", "/whoami", "").want(200)).OrgID
}

func TestEnv(t *testing.T) {
	h := newHarness(t)
	vars := func(a answer) map[string]string { return read[api.EnvVars](a.want(200)).Vars }
	vars(h.call("PUT", "/env_vars", `{"vars":{"A":"1","B":"2"},"replace":false}`))
	if diff := cmp.Diff(map[string]string{"A": "1", "B": "3"}, vars(h.call("PUT", "/env_vars", `{"vars":{"B":"3"}}`))); diff != "" {
		t.Error(diff)
	}
	for _, body := range []string{`{"vars":{"1A":""}}`, `{"vars":{"A":"` + strings.Repeat("x", 8193) + `","C":""}}`, `{}`, `{"vars":null}`, `{"vars":{"A":1}}`} {
		h.call("PUT", "/env_vars", body).want(400)
	}
	h.call("DELETE", "/env_vars/A", "").want(204).empty()
	h.call("DELETE", "/env_vars/A", "").want(404).says("Environment variable not found")
	if diff := cmp.Diff(map[string]string{"B": "3"}, vars(h.call("GET", "/env_vars", ""))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"C": "4"}, vars(h.call("PUT", "/env_vars", `{"vars":{"C":"4"},"replace":true}`))); diff != "" {
		t.Error(diff)
	}
	if got := vars(h.call("PUT", "/env_vars", `{"vars":{},"replace":true}`)); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

func TestAccount(t *testing.T) {
	h := newHarness(t)
	if got := read[api.KeyValidation](h.call("POST", "/keys/validate", "").want(200)); !got.Valid {
		t.Errorf("%+v", got)
	}
	h.callAs("x", "POST", "/keys/validate", "").want(401)
	if got := read[api.Version](h.call("GET", "/system/version", "").want(200)); got.WorkspaceVersion != "1.2.3" || got.GitHash != "abc" {
		t.Errorf("%+v", got)
	}
	if got := read[api.Health](h.callAs("", "GET", "!/health", "").want(200)); got.Status != "ok" || got.Connections.HTTP != 1 {
		t.Errorf("%+v", got)
	}
	h.must(h.catalog.InsertImage(t.Context(), catalog.Image{ID: ident.New(), Name: "default", SizeMiB: 200, SourceType: "debian"}))
	images := read[api.ImageList](h.call("GET", "/images", "").want(200))
	if images.Total != 1 || images.Images[0].ImageName != "default" || !images.Images[0].IsPublic || images.Limit != 50 {
		t.Errorf("%+v", images)
	}
	a := h.callAs("", "GET", "!/openapi.yaml", "")
	if a.status != 200 || !strings.Contains(a.body, "/api/v1/vm/new_root") {
		t.Errorf("status %d: %.200s", a.status, a.body)
	}
}
