package main

import (
	"encoding/json"
	"strings"
	"testing"

	"vers/internal/egress"
)

func TestOrganisationEgress(t *testing.T) {
	o := newOperator(t)
	o.run("org", "create", "acme")
	if out := o.run("org", "egress", "acme"); !strings.HasPrefix(out, "inherit") {
		t.Errorf("at first: %q", out)
	}
	o.fails("is no policy", "org", "egress", "acme", "--set", "everything")
	o.fails("not found", "org", "egress", "nobody")
	if out := o.run("org", "egress", "acme", "--set", "internet,deny=192.0.2.0/24:80,443", "--set", "bandwidth=20MiB"); out != "internet,deny=192.0.2.0/24:80,443,bandwidth=20MiB\n" {
		t.Errorf("set: %q", out)
	}
	var shown struct{ Egress egress.Policy }
	if err := json.Unmarshal([]byte(o.run("org", "egress", "acme", "--json")), &shown); err != nil || shown.Egress.BytesPerSecond != 20<<20 {
		t.Errorf("JSON: %+v, %v", shown, err)
	}
	// What another process, the server, reads.
	org, err := o.server.OrganisationByName(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	if policy, err := o.server.Egress(t.Context(), org.ID); err != nil || policy == nil || policy.Mode != egress.ModeInternet {
		t.Errorf("the server reads %v, %v", policy, err)
	}
	o.run("org", "egress", "acme", "--clear")
	if policy, err := o.server.Egress(t.Context(), org.ID); err != nil || policy != nil {
		t.Errorf("cleared, the server reads %v, %v", policy, err)
	}
}
