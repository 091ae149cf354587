package catalog

import (
	"context"
	"time"
)

const organisationColumns = `org_id, name, gid, created_at`

func readOrganisation(row scan) (Organisation, error) {
	var o Organisation
	err := row(&o.ID, &o.Name, &o.GID, timeColumn{&o.CreatedAt})
	return o, err
}

// InsertOrganisation adds an organisation. A taken name or group id is fault.Conflict.
func (r *records) InsertOrganisation(ctx context.Context, o Organisation) error {
	return insert(ctx, r.write, "organisation '"+o.Name+"'", `INSERT INTO organisations (org_id, name, gid, created_at)
		VALUES (?, ?, ?, ?)`, o.ID, o.Name, o.GID, timeText(o.CreatedAt))
}

// Organisation gives one organisation.
func (r *records) Organisation(ctx context.Context, id string) (Organisation, error) {
	return one(ctx, r.read, "organisation "+id, readOrganisation,
		`SELECT `+organisationColumns+` FROM organisations WHERE org_id = ?`, id)
}

// OrganisationByName gives one organisation.
func (r *records) OrganisationByName(ctx context.Context, name string) (Organisation, error) {
	return one(ctx, r.read, "organisation '"+name+"'", readOrganisation,
		`SELECT `+organisationColumns+` FROM organisations WHERE name = ?`, name)
}

// Organisations lists all organisations, oldest first.
func (r *records) Organisations(ctx context.Context) ([]Organisation, error) {
	return list(ctx, r.read, "organisations", readOrganisation,
		`SELECT `+organisationColumns+` FROM organisations ORDER BY created_at, rowid`)
}

const keyColumns = `key_id, org_id, name, hash, is_local, created_at, expires_at, revoked_at`

func readKey(row scan) (Key, error) {
	var k Key
	err := row(&k.ID, &k.OrgID, &k.Name, &k.Hash, &k.IsLocal, timeColumn{&k.CreatedAt},
		optionalTimeColumn{&k.ExpiresAt}, optionalTimeColumn{&k.RevokedAt})
	return k, err
}

// InsertKey adds an API key.
func (r *records) InsertKey(ctx context.Context, k Key) error {
	return insert(ctx, r.write, "API key "+k.ID, `INSERT INTO api_keys
		(key_id, org_id, name, hash, is_local, created_at, expires_at, revoked_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		k.ID, k.OrgID, k.Name, bytesOf(k.Hash), k.IsLocal, timeText(k.CreatedAt), optionalTimeText(k.ExpiresAt), optionalTimeText(k.RevokedAt))
}

// Key gives one API key, revoked and expired ones too.
func (r *records) Key(ctx context.Context, id string) (Key, error) {
	return one(ctx, r.read, "API key "+id, readKey, `SELECT `+keyColumns+` FROM api_keys WHERE key_id = ?`, id)
}

// LocalKey gives the key of the first organisation that connections over the UNIX socket act as.
func (r *records) LocalKey(ctx context.Context) (Key, error) {
	return one(ctx, r.read, "key for local connections", readKey,
		`SELECT `+keyColumns+` FROM api_keys WHERE is_local = 1 ORDER BY created_at, rowid LIMIT 1`)
}

// Keys lists the API keys of an organisation, oldest first.
func (r *records) Keys(ctx context.Context, orgID string) ([]Key, error) {
	return list(ctx, r.read, "API keys", readKey,
		`SELECT `+keyColumns+` FROM api_keys WHERE org_id = ? ORDER BY created_at, rowid`, orgID)
}

// RevokeKey ends the life of an API key. The first time counts.
func (r *records) RevokeKey(ctx context.Context, id string, at time.Time) error {
	return change(ctx, r.write, "API key "+id, `UPDATE api_keys SET revoked_at = coalesce(revoked_at, ?) WHERE key_id = ?`,
		timeText(at), id)
}

// Env gives the environment variables of an organisation, never nil.
func (r *records) Env(ctx context.Context, orgID string) (map[string]string, error) {
	pairs, err := list(ctx, r.read, "environment variables", func(row scan) (pair [2]string, err error) {
		return pair, row(&pair[0], &pair[1])
	}, `SELECT key, value FROM env_vars WHERE org_id = ?`, orgID)
	if err != nil {
		return nil, err
	}
	vars := make(map[string]string, len(pairs))
	for _, pair := range pairs {
		vars[pair[0]] = pair[1]
	}
	return vars, nil
}

// PutEnv sets environment variables; others stay. Several are written together only inside of InTx.
func (r *records) PutEnv(ctx context.Context, orgID string, vars map[string]string) error {
	for key, value := range vars {
		if err := insert(ctx, r.write, "environment variable "+key, `INSERT INTO env_vars (org_id, key, value)
			VALUES (?, ?, ?) ON CONFLICT (org_id, key) DO UPDATE SET value = excluded.value`, orgID, key, value); err != nil {
			return err
		}
	}
	return nil
}

// ClearEnv removes all environment variables of an organisation.
func (r *records) ClearEnv(ctx context.Context, orgID string) error {
	_, err := r.write.ExecContext(ctx, `DELETE FROM env_vars WHERE org_id = ?`, orgID)
	return translate(err, "environment variables")
}

// DeleteEnv removes one environment variable.
func (r *records) DeleteEnv(ctx context.Context, orgID, key string) error {
	return change(ctx, r.write, "environment variable "+key, `DELETE FROM env_vars WHERE org_id = ? AND key = ?`, orgID, key)
}
