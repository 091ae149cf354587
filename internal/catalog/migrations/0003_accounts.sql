-- +goose Up

-- A deleted organisation stays as a row: its group id owns files until they are collected, and is never given out again.
ALTER TABLE organisations ADD COLUMN deleted_at TEXT;
-- Quotas. NULL: the server's default. -1: no limit.
ALTER TABLE organisations ADD COLUMN max_vms INTEGER;
ALTER TABLE organisations ADD COLUMN max_vcpus INTEGER;
ALTER TABLE organisations ADD COLUMN max_memory_mib INTEGER;
ALTER TABLE organisations ADD COLUMN max_storage_mib INTEGER;
-- +goose StatementBegin
CREATE TRIGGER vms_of_deleted_organisations BEFORE INSERT ON vms
WHEN (SELECT deleted_at FROM organisations WHERE org_id = NEW.org_id) IS NOT NULL BEGIN
  SELECT RAISE(ABORT, 'the organisation was deleted');
END;
-- +goose StatementEnd

ALTER TABLE api_keys ADD COLUMN is_admin INTEGER NOT NULL DEFAULT 0; -- may read what concerns the whole server
ALTER TABLE api_keys ADD COLUMN last_used_at TEXT;                   -- to the minute
ALTER TABLE api_keys ADD COLUMN user_id TEXT;                        -- user who got it by logging in with an SSH key
CREATE INDEX api_keys_by_org ON api_keys (org_id, created_at);

-- Bytes on disk. NULL: not measured yet. A commit's are without its disk layers, which are shared.
ALTER TABLE commits ADD COLUMN stored_bytes INTEGER;
ALTER TABLE layers ADD COLUMN stored_bytes INTEGER;
CREATE INDEX commits_stored ON commits (org_id, stored_bytes) WHERE template_key IS NULL;
CREATE INDEX commits_unmeasured ON commits (commit_id) WHERE stored_bytes IS NULL AND durable = 1;
CREATE INDEX layers_stored ON layers (org_id, stored_bytes) WHERE frozen = 1;
CREATE INDEX layers_unmeasured ON layers (layer_id) WHERE stored_bytes IS NULL AND frozen = 1;

CREATE TABLE users (
  user_id    TEXT PRIMARY KEY,
  email      TEXT NOT NULL UNIQUE,            -- lower case
  created_at TEXT NOT NULL
) STRICT;

CREATE TABLE memberships (
  user_id    TEXT NOT NULL REFERENCES users ON DELETE CASCADE,
  org_id     TEXT NOT NULL REFERENCES organisations,
  role       TEXT NOT NULL,                   -- owner, member
  created_at TEXT NOT NULL,
  PRIMARY KEY (user_id, org_id)
) STRICT, WITHOUT ROWID;

-- SSH keys that were accepted for a user.
CREATE TABLE user_keys (
  key_id       TEXT PRIMARY KEY,
  user_id      TEXT NOT NULL REFERENCES users ON DELETE CASCADE,
  fingerprint  TEXT NOT NULL,                 -- SHA256:…
  public_key   TEXT NOT NULL,                 -- authorized_keys form, without comment
  verified_at  TEXT NOT NULL,
  last_seen_at TEXT NOT NULL,
  UNIQUE (user_id, fingerprint)
) STRICT;
CREATE INDEX user_keys_by_fingerprint ON user_keys (fingerprint);

-- Requests to log in. One is open until it is used or expires.
CREATE TABLE logins (
  nonce       TEXT PRIMARY KEY,
  user_id     TEXT NOT NULL,                  -- that the user has, or will have
  email       TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  public_key  TEXT NOT NULL,
  address     TEXT NOT NULL,                  -- host the request came from; only that may go on
  note        TEXT NOT NULL DEFAULT '',       -- words for the operator
  created_at  TEXT NOT NULL,
  expires_at  TEXT NOT NULL,
  approved_at TEXT,
  used_at     TEXT                            -- an API key was made
) STRICT;
CREATE INDEX logins_by_key ON logins (email, fingerprint);
CREATE INDEX logins_by_expiry ON logins (expires_at);

CREATE TABLE domains (
  domain_id  TEXT PRIMARY KEY,
  org_id     TEXT NOT NULL REFERENCES organisations,
  vm_id      TEXT NOT NULL REFERENCES vms ON DELETE CASCADE,
  domain     TEXT NOT NULL UNIQUE,            -- over all organisations
  created_at TEXT NOT NULL
) STRICT;
CREATE INDEX domains_by_org ON domains (org_id, created_at);
CREATE INDEX domains_by_vm ON domains (vm_id);

CREATE TABLE projects (
  project_id TEXT PRIMARY KEY,
  org_id     TEXT NOT NULL REFERENCES organisations,
  key_id     TEXT NOT NULL,                   -- who deployed
  vm_id      TEXT NOT NULL REFERENCES vms ON DELETE CASCADE,
  name       TEXT NOT NULL,
  repo       TEXT NOT NULL,                   -- URL
  branch     TEXT,
  settings   TEXT NOT NULL DEFAULT '{}',      -- JSON: commands and folder
  status     TEXT NOT NULL,
  reason     TEXT,
  exit_code  INTEGER,
  exec_id    TEXT,                            -- command of the present or last step
  created_at TEXT NOT NULL,
  updated_at TEXT NOT NULL,
  UNIQUE (org_id, name)
) STRICT;
CREATE INDEX projects_by_vm ON projects (vm_id);

-- +goose Down
SELECT 1;
