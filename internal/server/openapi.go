package server

import (
	"encoding/json"
	"net/http"
)

// serveOpenAPIJSON gives the description of the API to programs that read JSON; GET /openapi.yaml is for people.
func (s *Server) serveOpenAPIJSON(w http.ResponseWriter, r *http.Request) {
	text, err := json.Marshal(s.api.OpenAPI())
	if err != nil {
		s.failure(r.Context(), operation{}, err).write(w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(text) //nolint:errcheck // the client is gone, nobody is left to tell
}
