package registry

import (
	"context"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

// sshKeyLimit bounds the SSH keys of an organisation.
const sshKeyLimit = 1000

// AddSSHKey lets a public key, one line as in ~/.ssh/id_ed25519.pub, log in to all VMs of the caller's organisation,
// from now on. The name is the line's comment if none is given. A key that is there is fault.Conflict.
func (r *Registry) AddSSHKey(ctx context.Context, by catalog.Key, name, line string) (catalog.SSHKey, error) {
	public, err := parsePublicKey(line)
	if err != nil {
		return catalog.SSHKey{}, err
	}
	if name == "" {
		if fields := strings.SplitN(strings.TrimSpace(line), " ", 3); len(fields) == 3 {
			name = strings.TrimSpace(fields[2])
		}
	}
	if name == "" {
		name = public.fingerprint
	}
	if !printable(name) || utf8.RuneCountInString(name) > keyNameLimit {
		return catalog.SSHKey{}, fault.Invalidf("the name of an SSH key has 1 to %d printable characters; choose another with --name", keyNameLimit)
	}
	k := catalog.SSHKey{ID: ident.New(), OrgID: by.OrgID, OwnerID: by.ID, Name: name, Fingerprint: public.fingerprint,
		PublicKey: public.line, CreatedAt: r.now()}
	return k, r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		others, err := tx.SSHKeys(ctx, by.OrgID)
		if err != nil {
			return err
		}
		for _, other := range others {
			if other.Fingerprint == k.Fingerprint {
				return fault.Conflictf("SSH key %s is there already, as '%s'", k.Fingerprint, other.Name)
			}
		}
		if len(others) >= sshKeyLimit {
			return fault.Exhaustedf("this organisation has %d SSH keys, which is the limit; remove those that are not needed", len(others))
		}
		return tx.InsertSSHKey(ctx, k)
	})
}

// SSHKeys lists the keys that AddSSHKey has added.
func (r *Registry) SSHKeys(ctx context.Context, orgID string) ([]catalog.SSHKey, error) {
	return r.catalog.SSHKeys(ctx, orgID)
}

// RemoveSSHKey ends what AddSSHKey began. Sessions that are open stay.
func (r *Registry) RemoveSSHKey(ctx context.Context, orgID, id string) error {
	return r.catalog.DeleteSSHKey(ctx, orgID, id)
}

// SSHKeyOrganisations gives the organisations whose VMs a public key may log in to. A key that nobody knows has none.
func (r *Registry) SSHKeyOrganisations(ctx context.Context, key ssh.PublicKey) ([]string, error) {
	return r.catalog.SSHKeyOrganisations(ctx, ssh.FingerprintSHA256(key))
}
