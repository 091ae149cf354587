package server

import (
	_ "embed"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

//go:embed docs.html
var docsHTML string

var docsTemplate = template.Must(template.New("docs").Parse(docsHTML))

// docsPage is what the page is made of.
type docsPage struct {
	Title, Version, Description string
	Groups                      []docsGroup
	Objects                     []docsObject
}

type docsGroup struct {
	Name       string
	Operations []docsOperation
}

type docsOperation struct {
	ID, Method, Path, Summary, Description string
	Public                                 bool // needs no key
	Parameters                             []docsField
	Body                                   docsType
	Answers                                []docsAnswer
}

type docsAnswer struct {
	Status, Description string
	Type                docsType
}

type docsObject struct {
	Name   string
	Fields []docsField
}

type docsField struct {
	Name, In string
	Type     docsType
	Doc      string
	Required bool
}

// docsType is a type in words; Object names the object it is made of, if it is.
type docsType struct{ Text, Object string }

// serveDocs shows the OpenAPI document as a page that loads nothing from anywhere.
func (s *Server) serveDocs(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	if err := docsTemplate.Execute(w, docsOf(s.api.OpenAPI(), s.Version.Version)); err != nil {
		s.Logger.DebugContext(r.Context(), "page not sent", "error", err)
	}
}

func docsOf(o *huma.OpenAPI, version string) docsPage {
	page := docsPage{Title: o.Info.Title, Version: version, Description: o.Info.Description}
	groups := map[string][]docsOperation{}
	for path, item := range o.Paths {
		for method, op := range map[string]*huma.Operation{http.MethodGet: item.Get, http.MethodPost: item.Post, http.MethodPut: item.Put,
			http.MethodPatch: item.Patch, http.MethodDelete: item.Delete} {
			if op != nil && !op.Hidden {
				tag := strings.Join(op.Tags, ", ")
				groups[tag] = append(groups[tag], showOperation(method, path, op))
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		slices.SortFunc(groups[name], func(a, b docsOperation) int { return strings.Compare(a.Path+" "+a.Method, b.Path+" "+b.Method) })
		page.Groups = append(page.Groups, docsGroup{Name: name, Operations: groups[name]})
	}
	schemas := o.Components.Schemas.Map()
	for _, name := range slices.Sorted(maps.Keys(schemas)) {
		page.Objects = append(page.Objects, docsObject{Name: name, Fields: fieldsOf(schemas[name])})
	}
	return page
}

func showOperation(method, path string, op *huma.Operation) docsOperation {
	shown := docsOperation{ID: op.OperationID, Method: method, Path: path, Summary: op.Summary, Description: op.Description,
		Public: op.Security != nil && len(op.Security) == 0}
	for _, p := range op.Parameters {
		shown.Parameters = append(shown.Parameters, docsField{Name: p.Name, In: p.In, Type: typeOf(p.Schema), Doc: p.Description, Required: p.Required})
	}
	if op.RequestBody != nil {
		shown.Body = contentType(op.RequestBody.Content)
	}
	for _, status := range slices.Sorted(maps.Keys(op.Responses)) {
		answer := op.Responses[status]
		shown.Answers = append(shown.Answers, docsAnswer{Status: status, Description: answer.Description, Type: contentType(answer.Content)})
	}
	return shown
}

func contentType(content map[string]*huma.MediaType) docsType {
	for _, kind := range slices.Sorted(maps.Keys(content)) {
		if content[kind].Schema != nil {
			return typeOf(content[kind].Schema)
		}
	}
	return docsType{}
}

func fieldsOf(s *huma.Schema) []docsField {
	var fields []docsField
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		p := s.Properties[name]
		fields = append(fields, docsField{Name: name, Type: typeOf(p), Doc: p.Description, Required: slices.Contains(s.Required, name)})
	}
	return fields
}

func typeOf(s *huma.Schema) docsType {
	switch {
	case s == nil:
		return docsType{}
	case s.Ref != "":
		name := s.Ref[strings.LastIndexByte(s.Ref, '/')+1:]
		return docsType{Text: name, Object: name}
	case s.Type == huma.TypeArray:
		item := typeOf(s.Items)
		return docsType{Text: "list of " + item.Text, Object: item.Object}
	case s.Type == huma.TypeObject && s.AdditionalProperties != nil:
		if values, ok := s.AdditionalProperties.(*huma.Schema); ok {
			value := typeOf(values)
			return docsType{Text: "map of " + value.Text, Object: value.Object}
		}
	}
	text := s.Type
	if s.Format != "" {
		text += " (" + s.Format + ")"
	}
	if s.Default != nil {
		if n, ok := s.Default.(int64); ok {
			text += ", default " + strconv.FormatInt(n, 10)
		}
	}
	if s.Nullable {
		text += " or null"
	}
	return docsType{Text: text}
}
