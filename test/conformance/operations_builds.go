package conformance

import (
	"encoding/json"
	"strings"
)

const builtHere = "FROM scratch\nENV A=1\nRUN true\nCOPY file /srv/vers-conformance/\nCMD [\"serve\"]\n"

// folder is a context of builds.
func (w *world) folder(dockerfile string) string {
	return w.archive(map[string]string{"Dockerfile": dockerfile, "file": "content"})
}

func buildOperations() map[string]operation {
	return map[string]operation{
		"build-commit": {status: 200, secret: true, query: "mem_size_mib=192&tag=built:latest", raw: func(w *world) string { return w.folder(builtHere) },
			check: func(w *world, a answer, _ map[string]string) { w.built(a) },
			refused: []refusal{
				{why: "no archive", raw: strings.Repeat("x", 1024), status: 400, says: "archive"},
				{why: "a bad argument", query: "build_arg=x", status: 400, says: "KEY=VALUE"},
				{why: "a negative limit", query: "ready_timeout_secs=-1", status: 400, says: "positive"},
			}},
	}
}

// lines takes a stream of events apart.
func (w *world) lines(a answer) []object {
	w.t.Helper()
	var events []object
	for line := range strings.Lines(a.body) {
		var e object
		w.must(json.Unmarshal([]byte(line), &e))
		events = append(events, e)
	}
	if len(events) == 0 || a.header.Get("Content-Type") != "application/x-ndjson" {
		w.t.Fatal(a)
	}
	return events
}

// built: the result is a commit of the organisation under its tag, a second build comes from the cache, and what fails says
// which step.
func (w *world) built(a answer) {
	events := w.lines(a)
	result, _ := events[len(events)-1]["result"].(object)
	if result == nil || events[0]["type"] != "step" || events[0]["text"] != "FROM scratch" {
		w.t.Fatal(a)
	}
	commit, _ := result["commit_id"].(string)
	if tag := w.do("GET", "/repositories/built/tags/latest", nil); tag.text(w.t, "commit_id") != commit {
		w.t.Errorf("the tag is not at %s: %s", commit, tag)
	}
	c := call{method: "POST", path: "/api/v1/builds", query: "mem_size_mib=192", key: w.target.Key, raw: w.folder(builtHere)}
	events = w.lines(w.send(c))
	if again, _ := events[len(events)-1]["result"].(object); again["commit_id"] != commit || again["cached"] != true || again["cached_steps"] != 2.0 {
		w.t.Errorf("again: %v", events)
	}
	for dockerfile, want := range map[string]object{
		"FROM scratch\nRUN exit 3": {"code": "step_failed", "line": 2.0, "exit_code": 3.0},
		"FROM scratch\nRUM x":      {"code": "invalid", "status": 400.0},
		"FROM nothing-here":        {"code": "not_found", "status": 404.0, "line": 1.0},
	} {
		c.raw = w.folder(dockerfile)
		events := w.lines(w.send(c))
		failed, _ := events[len(events)-1]["error"].(object)
		for field, value := range want {
			if failed[field] != value {
				w.t.Errorf("%q: %s is %v, want %v: %v", dockerfile, field, failed[field], value, failed)
			}
		}
	}
}
