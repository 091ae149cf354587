package server

import (
	"context"
	"net/http"
	"strings"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/machine"
)

// public lists what needs no key. A key that is sent must be right there too.
func public(path string) bool {
	return path == "/health" || path == "/api/health" || path == "/openapi.yaml" || path == "/openapi.json" || path == "/docs" ||
		path == "/api/v1/system/version" ||
		path == shellAuthPath || strings.HasPrefix(path, shellAuthPath+"/") || path == publicRoot || strings.HasPrefix(path, publicRoot+"/")
}

// authenticate finds out who calls. A connection over the UNIX socket acts as the first organisation's local key,
// unless it sends a key.
func (s *Server) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, err := s.keyOf(r)
		if err != nil && !(public(r.URL.Path) && r.Header.Get("Authorization") == "") {
			p := s.failure(r.Context(), operation{creates: true}, err)
			if p.status == http.StatusUnauthorized {
				p.header.Set("WWW-Authenticate", "Bearer")
			}
			p.write(w)
			return
		}
		n := notesOf(r.Context())
		n.org, n.key = key.OrgID, key.ID
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), keyCaller, key)))
	})
}

func (s *Server) keyOf(r *http.Request) (catalog.Key, error) {
	header := strings.TrimSpace(r.Header.Get("Authorization"))
	if header == "" {
		if local, _ := r.Context().Value(keyLocal).(bool); local {
			return s.Registry.LocalKey(r.Context())
		}
		return catalog.Key{}, fault.New(fault.Unauthenticated,
			"unauthorized: no API key was sent; set VERS_API_KEY or run 'vers login'")
	}
	scheme, text, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "bearer") {
		return catalog.Key{}, fault.New(fault.Unauthenticated,
			"unauthorized: the Authorization header must be 'Bearer' and an API key")
	}
	return s.Registry.Authenticate(r.Context(), strings.TrimSpace(text))
}

// callerKey gives the API key a request was made with.
func callerKey(ctx context.Context) catalog.Key {
	key, _ := ctx.Value(keyCaller).(catalog.Key)
	return key
}

func callerOf(ctx context.Context) machine.Caller {
	key := callerKey(ctx)
	return machine.Caller{OrgID: key.OrgID, KeyID: key.ID}
}

// orgOf gives the organisation a request was made for.
func orgOf(ctx context.Context) string { return callerKey(ctx).OrgID }
