package catalog

import (
	"context"
	"time"
)

// Domain is one row of the table domains.
type Domain struct {
	ID        string
	OrgID     string
	VMID      string
	Domain    string
	Port      uint16 // of the guest
	IsPublic  bool   // open to everybody
	CreatedAt time.Time
}

const domainColumns = `domain_id, org_id, vm_id, domain, port, is_public, created_at`

func readDomain(row scan) (Domain, error) {
	var d Domain
	err := row(&d.ID, &d.OrgID, &d.VMID, &d.Domain, &d.Port, &d.IsPublic, timeColumn{&d.CreatedAt})
	return d, err
}

// InsertDomain adds a domain. It goes with its VM. A name that anybody has is fault.Conflict, and so is a missing VM.
func (r *records) InsertDomain(ctx context.Context, d Domain) error {
	return insert(ctx, r.write, "domain '"+d.Domain+"'", `INSERT INTO domains (`+domainColumns+`)
		VALUES (?, ?, ?, ?, ?, ?, ?)`, d.ID, d.OrgID, d.VMID, d.Domain, d.Port, d.IsPublic, timeText(d.CreatedAt))
}

// Domain gives one domain, whoever's it is.
func (r *records) Domain(ctx context.Context, id string) (Domain, error) {
	return one(ctx, r.read, "domain "+id, readDomain, `SELECT `+domainColumns+` FROM domains WHERE domain_id = ?`, id)
}

// DomainByName gives the domain with a host name, whoever's it is.
func (r *records) DomainByName(ctx context.Context, name string) (Domain, error) {
	return one(ctx, r.read, "domain '"+name+"'", readDomain, `SELECT `+domainColumns+` FROM domains WHERE domain = ?`, name)
}

// Domains lists the domains of an organisation, or of one of its VMs, newest first.
func (r *records) Domains(ctx context.Context, orgID, vmID string) ([]Domain, error) {
	return list(ctx, r.read, "domains", readDomain, `SELECT `+domainColumns+` FROM domains
		WHERE org_id = ?1 AND (?2 = '' OR vm_id = ?2) ORDER BY created_at DESC, rowid DESC`, orgID, vmID)
}

// DeleteDomain removes a domain of an organisation.
func (r *records) DeleteDomain(ctx context.Context, orgID, id string) error {
	return change(ctx, r.write, "domain "+id, `DELETE FROM domains WHERE domain_id = ? AND org_id = ?`, id, orgID)
}
