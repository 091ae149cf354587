package catalog

import (
	"context"
	"encoding/json"
)

const imageColumns = `image_id, coalesce(org_id, ''), name, file, digest, size_mib, source_type, config, created_at`

func readImage(row scan) (Image, error) {
	var i Image
	var config string
	err := row(&i.ID, &i.OrgID, &i.Name, &i.File, &i.Digest, &i.SizeMiB, &i.SourceType, &config, timeColumn{&i.CreatedAt})
	i.Config = json.RawMessage(config)
	return i, err
}

// InsertImage adds an image. A name that the organisation (or, for everybody's images, the server) has is
// fault.Conflict.
func (r *records) InsertImage(ctx context.Context, i Image) error {
	return insert(ctx, r.write, "image "+i.Name, `INSERT INTO images
		(image_id, org_id, name, file, digest, size_mib, source_type, config, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		i.ID, nullable(i.OrgID), i.Name, i.File, i.Digest, i.SizeMiB, i.SourceType, manifestText(i.Config), timeText(i.CreatedAt))
}

// UpdateImage writes everything but id, organisation and name: the image was built anew.
func (r *records) UpdateImage(ctx context.Context, i Image) error {
	return change(ctx, r.write, "image "+i.Name, `UPDATE images
		SET file = ?, digest = ?, size_mib = ?, source_type = ?, config = ?, created_at = ? WHERE image_id = ?`,
		i.File, i.Digest, i.SizeMiB, i.SourceType, manifestText(i.Config), timeText(i.CreatedAt), i.ID)
}

// RemoveImage removes an image.
func (r *records) RemoveImage(ctx context.Context, id string) error {
	return change(ctx, r.write, "image "+id, `DELETE FROM images WHERE image_id = ?`, id)
}

// Image gives the image an organisation means by a name: its own, else everybody's. With orgID "" only the latter.
func (r *records) Image(ctx context.Context, orgID, name string) (Image, error) {
	return one(ctx, r.read, "rootfs image '"+name+"'", readImage, `SELECT `+imageColumns+` FROM images
		WHERE name = ? AND (org_id IS NULL OR org_id = ?) ORDER BY org_id IS NULL LIMIT 1`, name, orgID)
}

// Images lists the images an organisation can use, newest first, with their number in all.
func (r *records) Images(ctx context.Context, orgID string, limit, offset int64) ([]Image, int64, error) {
	total, err := count(ctx, r.read, `SELECT count(*) FROM images WHERE org_id IS NULL OR org_id = ?`, orgID)
	if err != nil {
		return nil, 0, err
	}
	page, err := list(ctx, r.read, "images", readImage, `SELECT `+imageColumns+` FROM images
		WHERE org_id IS NULL OR org_id = ? ORDER BY created_at DESC, rowid DESC LIMIT ? OFFSET ?`, orgID, limit, offset)
	return page, total, err
}

// AllImages lists the images of all organisations, oldest first.
func (r *records) AllImages(ctx context.Context) ([]Image, error) {
	return list(ctx, r.read, "images", readImage, `SELECT `+imageColumns+` FROM images ORDER BY created_at, rowid`)
}
