package catalog

import "context"

// Unmeasured is a commit or frozen layer whose size on disk is not known yet.
type Unmeasured struct {
	ID    string
	Layer bool
}

// Unmeasured lists what has to be measured before StoredBytes is right. Frozen layers and durable commits do not change,
// so each is measured once.
func (r *records) Unmeasured(ctx context.Context) ([]Unmeasured, error) {
	return list(ctx, r.read, "sizes", func(row scan) (u Unmeasured, err error) {
		return u, row(&u.ID, &u.Layer)
	}, `SELECT commit_id, 0 FROM commits WHERE stored_bytes IS NULL AND durable = 1
		UNION ALL SELECT layer_id, 1 FROM layers WHERE stored_bytes IS NULL AND frozen = 1`)
}

// SetStoredBytes records a size. What was collected meanwhile is ignored.
func (r *records) SetStoredBytes(ctx context.Context, u Unmeasured, bytes int64) error {
	statement := `UPDATE commits SET stored_bytes = ? WHERE commit_id = ?`
	if u.Layer {
		statement = `UPDATE layers SET stored_bytes = ? WHERE layer_id = ?`
	}
	_, err := r.write.ExecContext(ctx, statement, bytes, u.ID)
	return translate(err, "size of "+u.ID)
}

// StoredBytes sums what the commits and images of an organisation ("" of all) take on disk: deleted ones too while others
// stand on them, templates and what else is internal not. Layers of build steps count where a commit of a user stands on
// them.
func (r *records) StoredBytes(ctx context.Context, orgID string) (int64, error) {
	return count(ctx, r.read, `SELECT
		(SELECT coalesce(sum(stored_bytes), 0) FROM commits WHERE template_key IS NULL AND (?1 = '' OR org_id = ?1)) +
		(SELECT coalesce(sum(stored_bytes), 0) FROM layers WHERE frozen = 1 AND (?1 = '' OR org_id = ?1)
			AND layer_id NOT IN (SELECT layer_id FROM commits WHERE template_key IS NOT NULL AND NOT `+isStep+` AND layer_id IS NOT NULL)
			AND (layer_id NOT IN (SELECT layer_id FROM commits WHERE `+isStep+` AND layer_id IS NOT NULL)
				OR layer_id IN (WITH RECURSIVE needed (id) AS (
					SELECT layer_id FROM commits WHERE template_key IS NULL AND layer_id IS NOT NULL AND (?1 = '' OR org_id = ?1)
					UNION SELECT parent_id FROM layers JOIN needed ON layer_id = id WHERE parent_id IS NOT NULL)
					SELECT id FROM needed))) +
		(SELECT coalesce(sum(stored_bytes), 0) FROM image_files WHERE (?1 = '' OR org_id = ?1))`, orgID)
}

// Totals counts what the server holds.
type Totals struct {
	VMs           map[string]int64 // by state
	Organisations int64
	Commits       int64
	StoredBytes   int64
}

// Totals counts what users of all organisations see.
func (r *records) Totals(ctx context.Context) (Totals, error) {
	t := Totals{VMs: map[string]int64{}}
	type group struct {
		state string
		n     int64
	}
	groups, err := list(ctx, r.read, "VMs", func(row scan) (g group, err error) {
		return g, row(&g.state, &g.n)
	}, `SELECT state, count(*) FROM vms GROUP BY state`)
	if err != nil {
		return t, err
	}
	for _, g := range groups {
		t.VMs[g.state] = g.n
	}
	if t.Organisations, err = count(ctx, r.read, `SELECT count(*) FROM organisations WHERE deleted_at IS NULL`); err != nil {
		return t, err
	}
	if t.Commits, err = count(ctx, r.read, `SELECT count(*) FROM commits WHERE `+visible); err != nil {
		return t, err
	}
	t.StoredBytes, err = r.StoredBytes(ctx, "")
	return t, err
}
