package registry_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/registry"
)

var latest = registry.Reference{Repository: "app", Tag: "latest"}

// tagged makes a repository app with the tag latest, and n further commits.
func (w *world) tagged(n int) []catalog.Commit {
	w.t.Helper()
	_, err := w.registry.CreateRepository(w.t.Context(), w.org.ID, "app", nil)
	w.must(err)
	_, err = w.registry.CreateTag(w.t.Context(), w.key(w.org), latest, w.own.ID, nil)
	w.must(err)
	commits := []catalog.Commit{w.own}
	for range n {
		commits = append(commits, w.commit(w.org))
	}
	return commits
}

func (w *world) move(ref registry.Reference, to string) {
	w.t.Helper()
	w.now = w.now.Add(time.Minute)
	w.must(w.registry.UpdateTag(w.t.Context(), w.key(w.org), ref, registry.TagChange{CommitID: to}))
}

// newKey makes an API key of an organisation.
func (w *world) newKey(org catalog.Organisation, name string) catalog.Key {
	w.t.Helper()
	key, _, err := w.registry.CreateKey(w.t.Context(), org.ID, name)
	w.must(err)
	return key
}

func (w *world) pointsAt(ref registry.Reference, commitID string) {
	w.t.Helper()
	got, err := w.registry.Resolve(w.t.Context(), w.org.ID, ref)
	w.must(err)
	if got != commitID {
		w.t.Fatalf("%s points at %s, want %s", ref, got, commitID)
	}
}

// story is a tag's history in short, oldest first.
func (w *world) story(ref registry.Reference, names map[string]string) []string {
	w.t.Helper()
	events, err := w.registry.TagHistory(w.t.Context(), w.org.ID, ref)
	w.must(err)
	var lines []string
	for i := len(events) - 1; i >= 0; i-- {
		e := events[i]
		lines = append(lines, fmt.Sprintf("%s %s>%s by %s", e.Action, names[e.FromCommit], names[e.ToCommit], e.KeyName))
	}
	return lines
}

func TestTagHistory(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	c := w.tagged(2)
	names := map[string]string{c[0].ID: "A", c[1].ID: "B", c[2].ID: "C"}
	w.move(latest, c[1].ID)
	w.move(latest, c[1].ID) // it is there: nothing happened
	text := "what for"
	w.must(w.registry.UpdateTag(ctx, w.key(w.org), latest, registry.TagChange{SetText: true, Description: &text}))
	w.move(latest, c[2].ID)
	w.must(w.registry.DeleteTag(ctx, w.key(w.org), latest, ""))
	want := []string{"create >A by key of acme", "move A>B by key of acme", "move B>C by key of acme", "delete C> by key of acme"}
	if diff := cmp.Diff(want, w.story(latest, names)); diff != "" {
		t.Error(diff)
	}
	events, err := w.registry.TagHistory(ctx, w.org.ID, latest)
	w.must(err)
	if e := events[1]; e.Description == nil || *e.Description != text || e.KeyID != w.org.ID || !e.At.Equal(w.now) || !e.Available || e.ID <= events[2].ID {
		t.Errorf("%+v", e)
	}
	_, _, err = w.registry.RollBackTag(ctx, w.key(w.org), latest, registry.Rollback{})
	w.refused(err, fault.NotFound, "deleted", c[2].ID, "repo tag create")
	_, err = w.registry.TagHistory(ctx, w.org.ID, registry.Reference{Repository: "app", Tag: "never"})
	w.refused(err, fault.NotFound, "never")
	_, err = w.registry.TagHistory(ctx, w.other.ID, latest)
	w.refused(err, fault.NotFound)

	// A commit that only a history mentions can be deleted, and collected; the history says that it is gone.
	w.must(w.catalog.MarkCommitDeleted(ctx, c[1].ID))
	w.must(w.catalog.RemoveCommit(ctx, c[1].ID))
	events, err = w.registry.TagHistory(ctx, w.org.ID, latest)
	w.must(err)
	if events[2].Available || events[2].ToCommit != c[1].ID || !events[1].Available {
		t.Errorf("%+v", events)
	}
	// The name begins a new line; the old one stays readable.
	_, err = w.registry.CreateTag(ctx, w.key(w.org), latest, c[0].ID, nil)
	w.must(err)
	if got := w.story(latest, names); len(got) != 5 {
		t.Error(got)
	}
	_, _, err = w.registry.RollBackTag(ctx, w.key(w.org), latest, registry.Rollback{})
	w.refused(err, fault.Conflict, "nothing to go back to")
	w.must(w.registry.DeleteRepository(ctx, w.key(w.org), "app"))
	_, err = w.registry.CreateRepository(ctx, w.org.ID, "app", nil)
	w.must(err)
	_, err = w.registry.TagHistory(ctx, w.org.ID, latest)
	w.refused(err, fault.NotFound)
}

