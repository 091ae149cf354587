package catalog_test

import (
	"testing"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

// Steps are found by their key as long as their commit is there, and what they take counts only under a commit of a user.
func TestBuildSteps(t *testing.T) {
	c, org := fresh(t)
	ctx := t.Context()
	layers := make([]string, 3)
	for i := range layers {
		layers[i] = ident.New()
		layer := catalog.Layer{ID: layers[i], OrgID: org, ImageFile: "default.ext4", CreatedAt: start}
		if i > 0 {
			layer.ParentID = layers[i-1]
		}
		must(t, c.InsertLayer(ctx, layer))
		must(t, c.FreezeLayer(ctx, layers[i]))
		must(t, c.SetStoredBytes(ctx, catalog.Unmeasured{ID: layers[i], Layer: true}, 1000<<i))
	}
	insert := func(layer, key string, bytes int64) string {
		t.Helper()
		commit := catalog.Commit{ID: ident.New(), OrgID: org, LayerID: layer, CreatedAt: start, Durable: true}
		if key != "" {
			commit.TemplateKey = catalog.StepPrefix + commit.ID
		}
		must(t, c.InsertCommit(ctx, commit))
		must(t, c.SetStoredBytes(ctx, catalog.Unmeasured{ID: commit.ID}, bytes))
		if key != "" {
			must(t, c.PutBuildStep(ctx, org, key, commit.ID, start))
		}
		return commit.ID
	}
	stored := func(want int64) {
		t.Helper()
		if got := get[int64](t)(c.StoredBytes(ctx, org)); got != want {
			t.Errorf("%d bytes count, want %d", got, want)
		}
	}
	one, two := insert(layers[0], "one", 1), insert(layers[1], "two", 2)
	stored(4000) // that of no commit: of a VM
	mine := insert(layers[1], "", 10)
	stored(4000 + 1000 + 2000 + 10)
	must(t, c.MarkCommitDeleted(ctx, mine)) // others may stand on it
	stored(4000 + 1000 + 2000 + 10)

	if got := get[catalog.Commit](t)(c.BuildStep(ctx, org, "one", start.Add(time.Hour))); got.ID != one {
		t.Errorf("%+v", got)
	}
	_, err := c.BuildStep(ctx, "another", "one", start)
	wantKind(t, err, fault.NotFound)
	commits, total, err := c.Commits(ctx, org, 10, 0)
	if err != nil || total != 0 || len(commits) != 0 {
		t.Errorf("users see %+v, %d (%v)", commits, total, err)
	}
	list := get[[]catalog.CachedStep](t)(c.CachedSteps(ctx))
	same(t, list, []catalog.CachedStep{
		{CommitID: two, OrgID: org, UsedAt: start, Bytes: 2002},
		{CommitID: one, OrgID: org, UsedAt: start.Add(time.Hour), Bytes: 1001},
	})
	three := insert(layers[2], "two", 4) // in its place
	if list := get[[]catalog.CachedStep](t)(c.CachedSteps(ctx)); len(list) != 3 || list[0].CommitID != two || !list[0].Unused || list[1].CommitID != three || list[1].Unused {
		t.Errorf("%+v", list)
	}
	must(t, c.ForgetStep(ctx, one))
	_, err = c.BuildStep(ctx, org, "one", start)
	wantKind(t, err, fault.NotFound)
	wantKind(t, c.ForgetStep(ctx, ident.New()), fault.NotFound)
	must(t, c.RemoveCommit(ctx, three)) // its step goes along
	_, err = c.BuildStep(ctx, org, "two", start)
	wantKind(t, err, fault.NotFound)
}
