package server

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"vers/api"
)

// Names that break the rules are refused on every endpoint that takes one, whether as a path segment or in a body.
func TestBadNamesEverywhere(t *testing.T) {
	h := newHarness(t)
	commit := h.newTag("latest")
	h.publish()
	quoted := func(name string) string { return strings.ToValidUTF8(fmt.Sprintf("%q", name), "") }
	for _, name := range []string{"../x", "..", ".", "a/b", "a b", "a:b", "a\x00b", "a\nb", "\x1b[31m", "ä", "аpp" /* Cyrillic a */, "ａｐｐ",
		"app\u200b", "a@b", strings.Repeat("a", 200)} {
		segment := url.PathEscape(name)
		if name == "." || name == ".." {
			segment = strings.ReplaceAll(name, ".", "%2e")
		}
		for _, c := range []struct{ method, path, body string }{
			{"GET", "/repositories/" + segment, ""},
			{"DELETE", "/repositories/" + segment, ""},
			{"PATCH", "/repositories/" + segment + "/visibility", `{"is_public":true}`},
			{"GET", "/repositories/" + segment + "/tags", ""},
			{"POST", "/repositories/" + segment + "/tags", `{"tag_name":"x","commit_id":"` + commit + `"}`},
			{"GET", "/repositories/app/tags/" + segment, ""},
			{"PATCH", "/repositories/app/tags/" + segment, `{"description":null}`},
			{"DELETE", "/repositories/app/tags/" + segment, ""},
			{"GET", "/repositories/app/tags/" + segment + "/history", ""},
			{"POST", "/repositories/app/tags/" + segment + "/rollback", ""},
			{"GET", "/repositories/app/tags/" + segment + "/protection", ""},
			{"PATCH", "/repositories/app/tags/" + segment + "/protection", `{"keys":[]}`},
			{"GET", "/repositories/" + segment + "/tags/latest/history", ""},
			{"GET", "/public/repositories/" + segment + "/app", ""},
			{"GET", "/public/repositories/acme/" + segment, ""},
			{"GET", "/public/repositories/acme/" + segment + "/tags", ""},
			{"GET", "/public/repositories/acme/app/tags/" + segment, ""},
			{"GET", "/commit_tags/" + segment, ""},
			{"PATCH", "/commit_tags/" + segment, `{"description":null}`},
			{"DELETE", "/commit_tags/" + segment, ""},
			{"POST", "/vm/branch/by_tag/" + segment, ""},
			{"POST", "/vm/branch/by_ref/" + segment + "/latest", ""},
			{"POST", "/vm/branch/by_ref/app/" + segment, ""},
			{"POST", "/repositories", `{"name":` + jsonText(name) + `}`},
			{"POST", "/repositories/app/tags", `{"tag_name":` + jsonText(name) + `,"commit_id":"` + commit + `"}`},
			{"POST", "/commit_tags", `{"tag_name":` + jsonText(name) + `,"commit_id":"` + commit + `"}`},
			{"POST", "/vm/from_commit", `{"tag_name":` + jsonText(name) + `}`},
			{"POST", "/vm/from_commit", `{"ref":` + jsonText(name+":latest") + `}`},
			{"POST", "/vm/from_commit", `{"ref":` + jsonText("app:"+name) + `}`},
			{"POST", "/repositories/fork", `{"source_org":` + jsonText(name) + `,"source_repo":"app","source_tag":"latest"}`},
			{"POST", "/repositories/fork", `{"source_org":"acme","source_repo":` + jsonText(name) + `,"source_tag":"latest"}`},
			{"POST", "/repositories/fork", `{"source_org":"acme","source_repo":"app","source_tag":` + jsonText(name) + `}`},
			{"POST", "/repositories/fork", `{"source_org":"acme","source_repo":"app","source_tag":"latest","repo_name":` + jsonText(name) + `}`},
			{"POST", "/repositories/fork", `{"source_org":"acme","source_repo":"app","source_tag":"latest","tag_name":` + jsonText(name) + `}`},
		} {
			if a := h.call(c.method, c.path, c.body); a.status != 400 {
				t.Errorf("%s %s %s with %s: status %d: %s", c.method, c.path, c.body, quoted(name), a.status, a.body)
			} else {
				a.want(400)
			}
		}
	}
	if repos := read[api.RepositoryList](h.call("GET", "/repositories", "").want(200)); len(repos.Repositories) != 1 {
		t.Errorf("%+v", repos)
	}
}

func jsonText(s string) string {
	text, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(text)
}
