// Package conformance goes through every operation that a server describes in its OpenAPI document, the way the clients in
// the field use it: success, each error, the conventions of spec/api.md section 1, and what another organisation gets to
// see. An operation without a case fails it. It runs against machines in memory (conformance_test.go) and against real
// ones (test/conformance_test.go).
package conformance

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// Target is a server with two organisations that have nothing yet.
type Target struct {
	URL      string // http://host:port
	Key      string // API key of one
	OtherKey string // of the other
	Fake     bool   // the machines are in memory
}

// operation says how an operation is called and what comes of it.
type operation struct {
	// path gives what the placeholders of the path stand for, in objects that this call may use up.
	path func(w *world) map[string]string
	// foreign: the placeholders name what belongs to everybody, or nothing that belongs to anybody.
	foreign bool
	query   string
	// body of the request; nil: it has none.
	body func(w *world, path map[string]string) object
	// raw is an archive instead of body.
	raw func(w *world) string
	// status of success.
	status int
	// onFake is the error that machines in memory give instead, where they are no match for real ones.
	onFake int
	// check looks at a successful answer, beyond what its schema demands.
	check func(w *world, a answer, path map[string]string)
	// refused are requests that get another status.
	refused []refusal
	// secret: the answer holds what the server does not keep, so a repetition makes another one.
	secret bool
	// special replaces everything: the operation is no request with an answer.
	special func(w *world)
}

// refusal is a request that is refused. What is nil or empty is as in the operation's own request.
type refusal struct {
	why    string
	path   func(w *world) map[string]string
	query  string
	body   func(w *world, path map[string]string) object
	raw    string // body that is no JSON object
	other  bool   // by the other organisation
	status int
	says   string
}

// object is a JSON object.
type object = map[string]any

// Run checks all operations of a server.
func Run(t *testing.T, target Target) {
	w := newWorld(t, target)
	described := w.describe()
	cases := operations()
	for id, d := range described {
		if _, ok := cases[id]; !ok {
			t.Errorf("operation %s (%s %s) has no case in package conformance", id, d.method, d.path)
		}
	}
	t.Run("before anything exists", func(t *testing.T) { w.in(t).emptyLists(described) })
	for _, id := range slices.Sorted(maps.Keys(cases)) {
		d, ok := described[id]
		if !ok {
			t.Errorf("there is a case for %s, which the server does not describe", id)
			continue
		}
		t.Run(id, func(t *testing.T) { w.in(t).run(d, cases[id]) })
	}
}

// run checks one operation. What is refused comes first, so that success afterwards shows that nothing was changed.
func (w *world) run(d description, o operation) {
	if o.special != nil {
		o.special(w)
		return
	}
	c := call{method: d.method, path: d.path, query: o.query, key: w.target.Key}
	if o.path != nil {
		c.values = o.path(w)
	}
	if o.body != nil {
		c.body = o.body(w, c.values)
	}
	if o.raw != nil {
		c.raw = o.raw(w)
	}
	w.t.Run("key", func(t *testing.T) { w.in(t).keys(d, o, c) })
	w.t.Run("placeholders", func(t *testing.T) { w.in(t).placeholders(c) })
	w.t.Run("types", func(t *testing.T) { w.in(t).types(d, c) })
	for _, r := range o.refused {
		w.t.Run(r.why, func(t *testing.T) { w.in(t).refuse(c, r) })
	}
	w.t.Run("success", func(t *testing.T) { w.in(t).succeed(d, o, c) })
}

// keys: without a key, with a wrong one, and with that of another organisation.
func (w *world) keys(d description, o operation, c call) {
	for what, key := range map[string]string{"no": "", "wrong": strings.Repeat("0", len(w.target.Key))} {
		c.key = key
		if key == "" && d.public {
			continue // the successful call has one
		}
		if a := w.send(c); !a.isError(401) {
			w.t.Errorf("with %s key: %s", what, a)
		}
	}
	if len(c.values) == 0 || o.foreign {
		return
	}
	c.key = w.target.OtherKey
	if a := w.send(c); !a.isError(404) {
		w.t.Errorf("as another organisation: %s", a)
	}
}

