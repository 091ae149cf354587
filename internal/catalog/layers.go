package catalog

import "context"

const layerColumns = `layer_id, org_id, coalesce(parent_id, ''), image_file, frozen, created_at`

func readLayer(row scan) (Layer, error) {
	var l Layer
	err := row(&l.ID, &l.OrgID, &l.ParentID, &l.ImageFile, &l.Frozen, timeColumn{&l.CreatedAt})
	return l, err
}

// InsertLayer adds a layer.
func (r *records) InsertLayer(ctx context.Context, l Layer) error {
	return insert(ctx, r.write, "layer "+l.ID, `INSERT INTO layers (layer_id, org_id, parent_id, image_file, frozen, created_at)
		VALUES (?, ?, ?, ?, ?, ?)`, l.ID, l.OrgID, nullable(l.ParentID), l.ImageFile, l.Frozen, timeText(l.CreatedAt))
}

// FreezeLayer records that nothing writes to a layer any more.
func (r *records) FreezeLayer(ctx context.Context, id string) error {
	return change(ctx, r.write, "layer "+id, `UPDATE layers SET frozen = 1 WHERE layer_id = ?`, id)
}

// RemoveLayer removes the row. Layers, commits or VMs above it make that a fault.Conflict.
func (r *records) RemoveLayer(ctx context.Context, id string) error {
	return change(ctx, r.write, "layer "+id, `DELETE FROM layers WHERE layer_id = ?`, id)
}

// Layer gives one layer.
func (r *records) Layer(ctx context.Context, id string) (Layer, error) {
	return one(ctx, r.read, "layer "+id, readLayer, `SELECT `+layerColumns+` FROM layers WHERE layer_id = ?`, id)
}

// Layers lists all layers, oldest first.
func (r *records) Layers(ctx context.Context) ([]Layer, error) {
	return list(ctx, r.read, "layers", readLayer, `SELECT `+layerColumns+` FROM layers ORDER BY created_at, rowid`)
}

// LayerChain gives a layer and all layers below it, the lowest first.
func (r *records) LayerChain(ctx context.Context, id string) ([]Layer, error) {
	return list(ctx, r.read, "layers", readLayer, `WITH RECURSIVE chain (id, depth) AS (
			SELECT ?, 0
			UNION ALL
			SELECT layers.parent_id, chain.depth + 1 FROM chain JOIN layers ON layers.layer_id = chain.id
			WHERE layers.parent_id IS NOT NULL)
		SELECT `+layerColumns+` FROM chain JOIN layers ON layers.layer_id = chain.id ORDER BY chain.depth DESC`, id)
}

const flatColumns = `commit_id, boot_id, synced, used_at`

func readFlat(row scan) (Flat, error) {
	var f Flat
	err := row(&f.CommitID, &f.BootID, &f.Synced, timeColumn{&f.UsedAt})
	return f, err
}

// PutFlat adds or replaces the record of a commit's flat file.
func (r *records) PutFlat(ctx context.Context, f Flat) error {
	return insert(ctx, r.write, "flat file of commit "+f.CommitID, `INSERT INTO flats (commit_id, boot_id, synced, used_at)
		VALUES (?, ?, ?, ?) ON CONFLICT (commit_id) DO UPDATE
		SET boot_id = excluded.boot_id, synced = excluded.synced, used_at = excluded.used_at`,
		f.CommitID, f.BootID, f.Synced, timeText(f.UsedAt))
}

// TouchFlat records a use of a commit's flat file.
func (r *records) TouchFlat(ctx context.Context, f Flat) error {
	return change(ctx, r.write, "flat file of commit "+f.CommitID, `UPDATE flats SET used_at = ? WHERE commit_id = ?`,
		timeText(f.UsedAt), f.CommitID)
}

// RemoveFlat removes the record of a commit's flat file; without one it does nothing.
func (r *records) RemoveFlat(ctx context.Context, commitID string) error {
	_, err := r.write.ExecContext(ctx, `DELETE FROM flats WHERE commit_id = ?`, commitID)
	return translate(err, "flat file of commit "+commitID)
}

// Flat gives the record of a commit's flat file.
func (r *records) Flat(ctx context.Context, commitID string) (Flat, error) {
	return one(ctx, r.read, "flat file of commit "+commitID, readFlat,
		`SELECT `+flatColumns+` FROM flats WHERE commit_id = ?`, commitID)
}

// Flats lists the records of all flat files, the longest unused first.
func (r *records) Flats(ctx context.Context) ([]Flat, error) {
	return list(ctx, r.read, "flat files", readFlat, `SELECT `+flatColumns+` FROM flats ORDER BY used_at, rowid`)
}
