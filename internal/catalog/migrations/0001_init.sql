-- +goose Up
CREATE TABLE organisations (
  org_id     TEXT PRIMARY KEY,
  name       TEXT NOT NULL UNIQUE,
  gid        INTEGER NOT NULL UNIQUE,         -- group id of the organisation's QEMU processes and files
  created_at TEXT NOT NULL
) STRICT;

CREATE TABLE api_keys (
  key_id     TEXT PRIMARY KEY,                -- shown as owner_id of what the key made
  org_id     TEXT NOT NULL REFERENCES organisations,
  name       TEXT NOT NULL,
  hash       BLOB NOT NULL,                   -- SHA-256 of the secret part; empty: nobody can log in with it
  is_local   INTEGER NOT NULL DEFAULT 0,      -- 1: the key that connections over the UNIX socket act as
  created_at TEXT NOT NULL,
  expires_at TEXT,
  revoked_at TEXT
) STRICT;

-- A layer is one qcow2 file <data>/layers/<layer_id>.qcow2. It is active (a running VM writes to it) until frozen.
CREATE TABLE layers (
  layer_id   TEXT PRIMARY KEY,
  org_id     TEXT NOT NULL,
  parent_id  TEXT REFERENCES layers,          -- next layer below; NULL: directly on the image
  image_file TEXT NOT NULL,                   -- file name below <data>/images of the raw image at the bottom
  frozen     INTEGER NOT NULL DEFAULT 0,
  created_at TEXT NOT NULL
) STRICT;

CREATE TABLE commits (
  commit_id      TEXT PRIMARY KEY,
  org_id         TEXT NOT NULL REFERENCES organisations,
  owner_id       TEXT NOT NULL,
  name           TEXT NOT NULL,
  description    TEXT,
  is_public      INTEGER NOT NULL DEFAULT 0,
  created_at     TEXT NOT NULL,
  parent_vm      TEXT,                        -- VM it was taken of
  parent_commit  TEXT,                        -- commit that VM was started from
  memory_base    TEXT REFERENCES commits,     -- commit whose memory the delta is relative to; NULL: to zeroes
  layer_id       TEXT REFERENCES layers,      -- top of its disk
  template_key   TEXT UNIQUE,                 -- set: an internal template commit (boot once), never listed
  durable        INTEGER NOT NULL DEFAULT 0,  -- 1: all its files are on stable storage
  deleted        INTEGER NOT NULL DEFAULT 0,  -- 1: deleted by its owner, kept while others stand on its data
  manifest       TEXT NOT NULL                -- JSON, see internal/commit
) STRICT;
CREATE INDEX commits_by_org ON commits (org_id, created_at DESC);
CREATE INDEX commits_by_memory_base ON commits (memory_base);
CREATE INDEX commits_by_layer ON commits (layer_id);

CREATE TABLE vms (
  vm_id          TEXT PRIMARY KEY,
  org_id         TEXT NOT NULL REFERENCES organisations,
  owner_id       TEXT NOT NULL,
  state          TEXT NOT NULL,               -- booting, running, paused, dead; creating while not handed out
  reason         TEXT,                        -- why it is dead
  created_at     TEXT NOT NULL,
  labels         TEXT NOT NULL DEFAULT '{}',  -- JSON object
  config         TEXT NOT NULL,               -- JSON: sizes, image, kernel
  boot_env       TEXT,                        -- JSON: variables of its run request; NULL once they are in the guest
  parent_commit  TEXT,                        -- commit it was started from
  grandparent_vm TEXT,                        -- VM that commit was taken of
  memory_base    TEXT,                        -- commit whose flat file it maps; NULL: anonymous memory
  layer_id       TEXT REFERENCES layers,      -- its active layer
  uid            INTEGER NOT NULL UNIQUE,     -- user id of its QEMU process
  process        TEXT,                        -- JSON: pid, start time, host boot id
  spec           TEXT,                        -- JSON: what the driver was started with
  ssh_key        TEXT NOT NULL,               -- OpenSSH private key that logs in
  ssh_host_key   TEXT NOT NULL                -- OpenSSH private host key of the guest
) STRICT;
CREATE INDEX vms_by_org ON vms (org_id, created_at DESC);
CREATE INDEX vms_by_parent_commit ON vms (parent_commit);
CREATE INDEX vms_by_layer ON vms (layer_id);

-- A flat file <data>/flats/<commit_id>.ram: whole memory of a commit, a cache.
CREATE TABLE flats (
  commit_id TEXT PRIMARY KEY REFERENCES commits,
  boot_id   TEXT NOT NULL,                    -- host boot that wrote it
  synced    INTEGER NOT NULL DEFAULT 0,       -- 1: on stable storage; 0: only good in the same host boot
  used_at   TEXT NOT NULL
) STRICT;

CREATE TABLE repositories (
  repo_id     TEXT PRIMARY KEY,
  org_id      TEXT NOT NULL REFERENCES organisations,
  name        TEXT NOT NULL,
  description TEXT,
  is_public   INTEGER NOT NULL DEFAULT 0,
  created_at  TEXT NOT NULL,
  UNIQUE (org_id, name)
) STRICT;

CREATE TABLE repository_tags (
  tag_id      TEXT PRIMARY KEY,
  repo_id     TEXT NOT NULL REFERENCES repositories ON DELETE CASCADE,
  name        TEXT NOT NULL,
  commit_id   TEXT NOT NULL REFERENCES commits,
  description TEXT,
  created_at  TEXT NOT NULL,
  updated_at  TEXT NOT NULL,
  UNIQUE (repo_id, name)
) STRICT;
CREATE INDEX repository_tags_by_commit ON repository_tags (commit_id);

CREATE TABLE env_vars (
  org_id TEXT NOT NULL REFERENCES organisations,
  key    TEXT NOT NULL,
  value  TEXT NOT NULL,
  PRIMARY KEY (org_id, key)
) STRICT;

CREATE TABLE images (
  image_id    TEXT PRIMARY KEY,
  org_id      TEXT,                           -- NULL: everybody's
  name        TEXT NOT NULL,
  file        TEXT NOT NULL,                  -- file name below <data>/images
  digest      TEXT NOT NULL,
  size_mib    INTEGER NOT NULL,
  source_type TEXT NOT NULL,
  config      TEXT NOT NULL DEFAULT '{}',     -- JSON: environment, working directory, user, command
  created_at  TEXT NOT NULL,
  UNIQUE (org_id, name)
) STRICT;
CREATE UNIQUE INDEX images_of_everybody ON images (name) WHERE org_id IS NULL; -- UNIQUE above holds no NULLs apart

CREATE TABLE idempotency (
  key_id     TEXT NOT NULL,
  request    TEXT NOT NULL,                   -- method, path, X-Idempotency-Key
  status     INTEGER NOT NULL,
  digest     BLOB NOT NULL,                   -- SHA-256 of the request's query and body
  body       BLOB NOT NULL,                   -- of the answer
  created_at TEXT NOT NULL,
  PRIMARY KEY (key_id, request)
) STRICT;
CREATE INDEX idempotency_by_age ON idempotency (created_at);
CREATE INDEX layers_by_parent ON layers (parent_id);

-- +goose Down
SELECT 1;
