package server

import (
	"context"
	"net/http"

	"vers/api"
)

func (s *Server) routeAccount() {
	add(s, operation{method: http.MethodGet, path: "/system/version", id: "system-version", public: true,
		summary: "Version of the server", tag: "Server"}, s.version)
	add(s, operation{method: http.MethodGet, path: "/health", id: "health", public: true, root: true,
		summary: "Whether the server answers", tag: "Server"}, s.health)
	s.mux.HandleFunc("GET /openapi.yaml", s.serveOpenAPI)
	s.mux.HandleFunc("GET /docs", s.serveDocs)
	s.mux.HandleFunc("GET /metrics", s.serveMetrics)
}

func (s *Server) version(context.Context, *none) (*output[api.Version], error) {
	return reply(api.Version{ExecutableName: "versd", WorkspaceVersion: s.Version.Version, GitHash: s.Version.GitHash}), nil
}

func (s *Server) health(context.Context, *none) (*output[api.Health], error) {
	answer := api.Health{Status: "ok"}
	answer.Connections.HTTP, answer.Connections.SSH = s.requests.Load(), s.sshSessions.Load()
	return reply(answer), nil
}

func (s *Server) serveOpenAPI(w http.ResponseWriter, r *http.Request) {
	text, err := s.openAPI()
	if err != nil {
		s.failure(r.Context(), operation{}, err).write(w)
		return
	}
	w.Header().Set("Content-Type", "application/yaml")
	w.Write(text) //nolint:errcheck // the client is gone, nobody is left to tell
}
