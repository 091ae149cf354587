-- +goose Up

-- The build that works in the VM: both end together. NULL: no build, or one that left the VM to its owner.
ALTER TABLE vms ADD COLUMN build_id TEXT;

-- Steps of builds that were done before: the commit that has their outcome. Most of these are internal commits; the last step
-- of a build may be a commit of its owner, who can delete it.
CREATE TABLE build_steps (
  org_id    TEXT NOT NULL REFERENCES organisations,
  key       TEXT NOT NULL,                    -- SHA-256 of all that shapes the outcome
  commit_id TEXT NOT NULL REFERENCES commits ON DELETE CASCADE,
  used_at   TEXT NOT NULL,
  PRIMARY KEY (org_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX build_steps_by_commit ON build_steps (commit_id, used_at);

-- +goose Down
SELECT 1;
