package server

import (
	"cmp"
	"context"
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"vers/api"
)

// newAPI sets huma up: JSON only, unknown fields allowed, errors of our form.
func newAPI(mux *http.ServeMux) huma.API {
	config := huma.DefaultConfig("vers", "v1")
	config.Info.Description = "git for running machines. What is marked [ours] is an extension; other clients ignore it."
	config.CreateHooks = nil // no $schema fields in answers
	config.OpenAPIPath, config.DocsPath, config.SchemasPath = "", "", ""
	config.AllowAdditionalPropertiesByDefault = true
	config.Formats = map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat}
	config.Transformers = []huma.Transformer{reshapeError}
	config.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"key": {Type: "http", Scheme: "bearer"}}
	config.Security = []map[string][]string{{"key": {}}}

	schemas := config.Components.Schemas
	schemas.RegisterTypeAlias(reflect.TypeFor[huma.ErrorModel](), reflect.TypeFor[api.Error]())
	schemas.RegisterTypeAlias(reflect.TypeFor[api.OptionalString](), reflect.TypeFor[*string]())

	a := humago.New(mux, config)
	a.UseMiddleware(func(ctx huma.Context, next func(huma.Context)) { next(badRequests{ctx}) })
	return a
}

// badRequests answers what huma calls unprocessable with 400, which clients in the field know.
type badRequests struct{ humaContext }

// humaContext is embedded under this name since huma.Context has a method Context.
type humaContext = huma.Context

func (c badRequests) SetStatus(status int) {
	if status == http.StatusUnprocessableEntity {
		status = http.StatusBadRequest
	}
	c.humaContext.SetStatus(status)
}

// Unwrap lets humago find the request.
func (c badRequests) Unwrap() huma.Context { return c.humaContext }

// reshapeError gives huma's own errors our body. The values that were refused are left out: they may be secrets.
func reshapeError(ctx huma.Context, _ string, v any) (any, error) {
	model, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	var details []string
	for _, detail := range model.Errors {
		text := detail.Message
		if detail.Location != "" {
			text = detail.Location + ": " + text
		}
		details = append(details, text)
	}
	message := model.Detail
	if len(details) > 0 {
		message = "bad request: " + strings.Join(details, "; ")
	}
	ctx.SetHeader("Content-Type", "application/json")
	vms, _ := ctx.Operation().Metadata[metadataVMs].(bool)
	return &problem{body: api.Error{Error: message}, vms: vms}, nil
}

// metadataVMs marks operations whose errors have an empty list vms.
const metadataVMs = "vms"

// none is the input or output of an operation that has none.
type none struct{}

// output is that of an operation with a JSON body.
type output[T any] struct {
	Body T `nullable:"false"`
}

func reply[T any](body T) *output[T] { return &output[T]{Body: body} }

// operation describes an endpoint. Path is below /api/v1.
type operation struct {
	method, path string
	status       int // of success; 0: 200
	id, summary  string
	tag          string
	creates      bool   // a failure must not be tried again: it may have made something
	vms          bool   // errors have an empty list vms too (the calls under /vm/branch)
	public       bool   // needs no key
	root         bool   // Path is not below /api/v1
	hidden       bool   // an alias
	upload       string // what the body is, if the handler reads it as it comes (UploadInput)
	uploadType   string // its media type; "": a tar archive
	responses    map[string]*huma.Response
}

func binary() *huma.MediaType {
	return &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}
}

// add registers an endpoint.
func add[I, O any](s *Server, o operation, handle func(ctx context.Context, in *I) (*O, error)) {
	op := huma.Operation{
		Method: o.method, Path: "/api/v1" + o.path, DefaultStatus: o.status, OperationID: o.id, Summary: o.summary,
		Tags: []string{o.tag}, Hidden: o.hidden, Responses: o.responses,
		Metadata:        map[string]any{metadataVMs: o.vms},
		BodyReadTimeout: -1, MaxBodyBytes: -1, // readBody has read it already
	}
	if o.root {
		op.Path = o.path
	}
	if o.upload != "" {
		op.RequestBody = &huma.RequestBody{Description: o.upload, Required: true,
			Content: map[string]*huma.MediaType{cmp.Or(o.uploadType, "application/x-tar"): binary()}}
	}
	s.actions[o.method+" "+op.Path] = o.id
	if o.status == 0 {
		op.DefaultStatus = http.StatusOK
	}
	if o.public {
		op.Security = []map[string][]string{}
	}
	if op.Responses == nil {
		op.Responses = map[string]*huma.Response{}
	}
	errorType := reflect.TypeFor[api.Error]()
	if o.vms {
		errorType = reflect.TypeFor[api.VMsError]()
	}
	op.Responses["default"] = &huma.Response{Description: "Error", Content: map[string]*huma.MediaType{
		"application/json": {Schema: s.api.OpenAPI().Components.Schemas.Schema(errorType, true, "")},
	}}
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := handle(ctx, in)
		if err != nil {
			return nil, s.failure(ctx, o, err)
		}
		return out, nil
	})
}
