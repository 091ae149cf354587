package registry_test

import (
	"encoding/hex"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/registry"
)

// world is a registry with two organisations, each with one commit; the other one's is private at first.
type world struct {
	t          *testing.T
	catalog    *catalog.Catalog
	registry   *registry.Registry
	now        time.Time
	org, other catalog.Organisation
	secret     string
	own, alien catalog.Commit
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, now: time.Date(2026, 4, 14, 10, 0, 0, 0, time.UTC)}
	var err error
	w.catalog, err = catalog.Open(t.Context(), filepath.Join(t.TempDir(), "catalog.db"))
	w.must(err)
	t.Cleanup(func() { w.catalog.Close() })
	w.registry = registry.New(w.catalog, registry.Options{Now: func() time.Time { return w.now }})
	first, err := w.registry.Setup(t.Context(), "acme")
	w.must(err)
	w.org, w.secret = first.Organisation, first.Secret
	w.other, err = w.registry.CreateOrganisation(t.Context(), "other")
	w.must(err)
	w.own, w.alien = w.commit(w.org), w.commit(w.other)
	return w
}

func (w *world) commit(org catalog.Organisation) catalog.Commit {
	w.t.Helper()
	c := catalog.Commit{ID: ident.New(), OrgID: org.ID, Name: "c", CreatedAt: w.now}
	w.must(w.catalog.InsertCommit(w.t.Context(), c))
	return c
}

// key is somebody of an organisation.
func (w *world) key(org catalog.Organisation) catalog.Key {
	return catalog.Key{ID: org.ID, OrgID: org.ID, Name: "key of " + org.Name}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// refused expects an error of a kind whose message has all the words.
func (w *world) refused(err error, kind fault.Kind, words ...string) {
	w.t.Helper()
	if !fault.Is(err, kind) {
		w.t.Fatalf("got %v, want kind %q", err, kind)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			w.t.Errorf("message %q lacks %q", err, word)
		}
	}
}

func TestSetup(t *testing.T) {
	w := newWorld(t)
	again, err := w.registry.Setup(t.Context(), "second")
	w.must(err)
	if again != nil {
		t.Fatal("a second Setup made another organisation")
	}
	if w.other.GID == w.org.GID {
		t.Fatalf("both organisations have group id %d", w.org.GID)
	}
	_, err = w.registry.CreateOrganisation(t.Context(), "acme")
	w.refused(err, fault.Conflict, "acme")
	_, err = w.registry.CreateOrganisation(t.Context(), "a b")
	w.refused(err, fault.Invalid, "a b")
	local, err := w.registry.LocalKey(t.Context())
	w.must(err)
	if local.OrgID != w.org.ID || !local.IsLocal {
		t.Fatalf("local key %+v", local)
	}
}

func TestKeys(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	key, err := w.registry.Authenticate(ctx, w.secret)
	w.must(err)
	if key.OrgID != w.org.ID || w.secret[:36] != key.ID || len(w.secret) != 100 {
		t.Fatalf("key %q of organisation %s", w.secret, key.OrgID)
	}
	if _, err := hex.DecodeString(w.secret[36:]); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(key.Hash), w.secret[36:]) {
		t.Fatal("the catalogue holds the secret")
	}
	local, err := w.registry.LocalKey(ctx)
	w.must(err)
	flipped := []byte(w.secret)
	flipped[99] ^= 1
	for name, text := range map[string]string{
		"empty": "", "short": w.secret[:99], "long": w.secret + "0", "one bit": string(flipped),
		"unknown id": ident.New() + w.secret[36:], "upper case": strings.ToUpper(w.secret),
		"no secret of the local key": local.ID + strings.Repeat("0", 64), "no id": strings.Repeat("x", 100),
		"vm prefix": "vm-" + w.secret[3:],
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.registry.Authenticate(ctx, text)
			w.refused(err, fault.Unauthenticated, "unauthorized")
		})
	}

	second, secret, err := w.registry.CreateKey(ctx, w.org.ID, "ci")
	w.must(err)
	w.refused(w.registry.RevokeKey(ctx, w.other.ID, second.ID), fault.NotFound)
	w.refused(w.registry.RevokeKey(ctx, w.org.ID, local.ID), fault.Conflict)
	w.must(w.registry.RevokeKey(ctx, w.org.ID, second.ID))
	_, err = w.registry.Authenticate(ctx, secret)
	w.refused(err, fault.Unauthenticated, "revoked")
	_, _, err = w.registry.CreateKey(ctx, w.org.ID, "")
	w.refused(err, fault.Invalid)
	_, _, err = w.registry.CreateKey(ctx, ident.New(), "ci")
	w.refused(err, fault.NotFound)
	keys, err := w.registry.Keys(ctx, w.org.ID)
	w.must(err)
	if len(keys) != 3 {
		t.Fatalf("%d keys, want 3", len(keys))
	}
}

