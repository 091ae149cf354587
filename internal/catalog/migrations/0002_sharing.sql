-- +goose Up

-- Plain tags of an organisation (the API's commit_tags): names for commits outside of any repository.
CREATE TABLE commit_tags (
  tag_id      TEXT PRIMARY KEY,
  org_id      TEXT NOT NULL REFERENCES organisations,
  name        TEXT NOT NULL,
  commit_id   TEXT NOT NULL REFERENCES commits,
  description TEXT,
  created_at  TEXT NOT NULL,
  updated_at  TEXT NOT NULL,
  UNIQUE (org_id, name)
) STRICT;
CREATE INDEX commit_tags_by_commit ON commit_tags (commit_id);

-- What happened to a repository's tags. An entry outlives its tag, not its repository, and keeps no commit.
CREATE TABLE tag_events (
  entry_id    INTEGER PRIMARY KEY AUTOINCREMENT,
  repo_id     TEXT NOT NULL REFERENCES repositories ON DELETE CASCADE,
  tag_name    TEXT NOT NULL,
  at          TEXT NOT NULL,
  action      TEXT NOT NULL,                  -- create, move, rollback, delete
  from_commit TEXT,                           -- NULL: the tag was made
  to_commit   TEXT,                           -- NULL: the tag was deleted
  key_id      TEXT NOT NULL,                  -- who; empty: before histories were kept
  key_name    TEXT NOT NULL,
  description TEXT                            -- the tag's, then
) STRICT;
CREATE INDEX tag_events_by_tag ON tag_events (repo_id, tag_name, entry_id);
INSERT INTO tag_events (repo_id, tag_name, at, action, to_commit, key_id, key_name, description)
  SELECT repo_id, name, updated_at, 'create', commit_id, '', '', description FROM repository_tags ORDER BY updated_at;

-- The keys that alone may move or delete a tag; none: every key of the organisation may.
CREATE TABLE tag_keys (
  tag_id TEXT NOT NULL REFERENCES repository_tags ON DELETE CASCADE,
  key_id TEXT NOT NULL REFERENCES api_keys ON DELETE CASCADE,
  PRIMARY KEY (tag_id, key_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX tag_keys_by_key ON tag_keys (key_id);

-- Counting tags when repositories are listed would read all tags.
ALTER TABLE repositories ADD COLUMN tag_count INTEGER NOT NULL DEFAULT 0;
UPDATE repositories SET tag_count = (SELECT count(*) FROM repository_tags AS t WHERE t.repo_id = repositories.repo_id);
-- +goose StatementBegin
CREATE TRIGGER repository_tags_more AFTER INSERT ON repository_tags BEGIN
  UPDATE repositories SET tag_count = tag_count + 1 WHERE repo_id = NEW.repo_id;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER repository_tags_less AFTER DELETE ON repository_tags BEGIN
  UPDATE repositories SET tag_count = tag_count - 1 WHERE repo_id = OLD.repo_id;
END;
-- +goose StatementEnd

-- Lists and their totals come from these alone. Ascending: read backwards they are in the order of the lists.
DROP INDEX commits_by_org;
CREATE INDEX commits_listed ON commits (org_id, created_at) WHERE deleted = 0 AND template_key IS NULL;
CREATE INDEX commits_public ON commits (created_at) WHERE is_public = 1 AND deleted = 0 AND template_key IS NULL;
CREATE INDEX repositories_by_age ON repositories (org_id, created_at);
CREATE INDEX repositories_public ON repositories (created_at) WHERE is_public = 1;
CREATE INDEX repository_tags_by_age ON repository_tags (repo_id, created_at);

-- +goose Down
SELECT 1;
