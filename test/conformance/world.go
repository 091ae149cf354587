package conformance

import (
	"fmt"
	"sync/atomic"
	"testing"
)

// world is what the operations are tried on. Objects that no operation uses up are made once, when they are first asked
// for; they belong to the organisation of Key.
type world struct {
	t       *testing.T
	target  Target
	schemas map[string]schema
	made    *made
}

type made struct {
	count           atomic.Int64
	vm, commit, org string
}

func newWorld(t *testing.T, target Target) *world {
	return &world{t: t, target: target, made: &made{}}
}

// in gives the world to a subtest.
func (w *world) in(t *testing.T) *world {
	return &world{t: t, target: w.target, schemas: w.schemas, made: w.made}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// unique gives a name that nothing has.
func (w *world) unique(prefix string) string {
	return fmt.Sprintf("%s-%d", prefix, w.made.count.Add(1))
}

// do makes a call that has to succeed.
func (w *world) do(method, path string, body object) answer {
	w.t.Helper()
	return w.doAs(w.target.Key, method, path, body)
}

func (w *world) doAs(key, method, path string, body object) answer {
	w.t.Helper()
	a := w.send(call{method: method, path: "/api/v1" + path, body: body, key: key})
	if a.status >= 300 {
		w.t.Fatal(a)
	}
	return a
}

const smallVM = 192 // MiB

// newVM makes a running VM.
func (w *world) newVM() string {
	w.t.Helper()
	a := w.send(call{method: "POST", path: "/api/v1/vm/new_root", query: "wait_boot=true", key: w.target.Key,
		body: object{"vm_config": object{"mem_size_mib": smallVM}}})
	if a.status != 201 {
		w.t.Fatal(a)
	}
	return a.text(w.t, "vm_id")
}

// vm gives a running VM that stays.
func (w *world) vm() string {
	w.t.Helper()
	if w.made.vm == "" {
		w.made.vm = w.newVM()
	}
	return w.made.vm
}

func (w *world) newCommit() string {
	w.t.Helper()
	return w.do("POST", "/vm/"+w.vm()+"/commit", nil).text(w.t, "commit_id")
}

// commit gives a commit that stays.
func (w *world) commit() string {
	w.t.Helper()
	if w.made.commit == "" {
		w.made.commit = w.newCommit()
	}
	return w.made.commit
}

// newRepository makes a repository with the tag latest at the commit that stays.
func (w *world) newRepository() string {
	w.t.Helper()
	name := w.unique("repo")
	w.do("POST", "/repositories", object{"name": name})
	w.do("POST", "/repositories/"+name+"/tags", object{"tag_name": "latest", "commit_id": w.commit()})
	return name
}

func (w *world) newPublicRepository() string {
	w.t.Helper()
	name := w.newRepository()
	w.do("PATCH", "/repositories/"+name+"/visibility", object{"is_public": true})
	return name
}

func (w *world) newTag() string {
	w.t.Helper()
	name := w.unique("tag")
	w.do("POST", "/commit_tags", object{"tag_name": name, "commit_id": w.commit()})
	return name
}

// foreignCommit gives a commit of the other organisation, public or not.
func (w *world) foreignCommit(public bool) string {
	w.t.Helper()
	a := w.send(call{method: "POST", path: "/api/v1/vm/new_root", query: "wait_boot=true", key: w.target.OtherKey,
		body: object{"vm_config": object{"mem_size_mib": smallVM}}})
	vm := a.text(w.t, "vm_id")
	id := w.doAs(w.target.OtherKey, "POST", "/vm/"+vm+"/commit", nil).text(w.t, "commit_id")
	w.doAs(w.target.OtherKey, "DELETE", "/vm/"+vm, nil)
	if public {
		w.doAs(w.target.OtherKey, "PATCH", "/commits/"+id, object{"is_public": true})
	}
	return id
}

// organisation gives the name of the organisation of Key.
func (w *world) organisation() string {
	w.t.Helper()
	if w.made.org == "" {
		w.made.org = w.do("GET", "/whoami", nil).text(w.t, "org_name")
	}
	return w.made.org
}
