package server

import (
	"fmt"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"vers/internal/catalog"
	"vers/internal/ident"
)

// Sizes at which lists, look-ups and tag moves must answer within milliseconds.
const (
	scaleCommits      = 10_000
	scaleRepositories = 1_000
	scaleTags         = 100 // in each repository
	scaleLimit        = 10 * time.Millisecond
)

// fill writes commits, repositories and tags of organisation acme, one repository in ten public.
func (h *harness) fill() (commits []string) {
	h.t.Helper()
	began := time.Now().Add(-scaleCommits * time.Second)
	h.must(h.catalog.InTx(h.t.Context(), func(tx *catalog.Tx) error {
		for i := range scaleCommits {
			c := catalog.Commit{ID: ident.New(), OrgID: h.caller.OrgID, Name: fmt.Sprint("commit ", i), IsPublic: i%10 == 0, Durable: true,
				CreatedAt: began.Add(time.Duration(i) * time.Second)}
			if i > 0 {
				c.ParentCommit = commits[i/2] // lines of about 14 commits
			}
			if err := tx.InsertCommit(h.t.Context(), c); err != nil {
				return err
			}
			commits = append(commits, c.ID)
		}
		for i := range scaleRepositories {
			if err := h.fillRepository(tx, commits, i, began); err != nil {
				return err
			}
		}
		return nil
	}))
	return commits
}

func (h *harness) fillRepository(tx *catalog.Tx, commits []string, i int, began time.Time) error {
	ctx := h.t.Context()
	repo := catalog.Repository{ID: ident.New(), OrgID: h.caller.OrgID, Name: fmt.Sprint("repo-", i), IsPublic: i%10 == 0,
		CreatedAt: began.Add(time.Duration(i) * time.Second)}
	if err := tx.InsertRepository(ctx, repo); err != nil {
		return err
	}
	for n := range scaleTags {
		at := began.Add(time.Duration(n) * time.Second)
		tag := catalog.RepositoryTag{ID: ident.New(), RepoID: repo.ID, Name: fmt.Sprint("v", n), CommitID: commits[(i*scaleTags+n)%len(commits)], CreatedAt: at, UpdatedAt: at}
		if err := tx.InsertTag(ctx, tag); err != nil {
			return err
		}
		event := catalog.TagEvent{RepoID: repo.ID, TagName: tag.Name, At: at, Action: "create", ToCommit: tag.CommitID}
		if err := tx.InsertTagEvent(ctx, event); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkScale measures whole requests, without the network, with many objects in the catalogue. A median beyond
// scaleLimit fails.
func BenchmarkScale(b *testing.B) {
	h := newHarness(b)
	commits := h.fill()
	pick := func(i int) string { return commits[i%len(commits)] }
	for _, c := range []struct {
		name, method string
		path         func(i int) string
		body         func(i int) string
	}{
		{"list commits", "GET", func(int) string { return "/commits" }, nil},
		{"list commits, last page", "GET", func(int) string { return "/commits?offset=9950" }, nil},
		{"list public commits", "GET", func(int) string { return "/commits/public" }, nil},
		{"history of a commit", "GET", func(i int) string { return "/vm/commits/" + pick(i*37) + "/parents" }, nil},
		{"list repositories", "GET", func(int) string { return "/repositories" }, nil},
		{"list public repositories", "GET", func(int) string { return "/public/repositories" }, nil},
		{"get a repository", "GET", func(i int) string { return fmt.Sprint("/repositories/repo-", i*37%scaleRepositories) }, nil},
		{"list tags", "GET", func(i int) string { return fmt.Sprintf("/repositories/repo-%d/tags", i*37%scaleRepositories) }, nil},
		{"get a tag", "GET", func(i int) string {
			return fmt.Sprintf("/repositories/repo-%d/tags/v%d", i*37%scaleRepositories, i%scaleTags)
		}, nil},
		{"history of a tag", "GET", func(i int) string {
			return fmt.Sprintf("/repositories/repo-%d/tags/v%d/history", i*37%scaleRepositories, i%scaleTags)
		}, nil},
		{"move a tag", "PATCH", func(i int) string {
			return fmt.Sprintf("/repositories/repo-%d/tags/v%d", i*37%scaleRepositories, i%scaleTags)
		}, func(i int) string { return `{"commit_id":"` + pick(i*101) + `"}` }},
		{"change a commit", "PATCH", func(i int) string { return "/commits/" + pick(i*37) }, func(int) string { return `{"is_public":false}` }},
	} {
		b.Run(c.name, func(b *testing.B) {
			var took []time.Duration
			for i := 0; b.Loop(); i++ {
				body := ""
				if c.body != nil {
					body = c.body(i)
				}
				req := h.request(h.key, c.method, c.path(i), body)
				w := httptest.NewRecorder()
				began := time.Now()
				h.server.ServeHTTP(w, req)
				took = append(took, time.Since(began))
				if w.Code >= 400 {
					b.Fatalf("%s %s: status %d: %s", c.method, c.path(i), w.Code, w.Body)
				}
			}
			report(b, took)
		})
	}
}

func report(b *testing.B, took []time.Duration) {
	b.Helper()
	slices.Sort(took)
	median := took[len(took)/2]
	b.ReportMetric(float64(median.Microseconds())/1000, "ms/p50")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms/p99")
	if median > scaleLimit {
		b.Errorf("the median is %v, the limit %v", median, scaleLimit)
	}
}
