package catalog

import (
	"context"
	"time"
)

// SSHKey is one row of the table ssh_keys: a public key that logs in to all VMs of an organisation.
type SSHKey struct {
	ID          string
	OrgID       string
	OwnerID     string // id of the API key that added it
	Name        string
	Fingerprint string
	PublicKey   string // authorized_keys form, without comment
	CreatedAt   time.Time
}

const sshKeyColumns = `key_id, org_id, owner_id, name, fingerprint, public_key, created_at`

func readSSHKey(row scan) (SSHKey, error) {
	var k SSHKey
	err := row(&k.ID, &k.OrgID, &k.OwnerID, &k.Name, &k.Fingerprint, &k.PublicKey, timeColumn{&k.CreatedAt})
	return k, err
}

// InsertSSHKey adds a key. One that the organisation has is fault.Conflict.
func (r *records) InsertSSHKey(ctx context.Context, k SSHKey) error {
	return insert(ctx, r.write, "SSH key "+k.Fingerprint, `INSERT INTO ssh_keys (`+sshKeyColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		k.ID, k.OrgID, k.OwnerID, k.Name, k.Fingerprint, k.PublicKey, timeText(k.CreatedAt))
}

// SSHKeys lists the keys of an organisation, oldest first.
func (r *records) SSHKeys(ctx context.Context, orgID string) ([]SSHKey, error) {
	return list(ctx, r.read, "SSH keys", readSSHKey, `SELECT `+sshKeyColumns+` FROM ssh_keys WHERE org_id = ? ORDER BY created_at, rowid`, orgID)
}

// SSHKeyOrganisations lists the organisations that an SSH key logs in for: those that added it, and those of the users
// it was accepted for. Deleted organisations are not among them.
func (r *records) SSHKeyOrganisations(ctx context.Context, fingerprint string) ([]string, error) {
	return list(ctx, r.read, "SSH keys", func(row scan) (id string, err error) { return id, row(&id) },
		`SELECT org_id FROM organisations WHERE deleted_at IS NULL AND org_id IN (
			SELECT org_id FROM ssh_keys WHERE fingerprint = ?1
			UNION SELECT org_id FROM user_keys JOIN memberships USING (user_id) WHERE fingerprint = ?1)`, fingerprint)
}

// DeleteSSHKey removes a key of an organisation.
func (r *records) DeleteSSHKey(ctx context.Context, orgID, id string) error {
	return change(ctx, r.write, "SSH key "+id, `DELETE FROM ssh_keys WHERE key_id = ? AND org_id = ?`, id, orgID)
}
