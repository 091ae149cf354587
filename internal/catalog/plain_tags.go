package catalog

import "context"

const plainTagColumns = `tag_id, org_id, name, commit_id, description, created_at, updated_at`

func readPlainTag(row scan) (PlainTag, error) {
	var t PlainTag
	err := row(&t.ID, &t.OrgID, &t.Name, &t.CommitID, &t.Description, timeColumn{&t.CreatedAt}, timeColumn{&t.UpdatedAt})
	return t, err
}

// InsertPlainTag adds a plain tag. A name the organisation has is fault.Conflict.
func (r *records) InsertPlainTag(ctx context.Context, t PlainTag) error {
	return insert(ctx, r.write, "tag '"+t.Name+"'", `INSERT INTO commit_tags
		(tag_id, org_id, name, commit_id, description, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		t.ID, t.OrgID, t.Name, t.CommitID, t.Description, timeText(t.CreatedAt), timeText(t.UpdatedAt))
}

// UpdatePlainTag writes commit, description and time of change.
func (r *records) UpdatePlainTag(ctx context.Context, t PlainTag) error {
	return change(ctx, r.write, "tag '"+t.Name+"'", `UPDATE commit_tags SET commit_id = ?, description = ?, updated_at = ?
		WHERE tag_id = ?`, t.CommitID, t.Description, timeText(t.UpdatedAt), t.ID)
}

// DeletePlainTag removes a plain tag.
func (r *records) DeletePlainTag(ctx context.Context, id string) error {
	return change(ctx, r.write, "tag "+id, `DELETE FROM commit_tags WHERE tag_id = ?`, id)
}

// PlainTag gives a plain tag of an organisation by its exact name.
func (r *records) PlainTag(ctx context.Context, orgID, name string) (PlainTag, error) {
	return one(ctx, r.read, "tag '"+name+"'", readPlainTag,
		`SELECT `+plainTagColumns+` FROM commit_tags WHERE org_id = ? AND name = ?`, orgID, name)
}

// PlainTags lists the plain tags of an organisation, newest first.
func (r *records) PlainTags(ctx context.Context, orgID string) ([]PlainTag, error) {
	return list(ctx, r.read, "tags", readPlainTag,
		`SELECT `+plainTagColumns+` FROM commit_tags WHERE org_id = ? ORDER BY created_at DESC, rowid DESC`, orgID)
}