// The history of a tag is bounded, and a rollback still knows the way.
func TestLongHistory(t *testing.T) {
	w := newWorld(t)
	c := w.tagged(2)
	for i := range 1001 {
		w.move(latest, c[1+i%2].ID)
	}
	events, err := w.registry.TagHistory(t.Context(), w.org.ID, latest)
	w.must(err)
	if len(events) != 1000 {
		t.Errorf("%d entries", len(events))
	}
	_, to, err := w.registry.RollBackTag(t.Context(), w.key(w.org), latest, registry.Rollback{})
	w.must(err)
	if to != c[2].ID {
		t.Errorf("back to %s, want %s", to, c[2].ID)
	}
}

func TestRollBackTag(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	c := w.tagged(4)
	for _, commit := range c[1:4] {
		w.move(latest, commit.ID)
	}
	back := func(b registry.Rollback, from, to string) {
		t.Helper()
		gotFrom, gotTo, err := w.registry.RollBackTag(ctx, w.key(w.org), latest, b)
		w.must(err)
		if gotFrom != from || gotTo != to {
			t.Fatalf("from %s to %s, want %s to %s", gotFrom, gotTo, from, to)
		}
		w.pointsAt(latest, to)
	}
	back(registry.Rollback{}, c[3].ID, c[2].ID)
	back(registry.Rollback{}, c[2].ID, c[1].ID) // further back, not forth
	w.move(latest, c[4].ID)
	back(registry.Rollback{Expected: c[4].ID}, c[4].ID, c[1].ID) // what was taken back does not count
	events, err := w.registry.TagHistory(ctx, w.org.ID, latest)
	w.must(err)
	third := events[len(events)-4] // the move to c[3]
	back(registry.Rollback{Entry: third.ID}, c[1].ID, c[3].ID)
	back(registry.Rollback{}, c[3].ID, c[1].ID)
	back(registry.Rollback{}, c[1].ID, c[0].ID)
	_, _, err = w.registry.RollBackTag(ctx, w.key(w.org), latest, registry.Rollback{})
	w.refused(err, fault.Conflict, "app:latest")
	_, _, err = w.registry.RollBackTag(ctx, w.key(w.org), latest, registry.Rollback{Entry: third.ID, Expected: c[1].ID})
	w.refused(err, fault.Conflict, c[0].ID, c[1].ID)
	_, _, err = w.registry.RollBackTag(ctx, w.key(w.org), latest, registry.Rollback{Entry: 1 << 40})
	w.refused(err, fault.NotFound, "entry")
	_, _, err = w.registry.RollBackTag(ctx, w.key(w.other), latest, registry.Rollback{})
	w.refused(err, fault.NotFound)
	w.must(w.catalog.MarkCommitDeleted(ctx, c[3].ID))
	_, _, err = w.registry.RollBackTag(ctx, w.key(w.org), latest, registry.Rollback{Entry: third.ID})
	w.refused(err, fault.Conflict, "deleted", c[3].ID)
	w.pointsAt(latest, c[0].ID)
}

func TestExpectedCommit(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	c := w.tagged(2)
	change := func(expected string) error {
		return w.registry.UpdateTag(ctx, w.key(w.org), latest, registry.TagChange{CommitID: c[2].ID, Expected: expected})
	}
	w.refused(change(c[1].ID), fault.Conflict, "app:latest", c[0].ID, c[1].ID)
	w.refused(w.registry.DeleteTag(ctx, w.key(w.org), latest, c[1].ID), fault.Conflict, c[0].ID)
	w.pointsAt(latest, c[0].ID)
	w.must(change(c[0].ID))
	w.refused(change(c[0].ID), fault.Conflict, c[2].ID)
	w.must(w.registry.DeleteTag(ctx, w.key(w.org), latest, c[2].ID))
}

