package catalog

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"time"
)

const imageColumns = `image_id, coalesce(org_id, ''), owner_id, name, description, file, digest, size_mib, source_type, source, origin, config, created_at`

func readImage(row scan) (Image, error) {
	var i Image
	var config string
	err := row(&i.ID, &i.OrgID, &i.OwnerID, &i.Name, &i.Description, &i.File, &i.Digest, &i.SizeMiB, &i.SourceType, &i.Source, &i.Origin, &config,
		timeColumn{&i.CreatedAt})
	i.Config = json.RawMessage(config)
	return i, err
}

// ParseConfig gives how the image is run; nil if it does not say.
func (i Image) ParseConfig() (*ImageConfig, error) {
	var c ImageConfig
	if len(i.Config) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(i.Config, &c); err != nil {
		return nil, fmt.Errorf("configuration of image '%s': %w", i.Name, err)
	}
	if reflect.ValueOf(c).IsZero() {
		return nil, nil
	}
	return &c, nil
}

// InsertImage adds an image. A name that the organisation (or, for everybody's images, the server) has is
// fault.Conflict.
func (r *records) InsertImage(ctx context.Context, i Image) error {
	return insert(ctx, r.write, "image "+i.Name, `INSERT INTO images
		(image_id, org_id, owner_id, name, description, file, digest, size_mib, source_type, source, origin, config, created_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		i.ID, nullable(i.OrgID), i.OwnerID, i.Name, i.Description, i.File, i.Digest, i.SizeMiB, i.SourceType, i.Source, i.Origin,
		manifestText(i.Config), timeText(i.CreatedAt))
}

// UpdateImage writes everything but id, organisation and name: the image was built anew.
func (r *records) UpdateImage(ctx context.Context, i Image) error {
	return change(ctx, r.write, "image "+i.Name, `UPDATE images
		SET owner_id = ?, description = ?, file = ?, digest = ?, size_mib = ?, source_type = ?, source = ?, origin = ?, config = ?, created_at = ?
		WHERE image_id = ?`,
		i.OwnerID, i.Description, i.File, i.Digest, i.SizeMiB, i.SourceType, i.Source, i.Origin, manifestText(i.Config), timeText(i.CreatedAt), i.ID)
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

// OwnImage gives the image of an organisation (not everybody's) with a name or id.
func (r *records) OwnImage(ctx context.Context, orgID, nameOrID string) (Image, error) {
	return one(ctx, r.read, "rootfs image '"+nameOrID+"'", readImage, `SELECT `+imageColumns+` FROM images
		WHERE org_id = ?1 AND (name = ?2 OR image_id = ?2) ORDER BY name = ?2 DESC LIMIT 1`, orgID, nameOrID)
}

// PublicImage gives everybody's image with a name or id.
func (r *records) PublicImage(ctx context.Context, nameOrID string) (Image, error) {
	return one(ctx, r.read, "rootfs image '"+nameOrID+"'", readImage, `SELECT `+imageColumns+` FROM images
		WHERE org_id IS NULL AND (name = ?1 OR image_id = ?1) ORDER BY name = ?1 DESC LIMIT 1`, nameOrID)
}

// ImageUsers counts the VMs of an organisation whose disks stand on an image file, whatever layers are between.
func (r *records) ImageUsers(ctx context.Context, orgID, file string) (int64, error) {
	return count(ctx, r.read, `WITH RECURSIVE standing (id) AS (
			SELECT layer_id FROM layers WHERE image_file = ?2 AND parent_id IS NULL
			UNION
			SELECT layers.layer_id FROM standing JOIN layers ON layers.parent_id = standing.id)
		SELECT count(*) FROM vms JOIN standing ON vms.layer_id = standing.id WHERE vms.org_id = ?1`, orgID, file)
}

// InsertImageFile records a file that an organisation made.
func (r *records) InsertImageFile(ctx context.Context, f ImageFile) error {
	return insert(ctx, r.write, "image file "+f.Name, `INSERT INTO image_files (file, org_id, stored_bytes, created_at) VALUES (?, ?, ?, ?)`,
		f.Name, f.OrgID, f.StoredBytes, timeText(f.CreatedAt))
}

// RemoveImageFile forgets a file; one that is not known is no error.
func (r *records) RemoveImageFile(ctx context.Context, name string) error {
	_, err := r.write.ExecContext(ctx, `DELETE FROM image_files WHERE file = ?`, name)
	return translate(err, "image file "+name)
}

// NamedImageFiles lists the files that images name.
func (r *records) NamedImageFiles(ctx context.Context) ([]string, error) {
	return list(ctx, r.read, "image files", func(row scan) (name string, err error) { return name, row(&name) },
		`SELECT DISTINCT file FROM images`)
}

// ImageFiles lists the files that organisations made, named by an image or not.
func (r *records) ImageFiles(ctx context.Context) ([]ImageFile, error) {
	return list(ctx, r.read, "image files", func(row scan) (f ImageFile, err error) {
		return f, row(&f.Name, &f.OrgID, &f.StoredBytes, timeColumn{&f.CreatedAt})
	}, `SELECT file, org_id, stored_bytes, created_at FROM image_files ORDER BY created_at, file`)
}

const jobColumns = `job_id, org_id, name, state, coalesce(reason, ''), created_at, ended_at`

func readJob(row scan) (ImageJob, error) {
	var j ImageJob
	err := row(&j.ID, &j.OrgID, &j.Name, &j.State, &j.Reason, timeColumn{&j.CreatedAt}, optionalTimeColumn{&j.EndedAt})
	return j, err
}

// PutImageJob records that an image of a name is being made, in place of what is known about an earlier time.
func (r *records) PutImageJob(ctx context.Context, j ImageJob) error {
	return insert(ctx, r.write, "job of image "+j.Name, `INSERT INTO image_jobs (job_id, org_id, name, state, reason, created_at, ended_at)
		VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (org_id, name) DO UPDATE
		SET job_id = excluded.job_id, state = excluded.state, reason = excluded.reason, created_at = excluded.created_at, ended_at = excluded.ended_at`,
		j.ID, j.OrgID, j.Name, j.State, nullable(j.Reason), timeText(j.CreatedAt), optionalTimeText(j.EndedAt))
}

// SetImageJob records how far the making of an image has come. A job that was replaced is fault.NotFound.
func (r *records) SetImageJob(ctx context.Context, j ImageJob) error {
	return change(ctx, r.write, "job of image "+j.Name, `UPDATE image_jobs SET state = ?, reason = ?, ended_at = ? WHERE job_id = ?`,
		j.State, nullable(j.Reason), optionalTimeText(j.EndedAt), j.ID)
}

// ImageJob gives the last making of an image of a name.
func (r *records) ImageJob(ctx context.Context, orgID, name string) (ImageJob, error) {
	return one(ctx, r.read, "rootfs image '"+name+"'", readJob, `SELECT `+jobColumns+` FROM image_jobs WHERE org_id = ? AND name = ?`, orgID, name)
}

// RemoveImageJob forgets the making of an image; one that is not known is no error.
func (r *records) RemoveImageJob(ctx context.Context, orgID, name string) error {
	_, err := r.write.ExecContext(ctx, `DELETE FROM image_jobs WHERE org_id = ? AND name = ?`, orgID, name)
	return translate(err, "job of image "+name)
}

// FailImageJobs records that every making of an image that has not ended did end, for a reason.
func (r *records) FailImageJobs(ctx context.Context, reason string, at time.Time) error {
	_, err := r.write.ExecContext(ctx, `UPDATE image_jobs SET state = 'failed', reason = ?, ended_at = ? WHERE ended_at IS NULL`, reason, timeText(at))
	return translate(err, "jobs of images")
}

// RemoveImageJobsBefore forgets failed makings that ended before a time: nobody asks for them any more.
func (r *records) RemoveImageJobsBefore(ctx context.Context, at time.Time) error {
	_, err := r.write.ExecContext(ctx, `DELETE FROM image_jobs WHERE state = 'failed' AND ended_at < ?`, timeText(at))
	return translate(err, "jobs of images")
}
