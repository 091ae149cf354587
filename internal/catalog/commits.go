package catalog

import (
	"context"
	"encoding/json"
)

const commitColumns = `commit_id, org_id, owner_id, name, description, is_public, created_at, coalesce(parent_vm, ''),
	coalesce(parent_commit, ''), coalesce(memory_base, ''), coalesce(layer_id, ''), coalesce(template_key, ''),
	durable, deleted, manifest`

// visible holds for commits that users may see.
const visible = `deleted = 0 AND template_key IS NULL`

func readCommit(row scan) (Commit, error) {
	var c Commit
	var manifest string
	err := row(&c.ID, &c.OrgID, &c.OwnerID, &c.Name, &c.Description, &c.IsPublic, timeColumn{&c.CreatedAt},
		&c.ParentVM, &c.ParentCommit, &c.MemoryBase, &c.LayerID, &c.TemplateKey, &c.Durable, &c.Deleted, &manifest)
	c.Manifest = rawJSON(manifest)
	return c, err
}

// manifestText stores a missing manifest as an empty object.
func manifestText(manifest json.RawMessage) string {
	if len(manifest) == 0 {
		return "{}"
	}
	return string(manifest)
}

// InsertCommit adds a commit. A taken id or template key is fault.Conflict.
func (r *records) InsertCommit(ctx context.Context, c Commit) error {
	return insert(ctx, r.write, "commit "+c.ID, `INSERT INTO commits (commit_id, org_id, owner_id, name, description,
		is_public, created_at, parent_vm, parent_commit, memory_base, layer_id, template_key, durable, deleted, manifest)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		c.ID, c.OrgID, c.OwnerID, c.Name, c.Description, c.IsPublic, timeText(c.CreatedAt), nullable(c.ParentVM),
		nullable(c.ParentCommit), nullable(c.MemoryBase), nullable(c.LayerID), nullable(c.TemplateKey),
		c.Durable, c.Deleted, manifestText(c.Manifest))
}

// UpdateCommit writes name, description and visibility of a commit that is not deleted.
func (r *records) UpdateCommit(ctx context.Context, c Commit) error {
	return change(ctx, r.write, "commit "+c.ID, `UPDATE commits SET name = ?, description = ?, is_public = ?
		WHERE commit_id = ? AND deleted = 0`, c.Name, c.Description, c.IsPublic, c.ID)
}

// SetCommitDurable records that all files of a commit are on stable storage, with its final manifest (nil keeps the
// one it has).
func (r *records) SetCommitDurable(ctx context.Context, id string, manifest json.RawMessage) error {
	return change(ctx, r.write, "commit "+id, `UPDATE commits SET durable = 1, manifest = coalesce(?, manifest)
		WHERE commit_id = ?`, nullable(string(manifest)), id)
}

// SetCommitBase writes what a commit stands on: layer and memory base.
func (r *records) SetCommitBase(ctx context.Context, id, layerID, memoryBase string) error {
	return change(ctx, r.write, "commit "+id, `UPDATE commits SET layer_id = ?, memory_base = ? WHERE commit_id = ?`,
		nullable(layerID), nullable(memoryBase), id)
}

// MarkCommitDeleted hides a commit from users while others stand on its data. A template loses its key, so that a new
// one can take its place.
func (r *records) MarkCommitDeleted(ctx context.Context, id string) error {
	return change(ctx, r.write, "commit "+id, `UPDATE commits SET deleted = 1, template_key = NULL WHERE commit_id = ?`, id)
}

// RemoveCommit removes the row. Tags, flats or commits that refer to it make that a fault.Conflict.
func (r *records) RemoveCommit(ctx context.Context, id string) error {
	return change(ctx, r.write, "commit "+id, `DELETE FROM commits WHERE commit_id = ?`, id)
}

// Commit gives one commit, deleted ones and templates too.
func (r *records) Commit(ctx context.Context, id string) (Commit, error) {
	return one(ctx, r.read, "commit "+id, readCommit, `SELECT `+commitColumns+` FROM commits WHERE commit_id = ?`, id)
}

// VisibleCommit gives one commit that users may see: neither deleted nor a template.
func (r *records) VisibleCommit(ctx context.Context, id string) (Commit, error) {
	return one(ctx, r.read, "commit "+id, readCommit,
		`SELECT `+commitColumns+` FROM commits WHERE commit_id = ? AND `+visible, id)
}

// CommitByTemplate gives the internal template commit with a key.
func (r *records) CommitByTemplate(ctx context.Context, key string) (Commit, error) {
	return one(ctx, r.read, "template commit", readCommit,
		`SELECT `+commitColumns+` FROM commits WHERE template_key = ? AND deleted = 0`, key)
}

// Commits lists the visible commits of an organisation, newest first, with their number in all.
func (r *records) Commits(ctx context.Context, orgID string, limit, offset int64) ([]Commit, int64, error) {
	return r.commitPage(ctx, `INDEXED BY commits_listed WHERE org_id = ? AND `+visible, limit, offset, orgID)
}

// PublicCommits lists the public commits of all organisations, newest first, with their number in all.
func (r *records) PublicCommits(ctx context.Context, limit, offset int64) ([]Commit, int64, error) {
	return r.commitPage(ctx, `INDEXED BY commits_public WHERE is_public = 1 AND `+visible, limit, offset)
}

// commitPage names its index: left alone, SQLite takes the one of template keys, since it believes that few are NULL.
func (r *records) commitPage(ctx context.Context, from string, limit, offset int64, args ...any) ([]Commit, int64, error) {
	total, err := count(ctx, r.read, `SELECT count(*) FROM commits `+from, args...)
	if err != nil {
		return nil, 0, err
	}
	page, err := list(ctx, r.read, "commits", readCommit, `SELECT `+commitColumns+` FROM commits `+from+
		` ORDER BY created_at DESC, rowid DESC LIMIT ? OFFSET ?`, append(args, limit, offset)...)
	return page, total, err
}

// AllCommits lists all commits, deleted ones and templates too, oldest first.
func (r *records) AllCommits(ctx context.Context) ([]Commit, error) {
	return list(ctx, r.read, "commits", readCommit, `SELECT `+commitColumns+` FROM commits ORDER BY created_at, rowid`)
}

// CommitChildren lists the commits whose memory is stored relative to that of a commit, deleted ones too.
func (r *records) CommitChildren(ctx context.Context, id string) ([]Commit, error) {
	return list(ctx, r.read, "commits", readCommit,
		`SELECT `+commitColumns+` FROM commits WHERE memory_base = ? ORDER BY created_at, rowid`, id)
}

// CommitHistory gives a commit and its ancestors: the commit itself first, then the commit its VM had been started
// from, and so on. The list ends before templates and at commits that are gone.
func (r *records) CommitHistory(ctx context.Context, id string) ([]Commit, error) {
	return list(ctx, r.read, "commits", readCommit, `WITH RECURSIVE line (id, depth) AS (
			SELECT ?, 0
			UNION ALL
			SELECT commits.parent_commit, line.depth + 1 FROM line JOIN commits ON commits.commit_id = line.id
			WHERE commits.parent_commit IS NOT NULL AND line.depth < 100000)
		SELECT `+commitColumns+` FROM line JOIN commits ON commits.commit_id = line.id
		WHERE template_key IS NULL ORDER BY line.depth`, id)
}
