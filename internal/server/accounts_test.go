package server

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"vers/api"
	"vers/internal/audit"
	"vers/internal/catalog"
	"vers/internal/ident"
	"vers/internal/registry"
)

// auditTrail keeps entries in memory.
type auditTrail struct {
	mu      sync.Mutex
	entries []audit.Entry
}

func (a *auditTrail) Append(e audit.Entry) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.entries = append(a.entries, e)
	return nil
}

func (a *auditTrail) all() []audit.Entry {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.entries)
}

func (h *harness) createKey(as, body string) api.KeyCreated {
	h.t.Helper()
	return read[api.KeyCreated](h.callAs(as, "POST", "/keys", body).want(201))
}

func TestKeys(t *testing.T) {
	h := newHarness(t)
	made := h.createKey(h.key, `{"name":"ci"}`)
	who := read[api.Whoami](h.callAs(made.APIKey, "GET", "/whoami", "").want(200))
	if who.KeyID != made.KeyID || who.KeyName != "ci" || who.OrgName != "acme" || who.IsAdmin || who.ExpiresAt != nil {
		t.Errorf("%+v", who)
	}
	list := read[api.KeyList](h.call("GET", "/keys", "").want(200)).Keys
	i := slices.IndexFunc(list, func(k api.Key) bool { return k.KeyID == made.KeyID })
	if i < 0 || list[i].LastUsedAt == nil || time.Since(*list[i].LastUsedAt) > time.Minute {
		t.Fatalf("%+v", list)
	}
	// Another organisation neither sees nor revokes it.
	h.callAs(h.otherKey, "DELETE", "/keys/"+made.KeyID, "").want(404)
	if a := h.callAs(h.otherKey, "GET", "/keys", "").want(200); strings.Contains(a.body, made.KeyID) {
		t.Error(a.body)
	}
	h.call("DELETE", "/keys/"+made.KeyID, "").want(204)
	h.callAs(made.APIKey, "GET", "/whoami", "").want(401).says("revoked")
	local, err := h.catalog.LocalKey(t.Context())
	h.must(err)
	h.call("DELETE", "/keys/"+local.ID, "").want(409)
}

// A key with an end makes no key that outlives it.
func TestKeysThatEnd(t *testing.T) {
	h := newHarness(t)
	end := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	short := h.createKey(h.key, `{"name":"short","expires_at":"`+end.Format(time.RFC3339)+`"}`)
	heir := h.createKey(short.APIKey, `{"name":"heir"}`)
	if heir.ExpiresAt == nil || !heir.ExpiresAt.Equal(end) {
		t.Errorf("it ends at %v, not %v", heir.ExpiresAt, end)
	}
	h.callAs(short.APIKey, "POST", "/keys", `{"name":"x","expires_at":"`+end.Add(time.Minute).Format(time.RFC3339)+`"}`).want(400).says("expires_at")
	h.createKey(short.APIKey, `{"name":"x","expires_at":"`+end.Add(-time.Minute).Format(time.RFC3339)+`"}`)
}

// A key is shown once: an answer that is kept for repetitions would keep it.
func TestKeysAreNotKept(t *testing.T) {
	h := newHarness(t)
	for range 2 {
		made := read[api.KeyCreated](h.call("POST", "/keys", `{"name":"ci"}`, api.HeaderIdempotencyKey, "same").want(201))
		if _, err := h.catalog.Answer(t.Context(), h.caller.KeyID, "POST /api/v1/keys same"); err == nil {
			t.Error("the answer is in the catalogue")
		}
		secret := made.APIKey[36:]
		if strings.Contains(h.log.String(), secret) {
			t.Error("the key is in the log")
		}
		trail, err := json.Marshal(h.audit.all())
		h.must(err)
		if strings.Contains(string(trail), secret) {
			t.Errorf("the key is in the audit log: %s", trail)
		}
	}
}

func TestOrganisationsAndUsage(t *testing.T) {
	h := newHarness(t)
	own := read[api.OrganisationList](h.call("GET", "/orgs", "").want(200)).Organisations
	if len(own) != 1 || own[0].Name != "acme" {
		t.Errorf("%+v", own)
	}
	all := read[api.OrganisationList](h.send(h.unix, h.request("", "GET", "/orgs", "")).want(200)).Organisations
	if len(all) != 2 {
		t.Errorf("an administrator sees %+v", all)
	}
	h.newVM()
	limit, size := int64(3), int64(2)
	h.machines.quotas = catalog.Quotas{VMs: &limit, StorageMiB: &size}
	u := read[api.Usage](h.call("GET", "/usage", "").want(200))
	if u.OrgName != "acme" || u.VMs.Used != 1 || *u.VMs.Limit != 3 || u.MemoryMiB.Limit != nil || *u.StorageBytes.Limit != 2<<20 {
		t.Errorf("%+v", u)
	}
}

