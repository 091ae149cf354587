package conformance

import "strings"

func commitOperations() map[string]operation {
	inUse := func(w *world) string {
		id := w.newCommit()
		w.do("POST", "/vm/from_commit", object{"commit_id": id})
		return id
	}
	tagged := func(w *world) string {
		id := w.newCommit()
		w.do("POST", "/commit_tags", object{"tag_name": w.unique("tag"), "commit_id": id})
		return id
	}
	return map[string]operation{
		"commit-vm": {status: 201, path: at("id", (*world).vm), query: "keep_paused=false",
			check: func(w *world, a answer, path map[string]string) {
				id := a.text(w.t, "commit_id")
				if list := w.do("GET", "/commits", nil); !strings.Contains(list.body, id) {
					w.t.Errorf("commit %s is not listed when it is acknowledged", id)
				}
				if state := w.state(path["id"]); state != "running" {
					w.t.Errorf("after a commit the VM is %s", state)
				}
				chosen := "12345678-1234-4234-8234-123456789abc"
				b := w.do("POST", "/vm/"+path["id"]+"/commit", object{"commit_id": chosen, "name": "a name", "description": "why"})
				if b.text(w.t, "commit_id") != chosen {
					w.t.Error(b)
				}
			},
			refused: []refusal{
				{why: "taken id", body: func(w *world, _ map[string]string) object { return object{"commit_id": w.commit()} }, status: 409, says: "exists"},
				{why: "malformed id", body: fixed(object{"commit_id": "x"}), status: 400},
				{why: "a very long name", body: fixed(object{"name": strings.Repeat("x", 5000)}), status: 400},
			}},
		"commit-history": {status: 200, path: at("id", (*world).commit)},
		"list-commits": {status: 200, query: "limit=1&offset=0", refused: []refusal{
			{why: "no limit", query: "limit=0", status: 400},
			{why: "negative offset", query: "offset=-1", status: 400},
		}},
		"list-public-commits": {status: 200},
		"diff-commits": {status: 200, onFake: 409, query: "path=/&limit=10", path: func(w *world) map[string]string {
			return map[string]string{"id": w.commit(), "other": w.commit()}
		}, refused: []refusal{
			{why: "no limit", query: "limit=0", status: 400},
			{why: "relative path", query: "path=etc", status: 400},
		}},
		"update-commit": {status: 200, path: at("id", (*world).newCommit), body: fixed(object{"is_public": true, "name": "n", "description": nil}),
			check: func(w *world, _ answer, path map[string]string) {
				if list := w.do("GET", "/commits/public", nil); !strings.Contains(list.body, path["id"]) {
					w.t.Errorf("a published commit is not listed: %s", list)
				}
				w.do("PATCH", "/commits/"+path["id"], object{"is_public": false})
			},
			refused: []refusal{
				{why: "nothing said", body: fixed(object{}), status: 400},
				{why: "somebody else's", path: at("id", func(w *world) string { return w.foreignCommit(true) }), status: 403},
			}},
		"delete-commit": {status: 204, path: at("id", (*world).newCommit), refused: []refusal{
			{why: "in use", path: at("id", inUse), status: 409, says: "active VMs"},
			{why: "tagged", path: at("id", tagged), status: 409, says: "tag"},
		}},
	}
}

// badNames are refusals of all names that break the rules.
func badNames(field string, limit int, rest func(w *world) object) []refusal {
	var refused []refusal
	for _, name := range append(noNames, strings.Repeat("a", limit+1)) {
		refused = append(refused, refusal{why: "name " + strings.ToValidUTF8(name, "?"), status: 400,
			body: func(w *world, _ map[string]string) object {
				o := object{field: name}
				if rest != nil {
					for k, v := range rest(w) {
						o[k] = v
					}
				}
				return o
			}})
	}
	return refused
}