func TestExpiredKey(t *testing.T) {
	w := newWorld(t)
	expires := w.now.Add(time.Hour)
	key, err := w.registry.Authenticate(t.Context(), w.secret)
	w.must(err)
	copied := key
	copied.ID, copied.ExpiresAt = ident.New(), &expires
	w.must(w.catalog.InsertKey(t.Context(), copied))
	text := copied.ID + w.secret[36:]
	_, err = w.registry.Authenticate(t.Context(), text)
	w.must(err)
	w.now = expires
	_, err = w.registry.Authenticate(t.Context(), text)
	w.refused(err, fault.Unauthenticated, "expired")
}

func TestRepositories(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	text := "what for"
	for _, name := range []string{"", "a/b", "a b", "ü", "..", ".", strings.Repeat("a", 65), "a:b"} {
		_, err := w.registry.CreateRepository(ctx, w.org.ID, name, nil)
		w.refused(err, fault.Invalid)
	}
	repo, err := w.registry.CreateRepository(ctx, w.org.ID, "my-app", &text)
	w.must(err)
	_, err = w.registry.CreateRepository(ctx, w.org.ID, "my-app", nil)
	w.refused(err, fault.Conflict, "repository already exists", "my-app")
	_, err = w.registry.CreateRepository(ctx, w.other.ID, "my-app", nil) // names are per organisation
	w.must(err)
	w.must(w.registry.SetVisibility(ctx, w.org.ID, "my-app", true))
	repo.IsPublic = true
	got, err := w.registry.Repository(ctx, w.org.ID, "my-app")
	w.must(err)
	if diff := cmp.Diff(repo, got); diff != "" {
		t.Fatal(diff)
	}
	w.must(w.registry.DeleteRepository(ctx, w.key(w.other), "my-app"))
	repos, err := w.registry.Repositories(ctx, w.org.ID)
	w.must(err)
	if len(repos) != 1 {
		t.Fatalf("deleting the other organisation's repository left %d", len(repos))
	}
	w.refused(w.registry.DeleteRepository(ctx, w.key(w.org), "My-app"), fault.NotFound, "My-app")
	w.refused(w.registry.SetVisibility(ctx, w.org.ID, "nothing", true), fault.NotFound, "nothing")
}

