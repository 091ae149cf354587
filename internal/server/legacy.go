package server

import (
	"context"
	"errors"
	"net/http"

	"vers/api"
)

// errNotOffered is answered with 501: the call exists elsewhere, this server will not learn it by trying again.
var errNotOffered = errors.New("not offered by this server")

// notOffered is an answer of a call that needs what only the original platform has.
func notOffered(text string) error { return &refusal{errNotOffered, text} }

// refusal is an error with a text of its own that is errors.Is of another.
type refusal struct {
	kind error
	text string
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.kind }

// routeLegacy answers calls of older and of other clients that have no meaning here (spec/api.md 3.11 #47, 6.1).
func (s *Server) routeLegacy() {
	github := func(context.Context, *none) (*none, error) {
		return nil, notOffered("GitHub App not configured: this server has none; 'vers deploy' takes any git URL, private ones with a credential helper from the environment variables")
	}
	add(s, operation{method: http.MethodGet, path: "/github/install-url", id: "github-install-url", hidden: true, tag: "Deploy"}, github)
	add(s, operation{method: http.MethodGet, path: "/github/status", id: "github-status", hidden: true, tag: "Deploy"}, github)
	add(s, operation{method: http.MethodPost, path: "/api/github/installation-token", root: true, id: "github-installation-token", hidden: true, tag: "Deploy"}, github)

	for path, use := range map[string]string{
		"/api/cluster":   "VMs have no clusters any more: POST /api/v1/vm/new_root, GET /api/v1/vms",
		"/api/vm":        "GET /api/v1/vms, and the calls below /api/v1/vm",
		"/api/telemetry": "GET /api/v1/usage, GET /metrics",
		"/api/network":   "GET /api/v1/vm/{id}/metadata",
	} {
		gone := func(w http.ResponseWriter, r *http.Request) {
			(&problem{status: http.StatusGone, body: api.Error{Error: r.Method + " " + r.URL.Path + " belongs to an API that is gone; use " + use}}).write(w)
		}
		s.mux.HandleFunc(path, gone)
		s.mux.HandleFunc(path+"/{rest...}", gone)
	}
	add(s, operation{method: http.MethodGet, path: "/api/health", root: true, public: true, id: "legacy-health", hidden: true, tag: "Server"}, s.health)
	add(s, operation{method: http.MethodGet, path: "/api/validate", root: true, id: "legacy-validate", hidden: true, tag: "Account"}, s.validateKey)
	add(s, operation{method: http.MethodPost, path: "/api/keys/validate", root: true, id: "legacy-validate-key", hidden: true, tag: "Account"}, s.validateKey)
}