func TestAudit(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	h.newCommit(vm)
	h.call("PUT", "/env_vars", `{"vars":{"TOKEN":"s3cret"}}`).want(200)
	h.call("POST", "/vm/"+vm+"/exec", `{"command":["echo","s3cret"]}`)
	h.callAs(h.otherKey, "DELETE", "/vm/"+vm, "").want(404)
	h.call("POST", "/repositories", `{"name":"a/b"}`).want(400)
	h.call("GET", "/vms", "").want(200)
	h.call("POST", "/keys/validate", "").want(200)
	h.call("POST", "/nothing", "").want(404)
	for range 2 { // once: the second time nothing is done
		h.call("POST", "/repositories", `{"name":"app"}`, api.HeaderIdempotencyKey, "k").want(201)
	}
	h.send(h.unix, h.request("", "DELETE", "/vm/"+vm, "")).want(200)
	var got []string
	for _, e := range h.audit.all() {
		got = append(got, e.Org+" "+e.Action+" "+strings.ReplaceAll(e.Object, vm, "VM")+" "+e.Result)
		if e.RequestID == "" || e.Time.IsZero() || e.Key == "" || e.KeyID == "" || e.Address == "" || e.Status == 0 {
			t.Errorf("%+v", e)
		}
	}
	want := []string{
		"acme new-root-vm /api/v1/vm/new_root ok",
		"acme commit-vm /api/v1/vm/VM/commit ok",
		"acme set-env-vars /api/v1/env_vars ok",
		"acme exec /api/v1/vm/VM/exec " + h.audit.all()[3].Result,
		"other delete-vm /api/v1/vm/VM not found",
		"acme create-repository /api/v1/repositories bad request",
		"acme create-repository /api/v1/repositories ok",
		"acme delete-vm /api/v1/vm/VM ok",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	trail, err := json.Marshal(h.audit.all())
	h.must(err)
	if strings.Contains(string(trail), "s3cret") || strings.Contains(string(trail), h.key[36:]) {
		t.Errorf("secrets in %s", trail)
	}
	if made := h.audit.all()[0].Made; made["vm_id"] != vm {
		t.Errorf("made %v", made)
	}
	if address := h.audit.all()[len(want)-1].Address; address != "local" {
		t.Errorf("over the socket: %q", address)
	}
}

func TestMetrics(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	h.newCommit(vm)
	for range 5 {
		h.call("GET", "/vm/"+ident.New()+"/status", "").want(404)
		h.call("GET", "/no/"+ident.New(), "").want(404)
		req := h.request(h.key, "GET", "/vms", "")
		req.Method = "M" + strings.ToUpper(strings.ReplaceAll(ident.New(), "-", ""))
		h.send(http.DefaultClient, req)
	}
	h.call("GET", "!/metrics", "").want(403)
	h.callAs("", "GET", "!/metrics", "").want(401)
	org, err := h.registry.OrganisationByName(t.Context(), "other")
	h.must(err)
	_, admin, err := h.registry.CreateKey(t.Context(), org.ID, "prometheus", registry.Admin())
	h.must(err)
	for name, a := range map[string]answer{
		"admin": h.callAs(admin, "GET", "!/metrics", ""), "local": h.send(h.unix, h.request("", "GET", "!/metrics", "")),
	} {
		if a.status != 200 {
			t.Fatalf("%s: %d %s", name, a.status, a.body)
		}
		parser := expfmt.NewTextParser(model.UTF8Validation)
		families, err := parser.TextToMetricFamilies(strings.NewReader(a.body))
		h.must(err)
		for _, want := range []string{"vers_vms", "vers_network_connections_total", "vers_network_spoofed_total", "vers_egress_limited_total", "vers_organisations", "vers_commits", "vers_commits_stored_bytes", "vers_http_requests_total",
			"vers_http_request_seconds", "vers_operation_seconds", "vers_pause_seconds", "vers_build_info", "go_goroutines"} {
			if families[want] == nil {
				t.Errorf("%s: no %s", name, want)
			}
		}
		if n := len(families["vers_http_requests_total"].Metric); n > 12 {
			t.Errorf("%d combinations of labels: they grow with requests", n)
		}
		for _, line := range []string{
			`vers_vms{state="running"} 1`, `vers_commits 1`, `vers_organisations 2`, `vers_operation_seconds_count{operation="commit"} 1`,
			`vers_http_requests_total{method="GET",route="/api/v1/vm/{id}/status",status="404"} 5`, `vers_pause_seconds_count 1`,
			`vers_network_bytes_total{direction="out",organisation="acme"} 4711`, `vers_egress_refused_total{organisation="acme"} 3`,
		} {
			if !strings.Contains(a.body, line+"\n") {
				t.Errorf("no %s", line)
			}
		}
		if strings.Contains(a.body, vm) {
			t.Error("ids are in the labels")
		}
		for line := range strings.Lines(a.body) {
			if strings.Contains(line, "acme") && !strings.HasPrefix(line, "vers_network_") && !strings.HasPrefix(line, "vers_egress_") {
				t.Errorf("a name is in the labels: %s", line)
			}
		}
	}
}

func TestDocs(t *testing.T) {
	h := newHarness(t)
	a := h.callAs("", "GET", "!/docs", "")
	if a.status != 200 || !strings.HasPrefix(a.header.Get("Content-Type"), "text/html") {
		t.Fatalf("%d %s", a.status, a.header.Get("Content-Type"))
	}
	for _, want := range []string{"/api/v1/vm/new_root", "/api/v1/keys", "[ours]", "NewRootRequest", "mem_size_mib", "shell-auth"} {
		if !strings.Contains(a.body, want) {
			t.Errorf("no %q", want)
		}
	}
	for _, bad := range []string{"<script", "http://", "https://", "src=", "@import"} {
		if strings.Contains(a.body, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	if !strings.Contains(a.header.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Error("the page may load things")
	}
}

func TestLegacy(t *testing.T) {
	h := newHarness(t)
	for _, path := range []string{"/api/cluster", "/api/cluster/x/ssh_key", "/api/vm", "/api/vm/x", "/api/telemetry", "/api/network"} {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			h.call(method, "!"+path, "").want(410).says("/api/v1")
		}
	}
	h.call("GET", "!/api/validate", "").want(200)
	h.call("POST", "!/api/keys/validate", "").want(200)
	h.callAs("", "GET", "!/api/health", "").want(200)
	for _, path := range []string{"/github/install-url?org=acme", "/github/status"} {
		if a := h.call("GET", path, "").want(501).says("GitHub App"); a.header.Get(api.HeaderShouldRetry) != "false" {
			t.Errorf("%s is tried again", path)
		}
	}
	h.call("GET", "/vm/x/y/z", "").want(404)
	h.call("GET", "!/api/v1", "").want(404)
}

// A domain is one VM's on the whole server, and goes with it.
func TestDomains(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	d := read[api.Domain](h.call("POST", "/domains", `{"vm_id":"`+vm+`","domain":"App.Example.org."}`).want(201))
	if d.Domain != "app.example.org" || d.VMID != vm {
		t.Errorf("%+v", d)
	}
	theirs := read[api.NewVM](h.callAs(h.otherKey, "POST", "/vm/new_root", `{"vm_config":{}}`).want(201)).VMID
	h.callAs(h.otherKey, "POST", "/domains", `{"vm_id":"`+theirs+`","domain":"app.example.org"}`).want(409).says("taken")
	h.callAs(h.otherKey, "POST", "/domains", `{"vm_id":"`+vm+`","domain":"b.example.org"}`).want(404)
	h.callAs(h.otherKey, "GET", "/domains?vm_id="+vm, "").want(404)
	for _, method := range []string{"GET", "DELETE"} {
		h.callAs(h.otherKey, method, "/domains/"+d.DomainID, "").want(404)
	}
	if list := read[[]api.Domain](h.call("GET", "/domains?vm_id="+vm, "").want(200)); len(list) != 1 {
		t.Errorf("%+v", list)
	}
	h.call("DELETE", "/vm/"+vm, "").want(200)
	h.call("GET", "/domains/"+d.DomainID, "").want(404)
	h.callAs(h.otherKey, "POST", "/domains", `{"vm_id":"`+theirs+`","domain":"app.example.org"}`).want(201)
}
