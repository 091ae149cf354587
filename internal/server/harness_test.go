package server

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"vers/api"
	"vers/internal/catalog"
	"vers/internal/machine"
	"vers/internal/registry"
)

// harness is a server on loopback TCP and on a UNIX socket, with two organisations.
type harness struct {
	t        testing.TB
	server   *Server
	machines *fakeMachines
	catalog  *catalog.Catalog
	registry *registry.Registry
	audit    *auditTrail
	url      string // of the TCP listener
	unix     *http.Client
	log      *syncBuffer
	key      string // of organisation acme
	otherKey string // of organisation other
	caller   machine.Caller
	hostLine string
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func newHarness(t testing.TB) *harness {
	t.Helper()
	h := &harness{t: t, log: &syncBuffer{}}
	var err error
	h.catalog, err = catalog.Open(t.Context(), filepath.Join(t.TempDir(), "catalog.db"))
	h.must(err)
	t.Cleanup(func() { h.catalog.Close() })
	reg := registry.New(h.catalog, registry.Options{Login: registry.LoginOptions{Mode: registry.LoginToken}})
	h.registry, h.audit = reg, &auditTrail{}
	first, err := reg.Setup(t.Context(), "acme")
	h.must(err)
	h.key, h.caller = first.Secret, machine.Caller{OrgID: first.Organisation.ID, KeyID: first.Key.ID}
	other, err := reg.CreateOrganisation(t.Context(), "other")
	h.must(err)
	_, h.otherKey, err = reg.CreateKey(t.Context(), other.ID, "ci of other")
	h.must(err)
	hostKey, hostLine := newHostKey(t)
	h.hostLine = hostLine
	h.machines = &fakeMachines{catalog: h.catalog, vms: map[string]machine.VM{}, guests: map[string]*fakeGuest{}, hostKey: hostKey}
	h.server = New(Options{Machines: h.machines, Registry: reg, Catalog: h.catalog, Audit: h.audit, Version: Version{Version: "1.2.3", GitHash: "abc"},
		Logger: slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	h.server.guests = h.machines.open
	t.Cleanup(h.server.Close)
	h.listen()
	return h
}

func (h *harness) listen() {
	h.t.Helper()
	tcp := httptest.NewUnstartedServer(h.server)
	tcp.Config.ConnContext = ConnContext
	tcp.Start()
	h.t.Cleanup(tcp.Close)
	h.url = tcp.URL

	socket := filepath.Join(h.t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	h.must(err)
	local := httptest.NewUnstartedServer(h.server)
	local.Listener.Close()
	local.Listener, local.Config.ConnContext = listener, ConnContext
	local.Start()
	h.t.Cleanup(local.Close)
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	h.t.Cleanup(transport.CloseIdleConnections)
	h.unix = &http.Client{Transport: transport}
}

func newHostKey(t testing.TB) (private, line string) {
	t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	wire, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block)), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(wire)))
}

func (h *harness) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// in gives the harness to a subtest.
func (h *harness) in(t *testing.T) *harness {
	sub := *h
	sub.t = t
	return &sub
}

// answer is what came back.
type answer struct {
	t      testing.TB
	status int
	header http.Header
	body   string
}

// call makes a request as organisation acme. path is below /api/v1 unless it begins with "!".
func (h *harness) call(method, path, body string, headers ...string) answer {
	h.t.Helper()
	return h.callAs(h.key, method, path, body, headers...)
}

func (h *harness) request(key, method, path, body string, headers ...string) *http.Request {
	h.t.Helper()
	if root, ok := strings.CutPrefix(path, "!"); ok {
		path = root
	} else {
		path = "/api/v1" + path
	}
	req, err := http.NewRequestWithContext(h.t.Context(), method, h.url+path, strings.NewReader(body))
	h.must(err)
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return req
}

func (h *harness) callAs(key, method, path, body string, headers ...string) answer {
	h.t.Helper()
	return h.send(http.DefaultClient, h.request(key, method, path, body, headers...))
}

func (h *harness) send(client *http.Client, req *http.Request) answer {
	h.t.Helper()
	noRedirect := *client
	noRedirect.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	noRedirect.Timeout = 30 * time.Second
	resp, err := noRedirect.Do(req)
	h.must(err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	h.must(err)
	return answer{t: h.t, status: resp.StatusCode, header: resp.Header, body: string(text)}
}

// want checks status and form of the answer: JSON, and the error body with a status of 400 or more.
func (a answer) want(status int) answer {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("status %d, want %d: %s", a.status, status, a.body)
	}
	if a.header.Get(api.HeaderRequestID) == "" {
		a.t.Error("no request id")
	}
	if a.body != "" && a.header.Get("Content-Type") != "application/json" {
		a.t.Errorf("Content-Type %q", a.header.Get("Content-Type"))
	}
	if status < 400 {
		return a
	}
	var body map[string]any
	if err := json.Unmarshal([]byte(a.body), &body); err != nil {
		a.t.Fatalf("error body %q: %v", a.body, err)
	}
	if message, ok := body["error"].(string); !ok || message == "" || body["success"] != false {
		a.t.Errorf("error body %s", a.body)
	}
	final := a.header.Get(api.HeaderShouldRetry) == "false"
	if status == http.StatusConflict && !final {
		a.t.Error("a conflict must not be tried again")
	}
	return a
}

// says checks that the error names all words.
func (a answer) says(words ...string) answer {
	a.t.Helper()
	body := read[api.Error](a)
	for _, word := range words {
		if !strings.Contains(body.Error, word) {
			a.t.Errorf("error %q lacks %q", body.Error, word)
		}
	}
	return a
}

// empty checks that there is no body.
func (a answer) empty() {
	a.t.Helper()
	if a.body != "" {
		a.t.Errorf("body %q, want none", a.body)
	}
}

// read decodes the body.
func read[T any](a answer) T {
	a.t.Helper()
	var v T
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		a.t.Fatalf("body %q: %v", a.body, err)
	}
	return v
}

// newVM makes a VM of organisation acme.
func (h *harness) newVM() string {
	h.t.Helper()
	return read[api.NewVM](h.call("POST", "/vm/new_root", `{"vm_config":{"fs_size_mib":1024}}`).want(201)).VMID
}

// newCommit commits a VM.
func (h *harness) newCommit(vm string) string {
	h.t.Helper()
	return read[api.CommitCreated](h.call("POST", "/vm/"+vm+"/commit", "").want(201)).CommitID
}

func (h *harness) failNext(err error) {
	h.machines.mu.Lock()
	defer h.machines.mu.Unlock()
	h.machines.fail = err
}

func (h *harness) setVM(id string, change func(*machine.VM)) {
	h.machines.mu.Lock()
	defer h.machines.mu.Unlock()
	vm := h.machines.vms[id]
	change(&vm)
	h.machines.vms[id] = vm
}

var _ Machines = (*machine.Manager)(nil)
