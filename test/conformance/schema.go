package conformance

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// description is what the server says about an operation.
type description struct {
	method, path string
	parameters   []parameter
	body         *schema // of the request
	answers      map[string]*schema
	public       bool
}

type parameter struct {
	Name, In string
	Schema   schema
}

// schema is the part of JSON Schema that the document uses.
type schema struct {
	Ref                  string `json:"$ref"`
	Type                 any    // a name or a list of names
	Format               string
	Properties           map[string]schema
	Required             []string
	Items                *schema
	AdditionalProperties any
}

func (s schema) is(kind string) bool {
	switch t := s.Type.(type) {
	case string:
		return t == kind
	case []any:
		return slices.Contains(t, any(kind))
	}
	return false
}

// describe reads the server's own description of its operations.
func (w *world) describe() map[string]description {
	w.t.Helper()
	a := w.send(call{method: "GET", path: "/openapi.json"})
	type media struct {
		Content map[string]struct{ Schema schema }
	}
	var document struct {
		Paths map[string]map[string]struct {
			OperationID string
			Parameters  []parameter
			RequestBody *media
			Responses   map[string]media
			Security    *[]any
		}
		Components struct{ Schemas map[string]schema }
	}
	if a.status != 200 {
		w.t.Fatal(a)
	}
	w.must(json.Unmarshal([]byte(a.body), &document))
	w.schemas = document.Components.Schemas
	described := map[string]description{}
	for path, methods := range document.Paths {
		for method, o := range methods {
			d := description{method: strings.ToUpper(method), path: path, parameters: o.Parameters, answers: map[string]*schema{},
				public: o.Security != nil && len(*o.Security) == 0}
			if o.RequestBody != nil {
				if content, ok := o.RequestBody.Content["application/json"]; ok {
					d.body = &content.Schema
				}
			}
			for status, r := range o.Responses {
				if content, ok := r.Content["application/json"]; ok {
					d.answers[status] = &content.Schema
				}
			}
			described[o.OperationID] = d
		}
	}
	return described
}

// schema follows a reference.
func (w *world) schema(s schema) schema {
	if name, ok := strings.CutPrefix(s.Ref, "#/components/schemas/"); ok {
		return w.schemas[name]
	}
	return s
}

// fits checks an answer against the schema of its status.
func (w *world) fits(d description, a answer) {
	w.t.Helper()
	s := d.answers[fmt.Sprint(a.status)]
	if s == nil {
		return // no body, or a stream
	}
	if !strings.Contains(a.header.Get("Content-Type"), "application/json") {
		w.t.Errorf("clients demand a Content-Type of application/json: %s", a)
	}
	if fault := w.mismatch(*s, a.json(w.t), "answer"); fault != "" {
		w.t.Errorf("%s: %s", fault, a)
	}
}

// mismatch says where a value is not what its schema says. A list that may not be null and is, crashes old clients.
func (w *world) mismatch(s schema, value any, where string) string {
	s = w.schema(s)
	kind := ""
	switch v := value.(type) {
	case nil:
		kind = "null"
	case bool:
		kind = "boolean"
	case float64:
		kind = "number"
	case string:
		kind = "string"
		switch s.Format {
		case "uuid":
			if !isID(v) {
				return fmt.Sprintf("%s is %q, which is no UUID", where, v)
			}
		case "date-time":
			if at, err := time.Parse(time.RFC3339Nano, v); err != nil || at.IsZero() || !strings.HasSuffix(v, "Z") {
				return fmt.Sprintf("%s is %q, which is no time in UTC", where, v)
			}
		}
	case []any:
		kind = "array"
		for i, item := range v {
			if fault := w.mismatch(*s.Items, item, fmt.Sprintf("%s[%d]", where, i)); fault != "" {
				return fault
			}
		}
	case object:
		kind = "object"
		for _, name := range s.Required {
			if _, ok := v[name]; !ok {
				return fmt.Sprintf("%s has no %s", where, name)
			}
		}
		for name, property := range s.Properties {
			if item, ok := v[name]; ok {
				if fault := w.mismatch(property, item, where+"."+name); fault != "" {
					return fault
				}
			}
		}
	}
	if s.Type != nil && !s.is(kind) && !(kind == "number" && s.is("integer")) {
		return fmt.Sprintf("%s is of type %s, not %v", where, kind, s.Type)
	}
	return ""
}

// emptyLists: what lists the objects of an organisation that has none gives [], never null.
func (w *world) emptyLists(described map[string]description) {
	for id, d := range described {
		if d.method != "GET" || strings.Contains(d.path, "{") {
			continue
		}
		a := w.send(call{method: d.method, path: d.path, key: w.target.OtherKey})
		if a.status != 200 {
			w.t.Errorf("%s: %s", id, a)
			continue
		}
		w.fits(d, a)
	}
}
