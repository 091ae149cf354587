package bake

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"vers/api"
	"vers/internal/fault"
	"vers/test/rig"
)

var day = time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)

// kitchen bakes definitions on a server whose machines are no machines.
type kitchen struct {
	t      *testing.T
	client *api.Client // of acme
	other  *api.Client
	files  fstest.MapFS
	said   []string
}

func newKitchen(t *testing.T) *kitchen {
	t.Helper()
	s := rig.New(t)
	k := &kitchen{t: t, files: fstest.MapFS{}}
	for client, key := range map[**api.Client]string{&k.client: s.Key, &k.other: s.OtherKey} {
		var err error
		if *client, err = api.NewClient(s.URL, api.WithKey(key)); err != nil {
			t.Fatal(err)
		}
	}
	k.write("check", "echo shared check")
	k.write("one/Dockerfile", "FROM default\nRUN echo hello from one\nLABEL org.opencontainers.image.description=\"The first\"\n")
	k.write("one/check", "echo one is good")
	k.write("one/vers.toml", "[machine]\nmem_size_mib = 192\n")
	return k
}

func (k *kitchen) write(name, text string) { k.files[name] = &fstest.MapFile{Data: []byte(text)} }

func (k *kitchen) bake(change func(*Options)) []Outcome {
	k.t.Helper()
	o := Options{Client: k.client, Definitions: k.files, Keep: 4, Now: day, Say: func(image, line string) { k.said = append(k.said, image+": "+line) }}
	change(&o)
	outcomes, err := Run(k.t.Context(), o)
	if err != nil {
		k.t.Fatal(err)
	}
	return outcomes
}

// tags gives the tags of a repository and their commits.
func (k *kitchen) tags(repo string) map[string]string {
	k.t.Helper()
	tags, err := k.client.RepoTags(k.t.Context(), repo)
	if err != nil {
		k.t.Fatal(err)
	}
	found := map[string]string{}
	for _, t := range tags {
		found[t.TagName] = t.CommitID
	}
	return found
}

func (k *kitchen) commits() []string {
	k.t.Helper()
	list, err := k.client.Commits(k.t.Context())
	if err != nil {
		k.t.Fatal(err)
	}
	var ids []string
	for _, c := range list {
		ids = append(ids, c.CommitID)
	}
	return ids
}

func TestBake(t *testing.T) {
	k := newKitchen(t)
	plain := func(*Options) {}
	first := k.bake(plain)
	if len(first) != 1 || first[0].Err != nil || first[0].Commit == "" {
		t.Fatalf("%+v; said %q", first, k.said)
	}
	if tags := k.tags("one"); len(tags) != 2 || tags["latest"] != first[0].Commit || tags["2026-11-21"] != first[0].Commit {
		t.Errorf("tags are %v", tags)
	}
	for _, want := range []string{"one: check: shared check", "one: check: one is good"} {
		if !slices.Contains(k.said, want) {
			t.Errorf("%q was not said: %q", want, k.said)
		}
	}
	if vms, err := k.client.VMs(t.Context()); err != nil || len(vms) > 0 {
		t.Errorf("machines are left: %+v, %v", vms, err)
	}
	repo, err := k.other.PublicRepository(t.Context(), "acme", "one")
	if err != nil || repo.Description == nil || *repo.Description != "The first" {
		t.Errorf("as others see it: %+v, %v", repo, err)
	}
	fork, err := k.other.Fork(t.Context(), api.ForkRequest{SourceOrg: "acme", SourceRepo: "one", SourceTag: "latest"})
	if err != nil || fork.Reference != "one:latest" {
		t.Errorf("fork: %+v, %v", fork, err)
	}

	changed := func(o *Options) { o.IfChanged = true }
	if again := k.bake(changed); !again[0].Skipped || again[0].Commit != first[0].Commit {
		t.Errorf("nothing has changed: %+v", again)
	}
	k.write("one/check", "echo one is better")
	if again := k.bake(changed); again[0].Skipped || again[0].Err != nil {
		t.Errorf("the check has changed: %+v", again)
	}
}

func TestPrune(t *testing.T) {
	k := newKitchen(t)
	var made []string
	for i := range 5 {
		out := k.bake(func(o *Options) { o.Keep, o.NoCache, o.Now = 2, true, day.AddDate(0, 0, i) })
		if out[0].Err != nil {
			t.Fatal(out[0].Err)
		}
		made = append(made, out[0].Commit)
		if i == 0 { // somebody names the first one elsewhere
			if _, err := k.client.CreateTag(t.Context(), api.TagRequest{TagName: "keepsake", CommitID: made[0]}); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := map[string]string{"latest": made[4], "2026-11-24": made[3], "2026-11-25": made[4]}
	if got := k.tags("one"); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("tags are %v, want %v", got, want)
	}
	commits := k.commits()
	for i, want := range []bool{true, false, false, true, true} {
		if slices.Contains(commits, made[i]) != want {
			t.Errorf("the commit of day %d is there: %v, want %v", i, !want, want)
		}
	}
	// A second time on one day: the tags move, and what they named goes.
	k.bake(func(o *Options) { o.Keep, o.NoCache, o.Now = 2, true, day.AddDate(0, 0, 4) })
	if slices.Contains(k.commits(), made[4]) {
		t.Error("the commit of the day's first run is left")
	}
}

func TestOneFailsOthersDoNot(t *testing.T) {
	k := newKitchen(t)
	k.write("broken/Dockerfile", "FROM default\nRUN echo what went wrong; exit 3\n")
	k.write("broken/check", "true")
	k.write("bad/Dockerfile", "FROM default\nRUN echo built\n")
	k.write("bad/check", "echo not good enough >&2; exit 1")
	k.write("later/Dockerfile", "FROM absent:latest\n")
	k.write("later/check", "true")
	errs := map[string]error{}
	for _, out := range k.bake(func(*Options) {}) {
		errs[out.Image] = out.Err
	}
	for image, says := range map[string]string{"broken": "what went wrong", "bad": "not good enough", "later": "bake absent first"} {
		if err := errs[image]; err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", image, err)
		}
		if _, err := k.client.Repository(t.Context(), image); api.StatusOf(err) != 404 {
			t.Errorf("%s was published: %v", image, err)
		}
	}
	if errs["one"] != nil {
		t.Errorf("one: %v", errs["one"])
	}
	if commits := k.commits(); len(commits) != 1 {
		t.Errorf("commits are left: %v", commits)
	}
	_, err := Run(t.Context(), Options{Definitions: k.files, Images: []string{"nothing"}})
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "one") {
		t.Errorf("an image that there is not: %v", err)
	}
}
