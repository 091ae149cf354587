package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vers/internal/audit"
	"vers/internal/catalog"
	"vers/internal/registry"
)

// operator runs versd's commands on a data directory whose catalogue another process, a versd, has open.
type operator struct {
	t       *testing.T
	config  string
	catalog *catalog.Catalog
	server  *registry.Registry
}

func newOperator(t *testing.T) *operator {
	t.Helper()
	dir := t.TempDir()
	o := &operator{t: t, config: filepath.Join(dir, "versd.toml")}
	text := "data_dir = \"" + dir + "\"\n[quota]\nvms = 7\n[shell_auth]\nmode = \"token\"\n"
	if err := os.WriteFile(o.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := o.try("org", "list"); err == nil || !strings.Contains(err.Error(), "no versd has run") {
		t.Errorf("without a catalogue: %s, %v", out, err)
	}
	var err error
	if o.catalog, err = catalog.Open(context.Background(), filepath.Join(dir, "catalog.db")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.catalog.Close() })
	o.server = registry.New(o.catalog, registry.Options{Login: registry.LoginOptions{Mode: registry.LoginToken}})
	if _, err := o.server.Setup(t.Context(), "default"); err != nil {
		t.Fatal(err)
	}
	return o
}

func (o *operator) try(args ...string) (string, error) {
	cmd := newCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(append(args, "--config", o.config))
	err := cmd.ExecuteContext(o.t.Context())
	return out.String(), err
}

func (o *operator) run(args ...string) string {
	o.t.Helper()
	out, err := o.try(args...)
	if err != nil {
		o.t.Fatalf("versd %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func (o *operator) fails(says string, args ...string) {
	o.t.Helper()
	if out, err := o.try(args...); err == nil || !strings.Contains(err.Error(), says) {
		o.t.Errorf("versd %s: %s, %v; want an error with %q", strings.Join(args, " "), out, err, says)
	}
}

func TestOrganisationsAndKeys(t *testing.T) {
	o := newOperator(t)
	o.run("org", "create", "acme")
	o.fails("exists", "org", "create", "acme")
	o.fails("not valid", "org", "create", "../x")
	secret := strings.TrimSpace(o.run("key", "create", "--org", "acme", "--name", "ci", "--expires", "90d", "-q"))
	key, err := o.server.Authenticate(t.Context(), secret)
	if err != nil || key.Name != "ci" || key.ExpiresAt == nil || time.Until(*key.ExpiresAt) < 89*24*time.Hour {
		t.Fatalf("%+v, %v", key, err)
	}
	var made keyJSON
	if err := json.Unmarshal([]byte(o.run("key", "create", "--org", "acme", "--admin", "--name", "prometheus", "--json")), &made); err != nil || !made.IsAdmin || made.APIKey == "" {
		t.Errorf("%+v, %v", made, err)
	}
	if list := o.run("key", "list", "--org", "acme"); !strings.Contains(list, "usable, admin") || strings.Contains(list, secret[36:]) {
		t.Error(list)
	}
	o.fails("no time", "key", "create", "--expires", "soon")
	o.fails("over", "key", "create", "--expires", "2001-01-01")
	o.fails("organisation 'nobody' not found", "key", "create", "--org", "nobody")
	o.run("key", "revoke", "--org", "acme", "ci")
	if _, err := o.server.Authenticate(t.Context(), secret); err == nil {
		t.Error("a revoked key is good")
	}
	o.fails("no usable API key", "key", "revoke", "--org", "acme", "ci")
	o.fails("local socket", "org", "delete", "default")
	if _, err := o.server.CreateRepository(t.Context(), key.OrgID, "app", nil); err != nil {
		t.Fatal(err)
	}
	o.fails("1 repositories", "org", "delete", "acme")
	if err := o.server.DeleteRepository(t.Context(), key, "app"); err != nil {
		t.Fatal(err)
	}
	o.run("org", "delete", "acme")
	if _, err := o.server.Authenticate(t.Context(), made.APIKey); err == nil {
		t.Error("a key of a deleted organisation is good")
	}
	o.run("org", "create", "acme") // the name is free, the group id is not
	all, err := o.server.Organisations(t.Context())
	if err != nil || len(all) != 2 || all[1].GID != all[0].GID+2 {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestQuotas(t *testing.T) {
	o := newOperator(t)
	if out := o.run("org", "quota", "default"); !strings.Contains(out, "7") || !strings.Contains(out, "configuration") {
		t.Error(out)
	}
	o.run("org", "quota", "default", "--vms", "none", "--memory", "32GiB", "--storage", "2T")
	var q struct {
		VMs        *int64 `json:"vms"`
		MemoryMiB  *int64 `json:"memory_mib"`
		StorageMiB *int64 `json:"storage_mib"`
	}
	if err := json.Unmarshal([]byte(o.run("org", "quota", "default", "--json")), &q); err != nil || q.VMs != nil || *q.MemoryMiB != 32<<10 || *q.StorageMiB != 2<<20 {
		t.Errorf("%+v, %v", q, err)
	}
	o.run("org", "quota", "default", "--vms", "default")
	if out := o.run("org", "quota", "default", "--json"); !strings.Contains(out, `"vms": 7`) || !strings.Contains(out, "32768") {
		t.Error(out)
	}
	for _, bad := range []string{"-1", "x", "1.5GiB", "99999999999999999999", "10PiB"} {
		o.fails("--memory", "org", "quota", "default", "--memory="+bad)
	}
	o.fails("--vms", "org", "quota", "default", "--vms", "8GiB")
}

func TestApprove(t *testing.T) {
	o := newOperator(t)
	const line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl a@b"
	req := registry.LoginRequest{Email: "alice@example.org", PublicKey: line, Address: "192.0.2.1"}
	if out := o.run("approve"); !strings.Contains(out, "Nobody") {
		t.Error(out)
	}
	if _, err := o.server.StartLogin(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if out := o.run("approve"); !strings.Contains(out, "SHA256:") || !strings.Contains(out, "192.0.2.1") {
		t.Error(out)
	}
	o.fails("no request", "approve", "bob@example.org")
	o.run("approve", "alice@example.org", "--org", "default")
	elsewhere := req
	elsewhere.Address = "192.0.2.2"
	if _, err := o.server.CheckLogin(t.Context(), elsewhere); err == nil {
		t.Error("the approval holds for another address")
	}
	login, err := o.server.CheckLogin(t.Context(), req)
	if err != nil || !login.Verified || len(login.Organisations) != 1 || login.Organisations[0].OrgName != "default" {
		t.Errorf("%+v, %v", login, err)
	}
	o.fails("no request", "approve", "alice@example.org")
}

func TestAuditCommand(t *testing.T) {
	o := newOperator(t)
	o.run("org", "create", "acme")
	secret := strings.TrimSpace(o.run("key", "create", "--org", "acme", "--name", "ci", "-q"))
	o.fails("exists", "org", "create", "acme")
	out := o.run("audit")
	for _, want := range []string{"versd org create", "versd key create", "ci: ok", "acme: conflict", "operator "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, secret[36:]) {
		t.Error("the audit log holds a key")
	}
	var e audit.Entry
	line, _, _ := strings.Cut(o.run("audit", "--json", "--org", "acme", "--since", "1h"), "\n")
	if err := json.Unmarshal([]byte(line), &e); err != nil || e.Action != "versd org create" || e.Made["org_id"] == "" {
		t.Errorf("%s, %v", line, err)
	}
	if out := o.run("audit", "--since", "2999-01-01"); out != "" {
		t.Error(out)
	}
}
