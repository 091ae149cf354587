// Package clitest is an API server in memory, for tests of the command line and of the Go client. Its VMs are folders:
// commands run on this machine in the VM's folder, a commit copies the folder, a restore or branch copies it again.
// So scripts that change files, commit and restore behave as they would with real VMs, in milliseconds.
package clitest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vers/api"
	"vers/internal/ident"
)

// Key is the API key that the server accepts.
const Key = "test-key"

// Server is the fake.
type Server struct {
	URL string

	// BootPolls is how many times a new VM shows itself as booting.
	BootPolls int
	// CutStreams is how many streams of output break after their first chunk.
	CutStreams int

	mu       sync.Mutex
	dir      string
	now      time.Time
	vms      map[string]*vm
	commits  map[string]*commit
	repos    map[string]*repository
	env      map[string]string
	execs    map[string]*execution
	requests []string
	keys     keys
	sessions sessions
}

type vm struct {
	api.VM
	config    api.VMConfig
	bootPolls int
}

type commit struct {
	api.CommitInfo
	config api.VMConfig
}

type repository struct {
	api.Repository
	tags map[string]*api.RepoTag
}

// New starts a server that ends with the test.
func New(t testing.TB) *Server {
	s := &Server{
		dir: t.TempDir(), now: time.Date(2026, 4, 20, 10, 15, 0, 0, time.UTC),
		vms: map[string]*vm{}, commits: map[string]*commit{}, repos: map[string]*repository{},
		env: map[string]string{}, execs: map[string]*execution{}, keys: newKeys(t),
	}
	server := httptest.NewServer(s)
	s.URL = server.URL
	t.Cleanup(func() {
		s.endProcesses()
		s.DropSSH()
		server.CloseClientConnections()
		server.Close()
	})
	return s
}

// Requests gives method and path of all requests so far.
func (s *Server) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// VMs gives the ids of the VMs, sorted.
func (s *Server) VMs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.vms))
}

// SetState changes a VM's state behind the API's back.
func (s *Server) SetState(vmID, state, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.vms[vmID].State, s.vms[vmID].Reason = state, reason
}

// AddVM makes a VM with a chosen id.
func (s *Server) AddVM(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addVM(id, api.VMConfig{}, "")
}

// failure is an answer with an error.
type failure struct {
	status  int
	message string
}

func (f failure) Error() string { return f.message }

func failf(status int, format string, args ...any) error {
	return failure{status, fmt.Sprintf(format, args...)}
}

func notFound(noun, name string) error {
	return failf(http.StatusNotFound, "%s '%s' not found", noun, name)
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+strings.TrimPrefix(r.URL.RequestURI(), "/api/v1"))
	s.mu.Unlock()
	if r.Header.Get("Authorization") != "Bearer "+Key {
		fail(w, failf(http.StatusUnauthorized, "unknown API key"))
		return
	}
	mux := http.NewServeMux()
	s.routes(mux)
	mux.ServeHTTP(w, r)
}

func fail(w http.ResponseWriter, err error) {
	var f failure
	if !errors.As(err, &f) {
		f = failure{http.StatusInternalServerError, err.Error()}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.status)
	_ = json.NewEncoder(w).Encode(api.Error{Error: f.message})
}

// route registers a handler that runs under the server's lock and returns status, body and error.
func (s *Server) route(mux *http.ServeMux, pattern string, handle func(r *http.Request) (int, any, error)) {
	method, path, _ := strings.Cut(pattern, " ")
	mux.HandleFunc(method+" /api/v1"+path, func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		status, body, err := handle(r)
		s.mu.Unlock()
		if err != nil {
			fail(w, err)
			return
		}
		if body == nil {
			w.WriteHeader(status)
			return
		}
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body)
	})
}

func (s *Server) routes(mux *http.ServeMux) {
	s.vmRoutes(mux)
	s.commitRoutes(mux)
	s.repositoryRoutes(mux)
	s.execRoutes(mux)
	mux.HandleFunc("POST /api/v1/vm/{id}/ssh", s.serveSSH)
	s.route(mux, "GET /env_vars", func(*http.Request) (int, any, error) { return 200, api.EnvVars{Vars: s.env}, nil })
	s.route(mux, "PUT /env_vars", func(r *http.Request) (int, any, error) {
		var req api.EnvVarsRequest
		if err := decode(r, &req); err != nil {
			return 0, nil, err
		}
		maps.Copy(s.env, req.Vars)
		return 200, api.EnvVars{Vars: s.env}, nil
	})
	s.route(mux, "DELETE /env_vars/{key}", func(r *http.Request) (int, any, error) {
		if _, ok := s.env[r.PathValue("key")]; !ok {
			return 0, nil, failf(404, "Environment variable not found")
		}
		delete(s.env, r.PathValue("key"))
		return 204, nil, nil
	})
	s.route(mux, "GET /whoami", func(*http.Request) (int, any, error) {
		return 200, api.Whoami{OrgID: ident.New(), OrgName: "acme", KeyID: ident.New(), KeyName: "ci"}, nil
	})
	s.route(mux, "GET /images", func(*http.Request) (int, any, error) {
		return 200, api.ImageList{Images: []api.Image{{ImageName: "default"}}, Total: 1}, nil
	})
}

func decode(r *http.Request, into any) error {
	if r.ContentLength == 0 {
		return nil
	}
	if err := json.NewDecoder(r.Body).Decode(into); err != nil {
		return failf(http.StatusBadRequest, "the body is no JSON: %v", err)
	}
	return nil
}

// tick gives every object a time of its own.
func (s *Server) tick() time.Time {
	s.now = s.now.Add(time.Second)
	return s.now
}

func (s *Server) vmDir(id string) string     { return filepath.Join(s.dir, "vms", id) }
func (s *Server) commitDir(id string) string { return filepath.Join(s.dir, "commits", id) }

// copyDir makes to a copy of from; from "" makes it empty.
func copyDir(from, to string) {
	if err := os.MkdirAll(to, 0o755); err != nil {
		panic(err)
	}
	if from == "" {
		return
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		panic(err)
	}
}