func TestTags(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	latest := registry.Reference{Repository: "my-app", Tag: "latest"}
	_, err := w.registry.CreateTag(ctx, w.key(w.org), latest, w.own.ID, nil)
	w.refused(err, fault.NotFound, "repository 'my-app'")
	_, err = w.registry.CreateRepository(ctx, w.org.ID, "my-app", nil)
	w.must(err)

	_, err = w.registry.CreateTag(ctx, w.key(w.org), registry.Reference{Repository: "my-app", Tag: "a b"}, w.own.ID, nil)
	w.refused(err, fault.Invalid, "a b")
	_, err = w.registry.CreateTag(ctx, w.key(w.org), latest, ident.New(), nil)
	w.refused(err, fault.NotFound, "commit")
	_, err = w.registry.CreateTag(ctx, w.key(w.org), latest, w.alien.ID, nil)
	w.refused(err, fault.NotFound, "commit")
	w.alien.IsPublic = true
	w.must(w.catalog.UpdateCommit(ctx, w.alien))
	_, err = w.registry.CreateTag(ctx, w.key(w.org), latest, w.alien.ID, nil)
	w.refused(err, fault.Forbidden, "fork")

	text := "release"
	tag, err := w.registry.CreateTag(ctx, w.key(w.org), latest, w.own.ID, &text)
	w.must(err)
	_, err = w.registry.CreateTag(ctx, w.key(w.org), latest, w.own.ID, nil)
	w.refused(err, fault.Conflict, "my-app:latest", "repo tag update")
	_, err = w.registry.Tag(ctx, w.other.ID, latest)
	w.refused(err, fault.NotFound)

	second := w.commit(w.org)
	w.now = w.now.Add(time.Minute)
	w.must(w.registry.UpdateTag(ctx, w.key(w.org), latest, registry.TagChange{CommitID: second.ID}))
	tag.CommitID, tag.UpdatedAt = second.ID, w.now
	w.sameTag(latest, tag)
	w.must(w.registry.UpdateTag(ctx, w.key(w.org), latest, registry.TagChange{SetText: true}))
	tag.Description = nil
	w.sameTag(latest, tag)
	w.refused(w.registry.UpdateTag(ctx, w.key(w.org), latest, registry.TagChange{}), fault.Invalid, "nothing to change")
	w.refused(w.registry.UpdateTag(ctx, w.key(w.org), latest, registry.TagChange{CommitID: w.alien.ID}), fault.Forbidden, "fork")
	w.refused(w.registry.UpdateTag(ctx, w.key(w.org), registry.Reference{Repository: "my-app", Tag: "none"},
		registry.TagChange{SetText: true}), fault.NotFound, "tag 'none'", "my-app")
	w.sameTag(latest, tag)

	id, err := w.registry.Resolve(ctx, w.org.ID, latest)
	w.must(err)
	if id != second.ID {
		t.Fatalf("my-app:latest is %s, want %s", id, second.ID)
	}
	w.must(w.registry.DeleteTag(ctx, w.key(w.org), latest, ""))
	w.refused(w.registry.DeleteTag(ctx, w.key(w.org), latest, ""), fault.NotFound)
	tags, err := w.registry.Tags(ctx, w.org.ID, "my-app")
	w.must(err)
	if len(tags) != 0 {
		t.Fatalf("%d tags left", len(tags))
	}
}

func (w *world) sameTag(ref registry.Reference, want catalog.RepositoryTag) {
	w.t.Helper()
	got, err := w.registry.Tag(w.t.Context(), w.org.ID, ref)
	w.must(err)
	if diff := cmp.Diff(want, got); diff != "" {
		w.t.Fatal(diff)
	}
}

func TestCommits(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	text, name, long := "what", "release 1 ✓", strings.Repeat("a", 129)
	commit, err := w.registry.UpdateCommit(ctx, w.org.ID, w.own.ID,
		registry.CommitChange{IsPublic: true, Name: &name, SetText: true, Description: &text})
	w.must(err)
	if commit.Name != name || *commit.Description != text || !commit.IsPublic {
		t.Fatalf("%+v", commit)
	}
	commit, err = w.registry.UpdateCommit(ctx, w.org.ID, w.own.ID, registry.CommitChange{SetText: true})
	w.must(err)
	if commit.Name != name || commit.Description != nil || commit.IsPublic {
		t.Fatalf("%+v", commit)
	}
	_, err = w.registry.UpdateCommit(ctx, w.org.ID, w.own.ID, registry.CommitChange{Name: &long})
	w.refused(err, fault.Invalid)
	_, err = w.registry.UpdateCommit(ctx, w.org.ID, w.alien.ID, registry.CommitChange{})
	w.refused(err, fault.NotFound)
	_, err = w.registry.UpdateCommit(ctx, w.other.ID, w.alien.ID, registry.CommitChange{IsPublic: true})
	w.must(err)
	_, err = w.registry.UpdateCommit(ctx, w.org.ID, w.alien.ID, registry.CommitChange{})
	w.refused(err, fault.Forbidden)
	_, err = w.registry.Commit(ctx, w.org.ID, w.alien.ID) // public: readable
	w.must(err)

	// A line that leads through another organisation's private commit ends there.
	w.alien.IsPublic = false
	w.must(w.catalog.UpdateCommit(ctx, w.alien))
	child := catalog.Commit{ID: ident.New(), OrgID: w.org.ID, ParentCommit: w.alien.ID, CreatedAt: w.now}
	w.must(w.catalog.InsertCommit(ctx, child))
	line, err := w.registry.CommitHistory(ctx, w.org.ID, child.ID)
	w.must(err)
	if len(line) != 1 || line[0].ID != child.ID {
		t.Fatalf("%+v", line)
	}
	_, err = w.registry.CommitHistory(ctx, w.org.ID, w.alien.ID)
	w.refused(err, fault.NotFound)
}

