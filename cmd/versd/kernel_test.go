package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vers/internal/audit"
	"vers/internal/catalog"
	"vers/internal/fault"
)

// addedKernel writes an image that is enough of a kernel to be added.
func addedKernel(t *testing.T, o *operator, name string) {
	t.Helper()
	head := make([]byte, 2048)
	copy(head[0x202:], "HdrS")
	head[0x236], head[0x20f] = 1, 3
	copy(head[0x500:], "6.9.0-mine (root@host)")
	path := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(path, head, 0o600); err != nil {
		t.Fatal(err)
	}
	o.run("kernel", "add", name, "--from", path, "--built-in")
}

func TestKernelInUse(t *testing.T) {
	o := newOperator(t)
	addedKernel(t, o, "mine")
	orgs, err := o.catalog.Organisations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	org := orgs[0].ID
	manifest := json.RawMessage(`{"config":{"kernel_name":"mine"}}`)
	config := catalog.VMConfig{KernelName: "mine"}
	for _, err := range []error{
		o.catalog.InsertVM(t.Context(), catalog.VM{ID: "vm-1", OrgID: org, State: "running", Config: config, CreatedAt: time.Now(), UID: 1}),
		o.catalog.InsertVM(t.Context(), catalog.VM{ID: "vm-dead", OrgID: org, State: "dead", Config: config, CreatedAt: time.Now(), UID: 2}),
		o.catalog.InsertCommit(t.Context(), catalog.Commit{ID: "c-1", OrgID: org, Name: "nightly", CreatedAt: time.Now(), Manifest: manifest}),
		o.catalog.InsertCommit(t.Context(), catalog.Commit{ID: "c-template", OrgID: org, TemplateKey: "key", CreatedAt: time.Now(), Manifest: manifest}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if out := o.run("kernel", "list"); !strings.Contains(out, "mine") || !strings.Contains(out, "6.9.0-mine   1     1") {
		t.Errorf("list: %s", out)
	}
	_, err = o.try("kernel", "remove", "mine")
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "VM vm-1 of organisation default, commit c-1 (nightly) of organisation default") {
		t.Errorf("in use: %v", err)
	}
	if err := o.catalog.DeleteVM(t.Context(), "vm-1"); err != nil {
		t.Fatal(err)
	}
	if _, err = o.try("kernel", "remove", "mine"); !fault.Is(err, fault.Conflict) || strings.Contains(err.Error(), "vm-1") {
		t.Errorf("in use by the commit: %v", err)
	}
	if err := o.catalog.MarkCommitDeleted(t.Context(), "c-1"); err != nil {
		t.Fatal(err)
	}
	o.run("kernel", "remove", "mine")
	if c, err := o.catalog.Commit(t.Context(), "c-template"); err != nil || !c.Deleted {
		t.Errorf("a template of a kernel that is gone can still be found: %+v, %v", c, err)
	}
	if out := o.run("kernel", "list", "--json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("list: %s", out)
	}
	var did []string
	if err := audit.Read(filepath.Join(filepath.Dir(o.config), audit.Name), audit.Filter{}, func(e audit.Entry) error {
		did = append(did, e.Action+" "+e.Object+" "+e.Result)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := "versd kernel add mine ok, versd kernel remove mine conflict, versd kernel remove mine conflict, versd kernel remove mine ok"
	if got := strings.Join(did, ", "); got != want {
		t.Errorf("audit log: %s", got)
	}
}

// A kernel can be added before versd has run for the first time.
func TestKernelBeforeTheFirstStart(t *testing.T) {
	dir := t.TempDir()
	o := &operator{t: t, config: filepath.Join(dir, "versd.toml")}
	if err := os.WriteFile(o.config, []byte("data_dir = \""+filepath.Join(dir, "data")+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addedKernel(t, o, "early")
	if out := o.run("kernel", "list"); !strings.Contains(out, "early") {
		t.Errorf("list: %s", out)
	}
	o.run("kernel", "remove", "early")
	if _, err := o.try("kernel", "remove", "early"); !fault.Is(err, fault.NotFound) {
		t.Errorf("removed twice: %v", err)
	}
}
