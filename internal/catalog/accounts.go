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
		`SELECT `+organisationColumns+` FROM organisations WHERE org_id = ? AND deleted_at IS NULL`, id)
}

// OrganisationByName gives one organisation.
func (r *records) OrganisationByName(ctx context.Context, name string) (Organisation, error) {
	return one(ctx, r.read, "organisation '"+name+"'", readOrganisation,
		`SELECT `+organisationColumns+` FROM organisations WHERE name = ? AND deleted_at IS NULL`, name)
}

// Organisations lists all organisations, oldest first.
func (r *records) Organisations(ctx context.Context) ([]Organisation, error) {
	return list(ctx, r.read, "organisations", readOrganisation,
		`SELECT `+organisationColumns+` FROM organisations WHERE deleted_at IS NULL ORDER BY created_at, rowid`)
}

// NextGID gives a group id that no organisation has or had, first at least.
func (r *records) NextGID(ctx context.Context, first int) (int, error) {
	highest, err := count(ctx, r.read, `SELECT coalesce(max(gid), 0) FROM organisations`)
	return max(first, int(highest)+1), err
}

// DeleteOrganisation frees an organisation's name, revokes its keys, removes its images and marks its commits, templates
// too, as deleted. The caller has made sure that nothing else is left of it.
func (r *records) DeleteOrganisation(ctx context.Context, id string, at time.Time) error {
	_, err := r.write.ExecContext(ctx, `UPDATE api_keys SET revoked_at = coalesce(revoked_at, ?) WHERE org_id = ?`, timeText(at), id)
	if err != nil {
		return translate(err, "organisation "+id)
	}
	for _, statement := range []string{
		`UPDATE commits SET deleted = 1 WHERE org_id = ?`,
		`DELETE FROM memberships WHERE org_id = ?`,
		`DELETE FROM env_vars WHERE org_id = ?`,
		`DELETE FROM images WHERE org_id = ?`,
		`DELETE FROM image_jobs WHERE org_id = ?`,
	} {
		if _, err := r.write.ExecContext(ctx, statement, id); err != nil {
			return translate(err, "organisation "+id)
		}
	}
	return change(ctx, r.write, "organisation "+id, `UPDATE organisations SET deleted_at = ?, name = org_id
		WHERE org_id = ? AND deleted_at IS NULL`, timeText(at), id)
}

// Holdings counts what of an organisation users see: VMs, commits and repositories.
func (r *records) Holdings(ctx context.Context, orgID string) (vms, commits, repositories int64, err error) {
	_, err = one(ctx, r.read, "holdings", func(row scan) (none struct{}, err error) {
		return none, row(&vms, &commits, &repositories)
	}, `SELECT (SELECT count(*) FROM vms WHERE org_id = ?1),
		(SELECT count(*) FROM commits WHERE org_id = ?1 AND `+visible+`),
		(SELECT count(*) FROM repositories WHERE org_id = ?1)`, orgID)
	return vms, commits, repositories, err
}

// Quotas gives what is set for an organisation.
func (r *records) Quotas(ctx context.Context, orgID string) (Quotas, error) {
	return one(ctx, r.read, "organisation "+orgID, func(row scan) (q Quotas, err error) {
		return q, row(&q.VMs, &q.VCPUs, &q.MemoryMiB, &q.StorageMiB)
	}, `SELECT max_vms, max_vcpus, max_memory_mib, max_storage_mib FROM organisations WHERE org_id = ?`, orgID)
}

// SetQuotas replaces the quotas of an organisation.
func (r *records) SetQuotas(ctx context.Context, orgID string, q Quotas) error {
	return change(ctx, r.write, "organisation "+orgID, `UPDATE organisations SET max_vms = ?, max_vcpus = ?,
		max_memory_mib = ?, max_storage_mib = ? WHERE org_id = ?`, q.VMs, q.VCPUs, q.MemoryMiB, q.StorageMiB, orgID)
}

const keyColumns = `key_id, org_id, name, hash, is_local, is_admin, coalesce(user_id, ''), created_at, expires_at, revoked_at,
	last_used_at`

func readKey(row scan) (Key, error) {
	var k Key
	err := row(&k.ID, &k.OrgID, &k.Name, &k.Hash, &k.IsLocal, &k.IsAdmin, &k.UserID, timeColumn{&k.CreatedAt},
		optionalTimeColumn{&k.ExpiresAt}, optionalTimeColumn{&k.RevokedAt}, optionalTimeColumn{&k.LastUsedAt})
	return k, err
}

// InsertKey adds an API key.
func (r *records) InsertKey(ctx context.Context, k Key) error {
	return insert(ctx, r.write, "API key "+k.ID, `INSERT INTO api_keys
		(key_id, org_id, name, hash, is_local, is_admin, user_id, created_at, expires_at, revoked_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		k.ID, k.OrgID, k.Name, bytesOf(k.Hash), k.IsLocal, k.IsAdmin, nullable(k.UserID), timeText(k.CreatedAt), optionalTimeText(k.ExpiresAt), optionalTimeText(k.RevokedAt))
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

// TouchKey records that a key was used.
func (r *records) TouchKey(ctx context.Context, id string, at time.Time) error {
	return change(ctx, r.write, "API key "+id, `UPDATE api_keys SET last_used_at = ? WHERE key_id = ?`, timeText(at), id)
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
