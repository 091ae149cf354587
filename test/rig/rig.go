// Package rig is a whole server without QEMU, for tests of what speaks to one: HTTP server, registry and machine manager
// are the real ones, on the machines of internal/machine/fake. Commands run on this machine, by a real agent, in the
// folder that stands for the guest's disk; commits, restores and branches take those files with them, not processes.
package rig

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	enginefake "vers/internal/build/engine/fake"
	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/gateway"
	"vers/internal/ident"
	"vers/internal/machine"
	"vers/internal/machine/fake"
	"vers/internal/machine/machinetest"
	"vers/internal/registry"
	"vers/internal/server"
)

// Server is a server with two organisations, acme and other.
type Server struct {
	*machinetest.Rig
	URL      string
	Key      string // an API key of acme
	OtherKey string // one of other
	Registry *registry.Registry
	Engine   *enginefake.Engine // of all organisations' image builds

	t        testing.TB
	handler  *server.Server
	gateway  *gateway.Gateway
	listener *listener

	mu       sync.Mutex
	requests []string
	cuts     int
	impostor bool
	built    map[string][]string // by digest of an image
	polls    int                 // how often a machine that boots says that it is not ready
	asked    map[string]int      // by VM
}

// New starts a server that ends with the test. Everybody may log in by e-mail and SSH key.
func New(t testing.TB) *Server {
	t.Helper()
	return NewWithLogin(t, registry.LoginOpen)
}

// NewWithLogin is New with another rule about who may log in by e-mail and SSH key.
func NewWithLogin(t testing.TB, mode registry.LoginMode) *Server {
	t.Helper()
	s := &Server{t: t, asked: map[string]int{}, built: map[string][]string{}, Rig: machinetest.New(t, machinetest.Options{MemoryMiB: 1 << 17})}
	ctx := context.Background()
	s.Registry = registry.New(s.Catalog, registry.Options{Login: registry.LoginOptions{Mode: mode}})
	var err error
	_, s.Key, err = s.Registry.CreateKey(ctx, s.Acme.OrgID, "ci of acme")
	s.must(err)
	_, s.OtherKey, err = s.Registry.CreateKey(ctx, s.Other.OrgID, "ci of other")
	s.must(err)
	s.Driver.SetHook(s.hook)
	s.Engine = enginefake.New()
	s.gateway, err = gateway.New(gateway.Options{Dir: t.TempDir(), Domain: "vm.localhost", Machines: s.Manager, Registry: s.Registry,
		Logger: slog.New(slog.DiscardHandler)})
	s.must(err)
	t.Cleanup(s.gateway.Close)
	s.listen(func(l net.Listener) func() error { return s.gateway.TLS(l, 0) })
	s.listen(s.gateway.SSH)
	s.handler = server.New(server.Options{Machines: s.Manager, Gateway: s.gateway, Registry: s.Registry, Catalog: s.Catalog, Images: s.openImages(),
		Version: server.Version{Version: "1.2.3-test", GitHash: "abc"}, Logger: slog.New(slog.DiscardHandler)})
	web := httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.listener = &listener{Listener: web.Listener, conns: map[net.Conn]bool{}}
	web.Listener = s.listener
	web.Config.ConnContext = server.ConnContext
	web.Start()
	s.URL = web.URL
	t.Cleanup(func() {
		s.DropConnections()
		web.Close()
		s.handler.Images.Close()
		s.handler.Close()
	})
	return s
}

// listen serves one of the gateway's addresses until it is closed.
func (s *Server) listen(serve func(net.Listener) func() error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	s.must(err)
	go func() { _ = serve(l)() }()
}

func (s *Server) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// listener knows its connections, those that were taken over for SSH too.
type listener struct {
	net.Listener
	mu    sync.Mutex
	conns map[net.Conn]bool
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.conns[conn] = true
	}
	return conn, err
}

// DropConnections cuts the connections of all clients.
func (s *Server) DropConnections() {
	s.listener.mu.Lock()
	defer s.listener.mu.Unlock()
	for conn := range s.listener.conns {
		conn.Close()
		delete(s.listener.conns, conn)
	}
}

// serve notes every request, and cuts streams and changes host keys if it is to.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+strings.TrimPrefix(r.URL.RequestURI(), "/api/v1"))
	cut, impostor := s.cuts > 0 && strings.Contains(r.URL.Path, "/exec/stream"), s.impostor && strings.HasSuffix(r.URL.Path, "/ssh_key")
	if cut {
		s.cuts--
	}
	s.mu.Unlock()
	switch {
	case cut:
		w = &cutWriter{ResponseWriter: w}
	case impostor:
		answer := httptest.NewRecorder()
		s.handler.ServeHTTP(answer, r)
		const another = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFYzNsTS8r9V9gGqsvPWXnNAhI8Jpgwv1v8xUTGNcvCx"
		body := regexp.MustCompile(`"ssh_host_key":"[^"]*"`).ReplaceAllString(answer.Body.String(), `"ssh_host_key":"`+another+`"`)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(body))
		return
	}
	s.handler.ServeHTTP(w, r)
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

// Impostor lets the API name another SSH host key than the VMs show.
func (s *Server) Impostor() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.impostor = true
}

// SlowBoots lets machines that boot say n times that they are not ready.
func (s *Server) SlowBoots(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.polls = n
}

func (s *Server) hook(op fake.Op, spec machine.Spec) error {
	if op != fake.OpReady || spec.MemoryFile != "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked[spec.ID]++; s.asked[spec.ID] <= s.polls {
		return context.DeadlineExceeded
	}
	return nil
}

// Crash ends the machine of a VM from outside and waits until the server knows.
func (s *Server) Crash(vmID string) {
	s.Machine(s.t, vmID).Crash()
	s.AwaitState(s.t, s.Acme, vmID, machine.StateDead)
}

// AddDead makes a VM of acme with a chosen id. It died while versd was away, as no machine can be given an id.
func (s *Server) AddDead(id string) error {
	all, err := s.Catalog.AllVMs(context.Background())
	if err != nil {
		return err
	}
	s.Stop(s.t)
	err = s.Catalog.InsertVM(context.Background(), catalog.VM{ID: id, OrgID: s.Acme.OrgID, OwnerID: s.Acme.KeyID, Config: machine.Defaults,
		State: string(machine.StateDead), CreatedAt: time.Now(), UID: 1<<20 + len(all)})
	s.handler.Images.Close()
	s.Start(s.t)
	s.handler.Machines, s.handler.Images = s.Manager, s.openImages()
	return err
}

// AddKey makes another organisation and gives an API key of it.
func (s *Server) AddKey(org string) (string, error) {
	_, key, err := s.Registry.CreateKey(context.Background(), s.AddOrganisation(s.t, org).OrgID, "ci of "+org)
	return key, err
}

// Approve waits for a request to log in and lets its user into an organisation, as 'versd approve' does.
func (s *Server) Approve(email, org string) error {
	var err error
	machinetest.Await(s.t, "a request of "+email, func() bool {
		_, err = s.Registry.ApproveLogin(context.Background(), email, org)
		return !fault.Is(err, fault.NotFound)
	})
	return err
}

// AddCommits makes n commits of acme that nothing can be restored from.
func (s *Server) AddCommits(n int) {
	for range n {
		id := ident.New()
		s.must(s.Catalog.InsertCommit(context.Background(), machine.Commit{ID: id, OrgID: s.Acme.OrgID, OwnerID: s.Acme.KeyID,
			Name: "commit-" + id[:8], CreatedAt: time.Now()}))
	}
}
