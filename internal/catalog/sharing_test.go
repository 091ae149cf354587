package catalog_test

import (
	"database/sql"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pressly/goose/v3"

	"vers/internal/catalog"
	"vers/internal/ident"
)

// A catalogue made before histories were kept is brought up to date: its tags have one entry each, and are counted.
func TestSharingMigration(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	db, err := sql.Open("sqlite", path)
	must(t, err)
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, os.DirFS("migrations"))
	must(t, err)
	_, err = provider.UpTo(t.Context(), 1)
	must(t, err)
	const at = "2026-04-14T10:00:00.000000000Z"
	for _, statement := range []string{
		`INSERT INTO organisations VALUES ('o', 'acme', 70000, '` + at + `')`,
		`INSERT INTO commits (commit_id, org_id, owner_id, name, created_at, manifest) VALUES ('c', 'o', 'k', 'n', '` + at + `', '{}')`,
		`INSERT INTO repositories (repo_id, org_id, name, created_at) VALUES ('r', 'o', 'app', '` + at + `')`,
		`INSERT INTO repository_tags VALUES ('t1', 'r', 'latest', 'c', 'text', '` + at + `', '` + at + `')`,
		`INSERT INTO repository_tags VALUES ('t2', 'r', 'v1', 'c', NULL, '` + at + `', '` + at + `')`,
	} {
		_, err := db.ExecContext(t.Context(), statement)
		must(t, err)
	}
	must(t, db.Close())

	c := open(t, path)
	if repo := get[catalog.Repository](t)(c.Repository(t.Context(), "o", "app")); repo.TagCount != 2 {
		t.Errorf("%d tags are counted", repo.TagCount)
	}
	text := "text"
	same(t, get[[]catalog.TagEvent](t)(c.TagEvents(t.Context(), "r", "latest")), []catalog.TagEvent{{
		ID: 1, RepoID: "r", TagName: "latest", At: time.Date(2026, 4, 14, 10, 0, 0, 0, time.UTC), Action: "create", ToCommit: "c",
		Description: &text, Available: true,
	}})
}

// The number of tags follows every way in which tags come and go.
func TestTagCount(t *testing.T) {
	c, org := fresh(t)
	ctx := t.Context()
	commit := catalog.Commit{ID: ident.New(), OrgID: org, CreatedAt: start}
	must(t, c.InsertCommit(ctx, commit))
	repo := catalog.Repository{ID: ident.New(), OrgID: org, Name: "app", CreatedAt: start}
	other := catalog.Repository{ID: ident.New(), OrgID: org, Name: "other", CreatedAt: start}
	must(t, c.InsertRepository(ctx, repo))
	must(t, c.InsertRepository(ctx, other))
	count := func(want int64) {
		t.Helper()
		if got := get[catalog.Repository](t)(c.Repository(ctx, org, "app")).TagCount; got != want {
			t.Errorf("%d tags are counted, %d are there", got, want)
		}
	}
	tags := []catalog.RepositoryTag{}
	for _, name := range []string{"a", "b", "c"} {
		tag := catalog.RepositoryTag{ID: ident.New(), RepoID: repo.ID, Name: name, CommitID: commit.ID, CreatedAt: start, UpdatedAt: start}
		must(t, c.InsertTag(ctx, tag))
		tags = append(tags, tag)
	}
	if err := c.InsertTag(ctx, tags[0]); err == nil {
		t.Error("a tag was inserted twice")
	}
	count(3)
	must(t, c.DeleteTag(ctx, tags[1].ID))
	count(2)
	must(t, c.DeleteRepository(ctx, other.ID))
	count(2)
	must(t, c.SetTagKeys(ctx, tags[0].ID, nil))
	must(t, c.DeleteRepository(ctx, repo.ID))
	must(t, c.InsertRepository(ctx, repo))
	count(0)
}
