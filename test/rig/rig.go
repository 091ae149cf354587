// Package rig is a whole server without virtual machines, for tests of what speaks to one: HTTP server, registry and
// catalogue are the real ones. A VM is a folder of this machine with the real vers-agent in it: commands run here, in the
// VM's folder. A commit copies the folder, a restore or branch copies it again. So scripts that change files, commit and
// restore behave as they would with real VMs, in milliseconds. Memory and processes are in no commit.
package rig

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vers/internal/catalog"
	"vers/internal/ident"
	"vers/internal/machine"
	"vers/internal/registry"
	"vers/internal/server"
)

// Server is a server with two organisations, acme and other.
type Server struct {
	URL      string
	Key      string // an API key of acme
	OtherKey string // one of other
	Registry *registry.Registry

	t        testing.TB
	catalog  *catalog.Catalog
	machines *folders
	caller   machine.Caller // Key

	mu       sync.Mutex
	requests []string
	cuts     int
}

// New starts a server that ends with the test.
func New(t testing.TB) *Server {
	s := &Server{t: t}
	dir := t.TempDir()
	ctx := context.Background()
	var err error
	s.catalog, err = catalog.Open(ctx, filepath.Join(dir, "catalog.db"))
	s.must(err)
	t.Cleanup(func() { s.catalog.Close() })
	s.must(s.catalog.InsertImage(ctx, catalog.Image{ID: ident.New(), Name: "default", SizeMiB: 200, SourceType: "debian", CreatedAt: time.Now()}))
	s.Registry = registry.New(s.catalog, registry.Options{})
	first, err := s.Registry.Setup(ctx, "acme")
	s.must(err)
	s.Key, s.caller = first.Secret, machine.Caller{OrgID: first.Organisation.ID, KeyID: first.Key.ID}
	other, err := s.Registry.CreateOrganisation(ctx, "other")
	s.must(err)
	_, s.OtherKey, err = s.Registry.CreateKey(ctx, other.ID, "ci of other")
	s.must(err)
	s.machines = newFolders(dir, s.catalog)
	t.Cleanup(s.machines.end)
	handler := server.New(server.Options{Machines: s.machines, Registry: s.Registry, Catalog: s.catalog,
		Version: server.Version{Version: "1.2.3-test", GitHash: "abc"}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	listener := httptest.NewUnstartedServer(s.watch(handler))
	listener.Config.ConnContext = server.ConnContext
	listener.Start()
	s.URL = listener.URL
	t.Cleanup(func() {
		listener.CloseClientConnections()
		listener.Close()
	})
	return s
}

func (s *Server) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// watch notes every request, and cuts streams if it is to.
func (s *Server) watch(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r.Method+" "+strings.TrimPrefix(r.URL.RequestURI(), "/api/v1"))
		cut := s.cuts > 0 && strings.Contains(r.URL.Path, "/exec/stream")
		if cut {
			s.cuts--
		}
		s.mu.Unlock()
		if cut {
			w = &cutWriter{ResponseWriter: w}
		}
		next.ServeHTTP(w, r)
	})
}

// cutWriter breaks the connection after the first whole line.
type cutWriter struct {
	http.ResponseWriter
	line bytes.Buffer
}

func (c *cutWriter) Write(p []byte) (int, error) {
	c.line.Write(p)
	line, _, whole := bytes.Cut(c.line.Bytes(), []byte("\n"))
	if !whole {
		return len(p), nil
	}
	if bytes.Contains(line, []byte(`"type":"chunk"`)) { // what is after it has to come another way
		_, _ = c.ResponseWriter.Write(append(bytes.Clone(line), '\n'))
		_ = http.NewResponseController(c.ResponseWriter).Flush()
	}
	panic(http.ErrAbortHandler)
}

// Flush implements http.Flusher.
func (c *cutWriter) Flush() {}

// Requests gives method and path of all requests so far.
func (s *Server) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// CutStreams breaks the next n streams of commands after their first event.
func (s *Server) CutStreams(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cuts = n
}

// BootPolls lets new root VMs show themselves as booting n times.
func (s *Server) BootPolls(n int) {
	s.machines.mu.Lock()
	defer s.machines.mu.Unlock()
	s.machines.bootPolls = n
}

// VMs gives the ids of the VMs, sorted.
func (s *Server) VMs() []string {
	s.machines.mu.Lock()
	defer s.machines.mu.Unlock()
	return slices.Sorted(maps.Keys(s.machines.vms))
}

// SetState changes a VM's state behind the API's back.
func (s *Server) SetState(vmID, state, reason string) {
	s.machines.mu.Lock()
	defer s.machines.mu.Unlock()
	v := s.machines.vms[vmID]
	v.record.State, v.record.Reason = state, reason
}

// AddVM makes a VM of acme with a chosen id.
func (s *Server) AddVM(id string) {
	s.machines.mu.Lock()
	defer s.machines.mu.Unlock()
	_, err := s.machines.add(s.caller, machine.VM{ID: id, Config: machine.Defaults}, "", nil)
	s.must(err)
}

// AddCommits makes n commits of acme that no VM was ever in.
func (s *Server) AddCommits(n int) {
	for range n {
		id := ident.New()
		s.must(s.catalog.InsertCommit(context.Background(), machine.Commit{ID: id, OrgID: s.caller.OrgID, OwnerID: s.caller.KeyID,
			Name: "commit-" + id[:8], CreatedAt: time.Now()}))
	}
}

// ChangeHostKey lets the VMs made from now on show another SSH host key than the API names, as an impostor would.
func (s *Server) ChangeHostKey() {
	s.machines.mu.Lock()
	defer s.machines.mu.Unlock()
	s.machines.impostor = true
}

// DropConnections cuts all connections to guests, those of SSH sessions among them.
func (s *Server) DropConnections() { s.machines.drop() }
