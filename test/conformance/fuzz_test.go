package conformance

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"vers/test/rig"
)

// harmless are the statuses that a request may get, whatever is in it: success, a refusal, and what this server cannot
// give. Any other is a fault of ours.
func harmless(status int) bool {
	switch status {
	case http.StatusNotImplemented, http.StatusServiceUnavailable, http.StatusInsufficientStorage:
		return true
	}
	return status >= 200 && status < 300 || status >= 400 && status < 500
}

// FuzzRequests sends bodies, queries and names that nobody has thought of to every operation but those that stream: it is
// answered, in JSON where clients read JSON, and afterwards the server still serves. Commands are never started, because they
// would run on this machine: where a body may hold one, the VM does not exist.
func FuzzRequests(f *testing.F) {
	s := rig.New(f)
	target := Target{URL: s.URL, Key: s.Key, OtherKey: s.OtherKey, Fake: true}
	cases := operations()
	ids := slices.Sorted(maps.Keys(cases))
	ids = slices.DeleteFunc(ids, func(id string) bool {
		return cases[id].special != nil || id == "deploy" // would fetch from anywhere
	})
	for i := range ids {
		f.Add(uint(i), "", "", "")
		f.Add(uint(i), `{"count":-1,"name":"../x","tag_name":"","commit_id":null,"limit":1e400}`, "limit=-1&offset=x&%zz", "..%2f..%2fx")
		f.Add(uint(i), `{"vm_config":{"mem_size_mib":9223372036854775808,"image_name":"\u0000"}}`, "wait_boot=true&wait_boot=2", "\u202e")
		f.Add(uint(i), strings.Repeat("[", 2000), "a=b;c", strings.Repeat("x", 300))
		f.Add(uint(i), "{\"name\":\"\xff\xfe\"}", "\x00", "\xff")
		f.Add(uint(i), `{"description":{},"labels":[1],"command":"true","state":5}`, "format=%ff", "%")
	}
	var once sync.Once
	var base *world
	var described map[string]description
	f.Fuzz(func(t *testing.T, which uint, body, query, name string) {
		once.Do(func() {
			base = newWorld(t, target)
			described = base.describe()
		})
		w := base.in(t)
		id := ids[which%uint(len(ids))]
		d, o := described[id], cases[id]
		values := map[string]string{}
		for _, p := range d.parameters {
			if p.In == "path" {
				values[p.Name] = name
			}
		}
		path := d.path
		for placeholder, value := range values {
			path = strings.ReplaceAll(path, "{"+placeholder+"}", escapeSegment(value))
		}
		w.survive(id, d.method, path, query, body)
		if len(values) > 0 && id != "exec" && id != "write-file" && !o.foreign { // and with names that exist
			path = d.path
			for placeholder, value := range o.path(w) {
				path = strings.ReplaceAll(path, "{"+placeholder+"}", value)
			}
			w.survive(id, d.method, path, query, body)
		}
	})
}

// escapeSegment leaves a name as it is but for what ends a path, so that broken escapes reach the server too.
func escapeSegment(name string) string {
	return strings.NewReplacer("?", "%3F", "#", "%23", " ", "%20", "\r", "%0D", "\n", "%0A").Replace(name)
}

// survive sends one request with the server's key. What it made is deleted again.
func (w *world) survive(id, method, path, query, body string) {
	w.t.Helper()
	request, err := http.NewRequestWithContext(w.t.Context(), method, w.target.URL, strings.NewReader(body))
	w.must(err)
	request.URL.Opaque = "//" + request.URL.Host + visible(path) // as it is, whatever the rules for URLs say
	request.URL.RawQuery = visible(query)
	request.Header.Set("Authorization", "Bearer "+w.target.Key)
	response, err := client.Do(request)
	if err != nil {
		w.t.Fatalf("%s %s?%s with %q: %v", method, path, query, body, err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		w.t.Fatalf("%s %s?%s with %q: %v", method, path, query, body, err)
	}
	a := answer{request: method + " " + path + "?" + query, status: response.StatusCode, header: response.Header, body: string(data)}
	switch {
	case !harmless(a.status):
		w.t.Errorf("%s with %q: %s", id, body, a)
	case a.status >= 400 && !a.isError(a.status) && strings.Contains(a.header.Get("Content-Type"), "json"):
		w.t.Errorf("%s with %q: an error that clients cannot read: %s", id, body, a)
	}
	w.removeMade(a)
}

// visible escapes what may not be in a request line at all.
func visible(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f {
			const hex = "0123456789ABCDEF"
			b.WriteString("%" + string(hex[c>>4]) + string(hex[c&15]))
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// removeMade deletes the VMs that an answer tells of, so that the rig stays small.
func (w *world) removeMade(a answer) {
	if a.status != http.StatusCreated {
		return
	}
	var vms []struct {
		VMID string `json:"vm_id"`
	}
	text := a.body
	if !strings.HasPrefix(strings.TrimSpace(text), "[") {
		text = "[" + text + "]"
	}
	if json.Unmarshal([]byte(text), &vms) != nil {
		return
	}
	for _, vm := range vms {
		if vm.VMID != "" && vm.VMID != w.made.vm {
			w.send(call{method: http.MethodDelete, path: "/api/v1/vm/" + vm.VMID, key: w.target.Key})
		}
	}
}