func TestEnv(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	for name, vars := range map[string]map[string]string{
		"digit first": {"1A": ""}, "empty": {"": ""}, "dash": {"A-B": ""}, "long key": {strings.Repeat("A", 257): ""},
		"long value": {"A": strings.Repeat("ü", 8193)}, "NUL": {"A": "\x00"}, "newline in key": {"A\n": ""},
	} {
		t.Run(name, func(t *testing.T) {
			vars["GOOD"] = "secret-value"
			_, err := w.registry.PutEnv(ctx, w.org.ID, vars, false)
			w.refused(err, fault.Invalid)
		})
	}
	all, err := w.registry.Env(ctx, w.org.ID)
	w.must(err)
	if len(all) != 0 {
		t.Fatalf("something was stored: %v", all)
	}
	_, err = w.registry.PutEnv(ctx, w.org.ID, map[string]string{"A": strings.Repeat("ü", 8192), strings.Repeat("B", 256): ""}, false)
	w.must(err)
	all, err = w.registry.PutEnv(ctx, w.org.ID, map[string]string{"C": "3"}, true)
	w.must(err)
	if diff := cmp.Diff(map[string]string{"C": "3"}, all); diff != "" {
		t.Fatal(diff)
	}
	w.refused(w.registry.DeleteEnv(ctx, w.other.ID, "C"), fault.NotFound, "Environment variable not found")
	w.must(w.registry.DeleteEnv(ctx, w.org.ID, "C"))
}

func TestParseReference(t *testing.T) {
	for in, want := range map[string]registry.Reference{
		"my-app:latest": {Repository: "my-app", Tag: "latest"},
		"A.b_c:1.0-rc":  {Repository: "A.b_c", Tag: "1.0-rc"},
	} {
		got, err := registry.ParseReference(in)
		if err != nil || got != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", ":", "a", "a:", ":a", "a:b:c", "org/a:b", "a:b/c", "a b:c", "a@b:c", "a#:b", "ä:b",
		"a:b\n", " a:b", "..:a", "a:.", strings.Repeat("a", 65) + ":b", "a:" + strings.Repeat("b", 129)} {
		if got, err := registry.ParseReference(in); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	_, err := registry.ParseReference("acme/my-app:latest")
	if err == nil || !strings.Contains(err.Error(), "fork") {
		t.Errorf("no advice to fork: %v", err)
	}
}

func FuzzParseReference(f *testing.F) {
	for _, seed := range []string{"my-app:latest", "a:b:c", "org/a:b", ":", "", "a\x00:b", "ü:x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		ref, err := registry.ParseReference(in)
		if err != nil {
			var kind *fault.Error
			if !errors.As(err, &kind) || kind.Kind != fault.Invalid {
				t.Fatalf("%q: %v", in, err)
			}
			return
		}
		if ref.String() != in {
			t.Fatalf("%q was read as %q", in, ref)
		}
		if strings.Count(in, ":") != 1 || strings.ContainsAny(in, "/ @#\n") || len(ref.Repository) > 64 || len(ref.Tag) > 128 {
			t.Fatalf("%q was accepted", in)
		}
	})
}
