-- +goose Up

-- Public SSH keys that log in to all VMs of an organisation.
CREATE TABLE ssh_keys (
  key_id      TEXT PRIMARY KEY,
  org_id      TEXT NOT NULL REFERENCES organisations,
  owner_id    TEXT NOT NULL,                  -- API key that added it
  name        TEXT NOT NULL,
  fingerprint TEXT NOT NULL,                  -- SHA256:…
  public_key  TEXT NOT NULL,                  -- authorized_keys form, without comment
  created_at  TEXT NOT NULL,
  UNIQUE (org_id, fingerprint)
) STRICT;
CREATE INDEX ssh_keys_by_fingerprint ON ssh_keys (fingerprint);

ALTER TABLE domains ADD COLUMN port INTEGER NOT NULL DEFAULT 80;        -- of the guest
ALTER TABLE domains ADD COLUMN is_public INTEGER NOT NULL DEFAULT 0;    -- open to everybody

-- +goose Down
SELECT 1;
