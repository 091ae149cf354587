package server

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vers/api"
	"vers/internal/registry"
)

// login is a client that logs in as the public one does: three calls, 200 or nothing.
type login struct {
	*harness
	email, key string
}

func (h *harness) newLogin(email string) login {
	_, line := newHostKey(h.t)
	return login{h, email, line}
}

func (l login) call(path, more string) answer {
	l.t.Helper()
	return l.callAs("", "POST", "!/api/shell-auth"+path, fmt.Sprintf(`{"email":%q,"ssh_public_key":%q%s}`, l.email, l.key, more))
}

func (l login) verified() bool {
	l.t.Helper()
	v := read[api.VerifyKeyResult](l.call("/verify-key", "").want(200))
	if v.Verified != v.IsActive || v.Verified && len(v.Orgs) == 0 {
		l.t.Errorf("%+v", v)
	}
	return v.Verified
}

const label = `,"label":"vers-cli-host"`

func TestLoginByToken(t *testing.T) {
	h := newHarness(t)
	l := h.newLogin("Alice@Example.org")
	started := read[api.ShellAuthStarted](l.call("", `,"body":"please\u001b[2J"`).want(200))
	if !started.Success || !started.IsNewUser || started.AlreadyVerified || started.Email != "alice@example.org" || started.Nonce == "" {
		t.Errorf("%+v", started)
	}
	if again := read[api.ShellAuthStarted](l.call("", "").want(200)); again.Nonce != started.Nonce {
		t.Error("the same request waits twice")
	}
	if l.verified() {
		t.Fatal("nobody approved it")
	}
	l.call("/api-keys", label).want(401)
	pending, err := h.registry.PendingLogins(t.Context())
	h.must(err)
	if len(pending) != 1 || strings.Contains(pending[0].Note, "\x1b") {
		t.Fatalf("%+v", pending)
	}
	_, err = h.registry.ApproveLogin(t.Context(), "alice@example.org", "acme")
	h.must(err)
	if !l.verified() {
		t.Fatal("it was approved")
	}
	l.call("/api-keys", `,"label":"vers"`).want(400).says("label")
	l.call("/api-keys", label+`,"org_name":"other"`).want(404).says("other")

	// One approval, one key, whoever is quicker.
	var made atomic.Int64
	var key atomic.Value
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			if a := l.call("/api-keys", label); a.status == 200 {
				made.Add(1)
				key.Store(read[api.ShellKey](a))
			}
		})
	}
	wait.Wait()
	if made.Load() != 1 {
		t.Fatalf("%d keys", made.Load())
	}
	k := key.Load().(api.ShellKey)
	who := read[api.Whoami](h.callAs(k.APIKey, "GET", "/whoami", "").want(200))
	if who.OrgName != "acme" || who.KeyName != "vers-cli-host" || who.KeyID != k.APIKeyID || who.IsAdmin {
		t.Errorf("%+v", who)
	}
	// The next login needs an approval again: the public key proves nothing.
	if next := read[api.ShellAuthStarted](l.call("", "").want(200)); next.AlreadyVerified || next.IsNewUser || next.UserID != started.UserID {
		t.Errorf("%+v", next)
	}
	l.call("/api-keys", label).want(401)
	for _, e := range h.audit.all() {
		if !strings.HasPrefix(e.Actor, "e-mail ") || strings.Contains(e.Action, "verify") {
			t.Errorf("%+v", e)
		}
	}
}

