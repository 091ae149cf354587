package catalog

import "context"

// tagEventsKept is how many entries of one tag's history stay.
const tagEventsKept = 1000

func readTagEvent(row scan) (TagEvent, error) {
	var e TagEvent
	err := row(&e.ID, &e.RepoID, &e.TagName, timeColumn{&e.At}, &e.Action, &e.FromCommit, &e.ToCommit, &e.KeyID, &e.KeyName,
		&e.Description, &e.Available)
	return e, err
}

// InsertTagEvent adds an entry to a tag's history. Its oldest entries go when there are too many.
func (r *records) InsertTagEvent(ctx context.Context, e TagEvent) error {
	if err := insert(ctx, r.write, "history of tag '"+e.TagName+"'", `INSERT INTO tag_events
		(repo_id, tag_name, at, action, from_commit, to_commit, key_id, key_name, description) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		e.RepoID, e.TagName, timeText(e.At), e.Action, nullable(e.FromCommit), nullable(e.ToCommit), e.KeyID, e.KeyName, e.Description); err != nil {
		return err
	}
	_, err := r.write.ExecContext(ctx, `DELETE FROM tag_events WHERE repo_id = ?1 AND tag_name = ?2 AND entry_id <=
		(SELECT entry_id FROM tag_events WHERE repo_id = ?1 AND tag_name = ?2 ORDER BY entry_id DESC LIMIT 1 OFFSET ?3)`,
		e.RepoID, e.TagName, tagEventsKept)
	return translate(err, "history of tag '"+e.TagName+"'")
}

// TagEvents lists what happened to tags of a name in a repository, newest first.
func (r *records) TagEvents(ctx context.Context, repoID, name string) ([]TagEvent, error) {
	return list(ctx, r.read, "history of tag '"+name+"'", readTagEvent, `SELECT entry_id, repo_id, tag_name, at, action,
			coalesce(from_commit, ''), coalesce(to_commit, ''), key_id, key_name, e.description, c.commit_id IS NOT NULL
		FROM tag_events AS e LEFT JOIN commits AS c ON c.commit_id = e.to_commit AND c.deleted = 0
		WHERE repo_id = ? AND tag_name = ? ORDER BY entry_id DESC`, repoID, name)
}

// TagKeys lists the keys that alone may move or delete a tag, revoked and expired ones too; none: all may.
func (r *records) TagKeys(ctx context.Context, tagID string) ([]Key, error) {
	return list(ctx, r.read, "keys of tag "+tagID, readKey, `SELECT `+keyColumns+` FROM tag_keys JOIN api_keys USING (key_id)
		WHERE tag_id = ? ORDER BY name, key_id`, tagID)
}

// SetTagKeys replaces the keys that alone may move or delete a tag. Several are written together only inside of InTx.
func (r *records) SetTagKeys(ctx context.Context, tagID string, keyIDs []string) error {
	if _, err := r.write.ExecContext(ctx, `DELETE FROM tag_keys WHERE tag_id = ?`, tagID); err != nil {
		return translate(err, "keys of tag "+tagID)
	}
	for _, id := range keyIDs {
		if err := insert(ctx, r.write, "key "+id+" of tag "+tagID, `INSERT INTO tag_keys (tag_id, key_id) VALUES (?, ?)`, tagID, id); err != nil {
			return err
		}
	}
	return nil
}
