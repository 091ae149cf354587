package catalog

import (
	"context"
	"time"
)

// StepPrefix begins the template key of commits that are the outcome of a build's step: internal like templates, and in use
// as long as the table build_steps names them.
const StepPrefix = "step:"

// isStep holds for such commits.
const isStep = `template_key GLOB 'step:*'`

// BuildStep finds the commit with the outcome of a step of an organisation's builds, and notes that it is used now. One
// whose owner deleted it is none.
func (r *records) BuildStep(ctx context.Context, orgID, key string, now time.Time) (Commit, error) {
	c, err := one(ctx, r.read, "build step", readCommit, `SELECT `+commitColumns+` FROM commits
		WHERE commit_id = (SELECT commit_id FROM build_steps WHERE org_id = ? AND key = ?) AND deleted = 0`, orgID, key)
	if err != nil {
		return c, err
	}
	// To the minute: what is read often is not written as often.
	_, err = r.write.ExecContext(ctx, `UPDATE build_steps SET used_at = ? WHERE org_id = ? AND key = ? AND used_at < ?`,
		timeText(now), orgID, key, timeText(now.Add(-time.Minute)))
	return c, translate(err, "build step")
}

// PutBuildStep records the outcome of a step, in place of an earlier one.
func (r *records) PutBuildStep(ctx context.Context, orgID, key, commitID string, now time.Time) error {
	return insert(ctx, r.write, "build step", `INSERT INTO build_steps (org_id, key, commit_id, used_at) VALUES (?, ?, ?, ?)
		ON CONFLICT (org_id, key) DO UPDATE SET commit_id = excluded.commit_id, used_at = excluded.used_at`,
		orgID, key, commitID, timeText(now))
}

// CachedStep is a commit that only builds know.
type CachedStep struct {
	CommitID string
	OrgID    string
	UsedAt   time.Time // by a build
	Bytes    int64     // that it takes by itself, as far as they were measured
	Unused   bool      // no step has it as its outcome any more
}

// CachedSteps lists the internal commits of builds of all organisations, the least recently used first.
func (r *records) CachedSteps(ctx context.Context) ([]CachedStep, error) {
	return list(ctx, r.read, "build steps", func(row scan) (s CachedStep, err error) {
		return s, row(&s.CommitID, &s.OrgID, timeColumn{&s.UsedAt}, &s.Bytes, &s.Unused)
	}, `SELECT commits.commit_id, commits.org_id, coalesce(max(used_at), commits.created_at) AS used,
			coalesce(commits.stored_bytes, 0) + coalesce(layers.stored_bytes, 0), count(used_at) = 0
		FROM commits LEFT JOIN build_steps ON build_steps.commit_id = commits.commit_id
			LEFT JOIN layers ON layers.layer_id = commits.layer_id
		WHERE deleted = 0 AND `+isStep+` GROUP BY commits.commit_id ORDER BY used, commits.rowid`)
}

// ForgetStep gives up an internal commit of builds: it goes when nothing stands on it.
func (r *records) ForgetStep(ctx context.Context, commitID string) error {
	if _, err := r.write.ExecContext(ctx, `DELETE FROM build_steps WHERE commit_id = ?`, commitID); err != nil {
		return translate(err, "build step")
	}
	return r.MarkCommitDeleted(ctx, commitID)
}