// Of many that move a tag at once from where they saw it, one succeeds; the others are told. Moves without expectation
// are all in the history, in one unbroken line.
func TestTagMovesRace(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	const racers = 16
	c := w.tagged(racers)
	for round := range 5 {
		seen, err := w.registry.Resolve(ctx, w.org.ID, latest)
		w.must(err)
		var won atomic.Int32
		var group sync.WaitGroup
		for i := range racers {
			group.Go(func() {
				to := c[1+(i+round)%racers].ID
				if to == seen {
					return // a move to where it is succeeds whenever nobody was quicker, and changes nothing
				}
				err := w.registry.UpdateTag(ctx, w.key(w.org), latest, registry.TagChange{CommitID: to, Expected: seen})
				switch {
				case err == nil:
					won.Add(1)
				case !fault.Is(err, fault.Conflict):
					t.Error(err)
				}
			})
		}
		group.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d of %d moves succeeded", won.Load(), racers)
		}
	}
	var group sync.WaitGroup
	for i := range racers {
		group.Go(func() {
			err := w.registry.UpdateTag(ctx, w.key(w.org), latest, registry.TagChange{CommitID: c[1+i].ID})
			if i%4 == 0 && err == nil {
				_, _, err = w.registry.RollBackTag(ctx, w.key(w.org), latest, registry.Rollback{})
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	events, err := w.registry.TagHistory(ctx, w.org.ID, latest)
	w.must(err)
	for i := 0; i+1 < len(events); i++ {
		if events[i].FromCommit != events[i+1].ToCommit {
			t.Fatalf("entry %d begins at %s, the one before ended at %s", events[i].ID, events[i].FromCommit, events[i+1].ToCommit)
		}
	}
	w.pointsAt(latest, events[0].ToCommit)
}

func TestProtectTag(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	c := w.tagged(2)
	ci, dev, ops := w.newKey(w.org, "ci"), w.newKey(w.org, "dev"), w.newKey(w.org, "ops")
	stranger := w.newKey(w.other, "stranger")
	keys, err := w.registry.ProtectTag(ctx, dev, latest, []string{"ci", strings.ToUpper(ops.ID), "ops"})
	w.must(err)
	if len(keys) != 2 || keys[0].ID != ci.ID || keys[1].ID != ops.ID {
		t.Fatalf("%+v", keys)
	}
	if tag, err := w.registry.Tag(ctx, w.org.ID, latest); err != nil || !tag.Protected {
		t.Errorf("%+v, %v", tag, err)
	}
	move := registry.TagChange{CommitID: c[1].ID}
	text := "still possible"
	w.refused(w.registry.UpdateTag(ctx, dev, latest, move), fault.Forbidden, "app:latest", "'ci'", ops.ID)
	w.must(w.registry.UpdateTag(ctx, dev, latest, registry.TagChange{SetText: true, Description: &text}))
	w.refused(w.registry.DeleteTag(ctx, dev, latest, ""), fault.Forbidden, "protected")
	w.refused(w.registry.DeleteRepository(ctx, dev, "app"), fault.Forbidden, "app:latest")
	_, err = w.registry.ProtectTag(ctx, dev, latest, nil)
	w.refused(err, fault.Forbidden, "change its protection", "'ci'")
	_, err = w.registry.ProtectTag(ctx, stranger, latest, nil)
	w.refused(err, fault.NotFound)
	w.must(w.registry.UpdateTag(ctx, ci, latest, move))
	_, _, err = w.registry.RollBackTag(ctx, dev, latest, registry.Rollback{})
	w.refused(err, fault.Forbidden, "protected")
	_, _, err = w.registry.RollBackTag(ctx, ops, latest, registry.Rollback{})
	w.must(err)
	for _, unknown := range []string{"nobody", stranger.ID, "stranger", "", ident.New()} {
		_, err = w.registry.ProtectTag(ctx, ci, latest, []string{unknown})
		w.refused(err, fault.NotFound, "API key")
	}
	w.newKey(w.org, "ci")
	_, err = w.registry.ProtectTag(ctx, ci, latest, []string{"ci"})
	w.refused(err, fault.Invalid, "2 API keys", ci.ID)

	// When all of its keys are gone, the protection can be changed by anybody, the tag not.
	w.must(w.registry.RevokeKey(ctx, w.org.ID, ops.ID))
	_, err = w.registry.ProtectTag(ctx, dev, latest, nil)
	w.refused(err, fault.Forbidden)
	w.must(w.registry.RevokeKey(ctx, w.org.ID, ci.ID))
	w.refused(w.registry.UpdateTag(ctx, dev, latest, move), fault.Forbidden, "change its protection first")
	_, err = w.registry.ProtectTag(ctx, dev, latest, []string{ops.ID})
	w.refused(err, fault.NotFound, "revoked")
	_, err = w.registry.ProtectTag(ctx, dev, latest, nil)
	w.must(err)
	w.must(w.registry.UpdateTag(ctx, dev, latest, move))
	w.must(w.registry.DeleteRepository(ctx, dev, "app"))
}

func TestPlainTags(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	text := "what for"
	tag, err := w.registry.CreatePlainTag(ctx, w.org.ID, "golden", w.own.ID, &text)
	w.must(err)
	_, err = w.registry.CreatePlainTag(ctx, w.org.ID, "golden", w.own.ID, nil)
	w.refused(err, fault.Conflict, "already exists", "golden")
	_, err = w.registry.CreatePlainTag(ctx, w.org.ID, "x", w.alien.ID, nil)
	w.refused(err, fault.NotFound, w.alien.ID)
	_, err = w.registry.CreatePlainTag(ctx, w.org.ID, strings.Repeat("a", 65), w.own.ID, nil)
	w.refused(err, fault.Invalid, "64")
	if tags, err := w.catalog.TagsOfCommit(ctx, w.own.ID); err != nil || len(tags) != 1 || tags[0] != "golden" {
		t.Errorf("%v, %v", tags, err)
	}
	second := w.commit(w.org)
	w.now = w.now.Add(time.Hour)
	w.refused(w.registry.UpdatePlainTag(ctx, w.org.ID, "golden", registry.TagChange{}), fault.Invalid, "nothing to change")
	w.refused(w.registry.UpdatePlainTag(ctx, w.org.ID, "golden", registry.TagChange{CommitID: second.ID, Expected: second.ID}), fault.Conflict, w.own.ID)
	w.must(w.registry.UpdatePlainTag(ctx, w.org.ID, "golden", registry.TagChange{CommitID: second.ID, Expected: w.own.ID}))
	w.must(w.registry.UpdatePlainTag(ctx, w.org.ID, "golden", registry.TagChange{SetText: true}))
	tag.CommitID, tag.Description, tag.UpdatedAt = second.ID, nil, w.now
	got, err := w.registry.PlainTag(ctx, w.org.ID, "golden")
	w.must(err)
	if diff := cmp.Diff(tag, got); diff != "" {
		t.Error(diff)
	}
	w.alien.IsPublic = true
	w.must(w.catalog.UpdateCommit(ctx, w.alien))
	w.refused(w.registry.UpdatePlainTag(ctx, w.org.ID, "golden", registry.TagChange{CommitID: w.alien.ID}), fault.Forbidden, "fork")

	// The other organisation has the same name for its own.
	_, err = w.registry.PlainTag(ctx, w.other.ID, "golden")
	w.refused(err, fault.NotFound, "golden")
	w.refused(w.registry.DeletePlainTag(ctx, w.other.ID, "golden"), fault.NotFound)
	w.refused(w.registry.UpdatePlainTag(ctx, w.other.ID, "golden", registry.TagChange{SetText: true}), fault.NotFound)
	_, err = w.registry.CreatePlainTag(ctx, w.other.ID, "golden", w.alien.ID, nil)
	w.must(err)
	w.must(w.registry.DeletePlainTag(ctx, w.org.ID, "golden"))
	w.refused(w.registry.DeletePlainTag(ctx, w.org.ID, "golden"), fault.NotFound)
	if tags, err := w.registry.PlainTags(ctx, w.other.ID); err != nil || len(tags) != 1 || tags[0].CommitID != w.alien.ID {
		t.Errorf("%+v, %v", tags, err)
	}
}

func TestPublicRepositories(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.tagged(0)
	none := func() {
		t.Helper()
		if list, err := w.registry.PublicRepositories(ctx); err != nil || len(list) != 0 {
			t.Fatalf("%+v, %v", list, err)
		}
		_, err := w.registry.PublicTags(ctx, "acme", "app")
		w.refused(err, fault.NotFound, "acme/app")
		_, err = w.registry.PublicTag(ctx, "acme", latest)
		w.refused(err, fault.NotFound)
	}
	none()
	w.must(w.registry.SetVisibility(ctx, w.org.ID, "app", true))
	list, err := w.registry.PublicRepositories(ctx)
	w.must(err)
	if len(list) != 1 || list[0].OrgName != "acme" || list[0].Name != "app" || list[0].TagCount != 1 {
		t.Errorf("%+v", list)
	}
	tag, err := w.registry.PublicTag(ctx, "acme", latest)
	w.must(err)
	if tag.CommitID != w.own.ID {
		t.Errorf("%+v", tag)
	}
	_, err = w.registry.PublicTag(ctx, "acme", registry.Reference{Repository: "app", Tag: "none"})
	w.refused(err, fault.NotFound, "tag 'none'", "acme/app")
	for _, org := range []string{"Acme", "other", "none"} {
		_, err = w.registry.PublicRepository(ctx, org, "app")
		w.refused(err, fault.NotFound)
	}
	w.must(w.registry.SetVisibility(ctx, w.org.ID, "app", false))
	none()
}

func TestForkNames(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.tagged(0)
	taker := w.key(w.other)
	plan := func(target registry.Reference) (string, error) {
		return w.registry.PlanFork(ctx, taker, "acme", latest, target)
	}
	_, err := plan(latest)
	w.refused(err, fault.NotFound, "acme/app")
	w.must(w.registry.SetVisibility(ctx, w.org.ID, "app", true))
	for _, bad := range []registry.Reference{{Repository: "../x", Tag: "t"}, {Repository: "r", Tag: ""}, {Repository: "", Tag: "t"}} {
		_, err = plan(bad)
		w.refused(err, fault.Invalid)
	}
	source, err := plan(latest)
	w.must(err)
	if source != w.own.ID {
		t.Errorf("fork of %s, want %s", source, w.own.ID)
	}
	name := func(target registry.Reference) error {
		return w.catalog.InTx(ctx, func(tx *catalog.Tx) error {
			return w.registry.NameFork(ctx, tx, taker, target, w.alien.ID)
		})
	}
	w.must(name(latest))
	repo, err := w.registry.Repository(ctx, w.other.ID, "app")
	w.must(err)
	if repo.IsPublic || repo.TagCount != 1 {
		t.Errorf("%+v", repo)
	}
	_, err = plan(latest)
	w.refused(err, fault.Conflict, "--tag-name", "repo tag delete app latest")
	w.refused(name(latest), fault.Conflict, "--tag-name")
	w.must(name(registry.Reference{Repository: "app", Tag: "v2"})) // reused
	events, err := w.registry.TagHistory(ctx, w.other.ID, latest)
	w.must(err)
	if len(events) != 1 || events[0].Action != registry.ActionCreate || events[0].KeyName != "key of other" {
		t.Errorf("%+v", events)
	}
	// A name that is taken leaves no empty repository.
	w.must(w.registry.DeleteRepository(ctx, taker, "app"))
	_, err = w.registry.Repository(ctx, w.other.ID, "app")
	w.refused(err, fault.NotFound)
}

// badNames are refused wherever a name is taken.
var badNames = []string{"", ".", "..", "../x", "a/b", "a b", "a:b", "a\x00", "a\n", "\x1b[31m", "ä", "аpp" /* Cyrillic a */, "app\u200b", "ａｐｐ",
	"%2e%2e", "a@b", "a#", strings.Repeat("a", 200), "\xff"}

func TestBadNames(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.tagged(0)
	for _, name := range badNames {
		_, err := w.registry.CreateRepository(ctx, w.org.ID, name, nil)
		w.refused(err, fault.Invalid)
		_, err = w.registry.CreateOrganisation(ctx, name)
		w.refused(err, fault.Invalid)
		_, err = w.registry.CreatePlainTag(ctx, w.org.ID, name, w.own.ID, nil)
		w.refused(err, fault.Invalid)
		for _, ref := range []registry.Reference{{Repository: name, Tag: "latest"}, {Repository: "app", Tag: name}} {
			_, err = w.registry.CreateTag(ctx, w.key(w.org), ref, w.own.ID, nil)
			w.refused(err, fault.Invalid)
			_, err = w.registry.Tag(ctx, w.org.ID, ref)
			w.refused(err, fault.Invalid)
			_, err = w.registry.TagHistory(ctx, w.org.ID, ref)
			w.refused(err, fault.Invalid)
			_, err = w.registry.PublicTag(ctx, "acme", ref)
			w.refused(err, fault.Invalid)
		}
		_, err = registry.ParseReference(name + ":latest")
		w.refused(err, fault.Invalid)
		_, err = registry.ParseReference("app:" + name)
		w.refused(err, fault.Invalid)
	}
}

func FuzzNames(f *testing.F) {
	for _, seed := range badNames {
		f.Add(seed)
	}
	f.Add("my-app_1.0")
	f.Fuzz(func(t *testing.T, name string) {
		for limit, err := range map[int]error{ident.RepositoryName: registry.CheckRepositoryName(name), ident.TagName: registry.CheckTagName(name)} {
			allowed := len(name) >= 1 && len(name) <= limit && name != "." && name != ".." &&
				strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.") == ""
			if allowed != (err == nil) || err != nil && !fault.Is(err, fault.Invalid) {
				t.Fatalf("%q, at most %d: %v", name, limit, err)
			}
		}
	})
}