// placeholders: nothing that is no id or name gets through, and what is well formed and unknown is not found.
func (w *world) placeholders(c call) {
	for name, value := range c.values {
		bad := []string{"..%2fx", "a%20b", "%01", "%d0%b0pp", strings.Repeat("x", 200), "x:y", "%F0%9F%98%80"}
		unknown := "no-such-thing"
		if isID(value) {
			bad, unknown = append(bad, "alias", value+"0", value[:35]), "00000000-0000-4000-8000-000000000000"
		}
		for _, v := range bad {
			if a := w.send(c.with(name, v)); !a.isError(400) && !a.isError(404) {
				w.t.Errorf("{%s} is %q: %s", name, v, a)
			}
		}
		if name == "key" {
			unknown = "NO_SUCH_THING"
		}
		if a := w.send(c.with(name, unknown)); !a.isError(404) {
			w.t.Errorf("{%s} is unknown: %s", name, a)
		}
	}
}

// types: a field or parameter of another type than described is refused, and what is no JSON object.
func (w *world) types(d description, c call) {
	for _, p := range d.parameters {
		if p.In == "query" && !p.Schema.is("string") {
			q := c
			q.query = p.Name + "=x"
			if a := w.send(q); !a.isError(400) {
				w.t.Errorf("query %s: %s", q.query, a)
			}
		}
	}
	if d.body == nil {
		return
	}
	for _, raw := range []string{"{", "[]", `"x"`, "{} {}", "\x00", `{"a":`} {
		r := c
		r.raw = raw
		if a := w.send(r); !a.isError(400) {
			w.t.Errorf("body %q: %s", raw, a)
		}
	}
	for name, property := range w.schema(*d.body).Properties {
		wrong := c
		wrong.body = maps.Clone(c.body)
		if wrong.body == nil {
			wrong.body = object{}
		}
		property = w.schema(property)
		wrong.body[name] = "x"
		if property.is("string") {
			wrong.body[name] = object{"not": []int{1}}
		}
		if a := w.send(wrong); !a.isError(400) {
			w.t.Errorf("field %s is %v: %s", name, wrong.body[name], a)
		}
	}
}

func (w *world) refuse(c call, r refusal) {
	if r.path != nil {
		c.values = r.path(w)
	}
	if r.body != nil {
		c.body = r.body(w, c.values)
	}
	if r.other {
		c.key = w.target.OtherKey
	}
	if r.query != "" {
		c.query = r.query
	}
	if r.raw != "" || r.body != nil {
		c.raw = r.raw
	}
	a := w.send(c)
	if !a.isError(r.status) || !strings.Contains(a.body, r.says) {
		w.t.Errorf("want %d with %q: %s", r.status, r.says, a)
	}
	if r.status == 409 && a.header.Get("X-Should-Retry") != "false" {
		w.t.Errorf("a conflict that clients would try again: %s", a)
	}
}

// succeed makes the call as awkwardly as clients do: doubled slashes, no Content-Type, fields that nobody knows. A call
// that changes something is repeated with the same idempotency key.
func (w *world) succeed(d description, o operation, c call) {
	c.slashes = true
	if c.body != nil {
		c.body = maps.Clone(c.body)
		c.body["a_field_of_tomorrow"] = object{"a": []any{1, nil}}
	}
	changes := d.method != "GET" && !o.secret
	if changes {
		c.idempotency = w.unique("k")
	}
	a := w.send(c)
	if w.target.Fake && o.onFake != 0 && a.isError(o.onFake) {
		return
	}
	if a.status != o.status {
		w.t.Fatalf("want %d: %s", o.status, a)
	}
	w.fits(d, a)
	if o.check != nil {
		o.check(w, a, c.values)
	}
	switch again := w.send(c); {
	case changes && (again.status != a.status || again.body != a.body):
		w.t.Errorf("repeated with the same idempotency key: first %s, then %s", a, again)
	case !changes:
		c.slashes, c.contentType = false, "application/json" // and an empty body
		if again := w.send(c); again.status != a.status {
			w.t.Errorf("an empty body with a Content-Type: %s", again)
		}
	}
	if changes {
		other := c
		other.query = "another=1"
		if a := w.send(other); !a.isError(409) && !a.isError(400) {
			w.t.Errorf("another request with the same idempotency key: %s", a)
		}
	}
}