func TestLoginRefused(t *testing.T) {
	h := newHarness(t)
	l := h.newLogin("bob@example.org")
	l.call("/verify-key", "").want(404)
	l.call("", "").want(200)
	_, err := h.registry.RefuseLogin(t.Context(), "bob@example.org")
	h.must(err)
	l.call("/verify-key", "").want(404) // ends the waiting of a client
	l.call("/api-keys", label).want(401)
	for _, key := range []string{"", "ssh-ed25519", "ssh-dss AAAA", "not a key", strings.Repeat("x", 20000)} {
		login{h, "bob@example.org", key}.call("", "").want(400).says("ssh_public_key")
	}
	for _, email := range []string{"", "bob", "bob@", "Bob <bob@example.org>", "a@b\n", strings.Repeat("a", 300) + "@example.org"} {
		login{h, email, l.key}.call("", "").want(400).says("email")
	}
	l.call("", `,"body":"`+strings.Repeat("x", publicBodyLimit)+`"`).want(413)
}

func TestLoginClosed(t *testing.T) {
	h := newHarness(t)
	h.server.Registry = registry.New(h.catalog, registry.Options{})
	l := h.newLogin("bob@example.org")
	for _, path := range []string{"", "/verify-key", "/api-keys"} {
		l.call(path, label).want(403).says("switched off")
	}
	h.callAs("", "POST", "!/api/shell-auth/verify-public-key", fmt.Sprintf(`{"ssh_public_key":%q}`, l.key)).want(403)
}

func TestLoginOpen(t *testing.T) {
	h := newHarness(t)
	h.server.Registry = registry.New(h.catalog, registry.Options{Login: registry.LoginOptions{Mode: registry.LoginOpen}})
	l := h.newLogin("alice@example.org")
	if started := read[api.ShellAuthStarted](l.call("", "").want(200)); !started.AlreadyVerified || !l.verified() {
		t.Fatalf("%+v", started)
	}
	k := read[api.ShellKey](l.call("/api-keys", label).want(200))
	if k.OrgName != "alice" {
		t.Errorf("%+v", k)
	}
	// Somebody else with her e-mail address and a key of their own does not get in.
	thief := h.newLogin("alice@example.org")
	if started := read[api.ShellAuthStarted](thief.call("", "").want(200)); started.AlreadyVerified || thief.verified() {
		t.Errorf("%+v", started)
	}
	thief.call("/api-keys", label).want(401)
	// Somebody with the same name elsewhere gets an organisation of their own.
	other := h.newLogin("alice@example.com")
	other.call("", "").want(200)
	if k := read[api.ShellKey](other.call("/api-keys", label).want(200)); k.OrgName != "alice-2" {
		t.Errorf("%+v", k)
	}
	found := read[api.PublicKeyResult](h.callAs("", "POST", "!/api/shell-auth/verify-public-key", fmt.Sprintf(`{"ssh_public_key":%q}`, l.key)).want(200))
	if !found.Verified || found.Count != 1 || found.Matches[0].Email != "alice@example.org" {
		t.Errorf("%+v", found)
	}
}

// Requests end, and only so many wait.
func TestLoginLimits(t *testing.T) {
	h := newHarness(t)
	now := time.Now()
	h.server.Registry = registry.New(h.catalog, registry.Options{Login: registry.LoginOptions{Mode: registry.LoginToken}, Now: func() time.Time { return now }})
	for i := range 5 {
		h.newLogin("alice@example.org").call("", "").want(200)
		if i == 0 {
			h.newLogin("bob@example.org").call("", "").want(200)
		}
	}
	h.newLogin("alice@example.org").call("", "").want(507).says("open")
	late := h.newLogin("carol@example.org")
	late.call("", "").want(200)
	_, err := h.server.Registry.ApproveLogin(t.Context(), "carol@example.org", "acme")
	h.must(err)
	now = now.Add(11 * time.Minute)
	late.call("/verify-key", "").want(404)
	late.call("/api-keys", label).want(401)
	h.newLogin("alice@example.org").call("", "").want(200)

	for i := 0; ; i++ {
		if i > loginStarts {
			t.Fatal("one address may start any number")
		}
		if a := h.newLogin(fmt.Sprintf("user-%d@example.org", i)).call("", ""); a.status == 429 {
			if a.want(429).header.Get("Retry-After") == "" {
				t.Error("it does not say how long to wait")
			}
			break
		}
	}
}