func repositoryOperations() map[string]operation {
	repo := at("name", (*world).newRepository)
	commit := func(w *world) object { return object{"commit_id": w.commit()} }
	tag := func(w *world) map[string]string { return map[string]string{"name": w.newRepository(), "tag": "latest"} }
	foreign := func(public bool, field string) func(w *world, _ map[string]string) object {
		return func(w *world, _ map[string]string) object {
			return object{field: w.foreignCommit(public), "tag_name": w.unique("t")}
		}
	}
	return map[string]operation{
		"list-repositories": {status: 200},
		"create-repository": {status: 201, body: func(w *world, _ map[string]string) object {
			return object{"name": w.unique("made"), "description": "d"}
		}, refused: append(badNames("name", 64, nil), refusal{why: "taken", status: 409, says: "repository already exists",
			body: func(w *world, _ map[string]string) object { return object{"name": w.newRepository()} }})},
		"get-repository": {status: 200, path: repo},
		"delete-repository": {status: 204, path: repo, check: func(w *world, _ answer, _ map[string]string) {
			w.do("GET", "/vm/commits/"+w.commit()+"/parents", nil) // the tag's commit stays
		}},
		"set-repository-visibility": {status: 204, path: repo, body: fixed(object{"is_public": true}),
			check: func(w *world, _ answer, path map[string]string) {
				if list := w.doAs(w.target.OtherKey, "GET", "/public/repositories", nil); !strings.Contains(list.body, path["name"]) {
					w.t.Errorf("a public repository is not listed: %s", list)
				}
			}, refused: []refusal{{why: "nothing said", body: fixed(object{}), status: 400}}},
		"fork-repository": {status: 201,
			body: func(w *world, _ map[string]string) object {
				return object{"source_org": w.organisation(), "source_repo": w.newPublicRepository(), "source_tag": "latest", "repo_name": w.unique("fork")}
			},
			check: func(w *world, a answer, _ map[string]string) {
				w.do("DELETE", "/vm/"+a.text(w.t, "vm_id"), nil)
				if a.text(w.t, "commit_id") == w.commit() {
					w.t.Errorf("the fork's commit is the source's: %s", a)
				}
			},
			refused: []refusal{
				{why: "private", status: 404, body: func(w *world, _ map[string]string) object {
					return object{"source_org": w.organisation(), "source_repo": w.newRepository(), "source_tag": "latest"}
				}},
				{why: "unknown organisation", status: 404, body: fixed(object{"source_org": "nobody", "source_repo": "a", "source_tag": "b"})},
				{why: "nothing said", status: 400, body: fixed(object{})},
				{why: "tag exists", status: 409, body: func(w *world, _ map[string]string) object {
					return object{"source_org": w.organisation(), "source_repo": w.newPublicRepository(), "source_tag": "latest"}
				}},
			}},
		"list-repository-tags": {status: 200, path: repo},
		"create-repository-tag": {status: 201, path: repo, body: func(w *world, _ map[string]string) object {
			return object{"tag_name": "second", "commit_id": w.commit(), "description": nil}
		}, refused: append(badNames("tag_name", 128, commit),
			refusal{why: "taken", status: 409, body: func(w *world, _ map[string]string) object {
				return object{"tag_name": "latest", "commit_id": w.commit()}
			}},
			refusal{why: "unknown commit", status: 404, body: fixed(object{"tag_name": "x", "commit_id": unknownID})},
			refusal{why: "no commit", status: 400, body: fixed(object{"tag_name": "x"})},
			refusal{why: "somebody else's public commit", status: 403, says: "fork", body: foreign(true, "commit_id")},
			refusal{why: "somebody else's private commit", status: 404, body: foreign(false, "commit_id")},
		)},
		"get-repository-tag": {status: 200, path: tag},
		"update-repository-tag": {status: 204, path: tag, body: func(w *world, _ map[string]string) object {
			return object{"commit_id": w.newCommit(), "description": "moved", "expected_commit_id": w.commit()}
		}, refused: []refusal{
			{why: "nothing to change", status: 400, body: fixed(object{})},
			{why: "somebody else's public commit", status: 403, says: "fork", body: foreign(true, "commit_id")},
			{why: "unknown commit", status: 404, body: fixed(object{"commit_id": unknownID})},
			{why: "moved meanwhile", status: 409, body: func(w *world, _ map[string]string) object {
				return object{"commit_id": w.commit(), "expected_commit_id": w.newCommit()}
			}},
		}},
		"delete-repository-tag": {status: 204, path: tag},
		"repository-tag-history": {status: 200, path: tag, check: func(w *world, a answer, _ map[string]string) {
			if entries, _ := a.json(w.t).(object)["entries"].([]any); len(entries) != 1 || entries[0].(object)["action"] != "create" {
				w.t.Error(a)
			}
		}},
		"get-repository-tag-protection": {status: 200, path: tag},
		"protect-repository-tag": {status: 200, path: tag, body: func(w *world, _ map[string]string) object {
			return object{"keys": []string{w.do("GET", "/whoami", nil).text(w.t, "key_id")}}
		}, refused: []refusal{{why: "unknown key", status: 404, body: fixed(object{"keys": []string{unknownID}})}}},
		"roll-back-repository-tag": {status: 200, path: func(w *world) map[string]string {
			values := tag(w)
			w.do("PATCH", "/repositories/"+values["name"]+"/tags/latest", object{"commit_id": w.newCommit()})
			return values
		}, check: func(w *world, a answer, _ map[string]string) {
			if a.text(w.t, "commit_id") != w.commit() {
				w.t.Error(a)
			}
		}, refused: []refusal{{why: "nothing before", path: tag, status: 409}}},
	}
}

func tagOperations() map[string]operation {
	tag := at("name", (*world).newTag)
	return map[string]operation{
		"list-tags": {status: 200},
		"create-tag": {status: 201, body: func(w *world, _ map[string]string) object {
			return object{"tag_name": w.unique("made"), "commit_id": w.commit()}
		}, refused: append(badNames("tag_name", 64, func(w *world) object { return object{"commit_id": w.commit()} }),
			refusal{why: "taken", status: 409, body: func(w *world, _ map[string]string) object {
				return object{"tag_name": w.newTag(), "commit_id": w.commit()}
			}},
			refusal{why: "unknown commit", status: 404, body: fixed(object{"tag_name": "x", "commit_id": unknownID})},
			refusal{why: "somebody else's public commit", status: 403, body: func(w *world, _ map[string]string) object {
				return object{"tag_name": w.unique("t"), "commit_id": w.foreignCommit(true)}
			}},
		)},
		"get-tag": {status: 200, path: tag},
		"update-tag": {status: 204, path: tag, body: fixed(object{"description": nil}), refused: []refusal{
			{why: "nothing to change", status: 400, body: fixed(object{})},
			{why: "unknown commit", status: 404, body: fixed(object{"commit_id": unknownID})},
		}},
		"delete-tag": {status: 204, path: tag},
	}
}

func publicOperations() map[string]operation {
	values := func(names ...string) func(w *world) map[string]string {
		return func(w *world) map[string]string {
			all := map[string]string{"org": w.organisation(), "repo": w.newPublicRepository(), "tag": "latest"}
			picked := map[string]string{}
			for _, name := range names {
				picked[name] = all[name]
			}
			return picked
		}
	}
	return map[string]operation{
		"list-public-repositories":    {status: 200},
		"get-public-repository":       {status: 200, foreign: true, path: values("org", "repo")},
		"list-public-repository-tags": {status: 200, foreign: true, path: values("org", "repo")},
		"get-public-repository-tag":   {status: 200, foreign: true, path: values("org", "repo", "tag")},
	}
}
