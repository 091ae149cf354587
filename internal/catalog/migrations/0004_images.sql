-- +goose Up
ALTER TABLE images ADD COLUMN owner_id TEXT NOT NULL DEFAULT '';  -- API key that made it
ALTER TABLE images ADD COLUMN description TEXT;
ALTER TABLE images ADD COLUMN source TEXT NOT NULL DEFAULT '';    -- what it was made of: a reference, a Dockerfile's path

-- A file <data>/images/<file> that an organisation made. Its row outlives the image's, as long as layers stand on it.
CREATE TABLE image_files (
  file         TEXT PRIMARY KEY,
  org_id       TEXT NOT NULL REFERENCES organisations,
  stored_bytes INTEGER NOT NULL,
  created_at   TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX image_files_by_org ON image_files (org_id, stored_bytes);

-- The last making of an image of a name, under way or ended.
CREATE TABLE image_jobs (
  job_id     TEXT PRIMARY KEY,
  org_id     TEXT NOT NULL REFERENCES organisations,
  name       TEXT NOT NULL,
  state      TEXT NOT NULL,                   -- pending, building, ready, failed
  reason     TEXT,                            -- why it failed
  created_at TEXT NOT NULL,
  ended_at   TEXT,
  UNIQUE (org_id, name)
) STRICT;

CREATE INDEX layers_by_image ON layers (image_file) WHERE parent_id IS NULL;

-- +goose Down
SELECT 1;
