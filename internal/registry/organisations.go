package registry

import (
	"context"

	"vers/internal/catalog"
	"vers/internal/egress"
	"vers/internal/fault"
	"vers/internal/ident"
)

// Organisation gives one organisation.
func (r *Registry) Organisation(ctx context.Context, id string) (catalog.Organisation, error) {
	return r.catalog.Organisation(ctx, id)
}

// OrganisationByName gives one organisation; "" means the first one made.
func (r *Registry) OrganisationByName(ctx context.Context, name string) (catalog.Organisation, error) {
	if name != "" {
		return r.catalog.OrganisationByName(ctx, name)
	}
	all, err := r.catalog.Organisations(ctx)
	if err == nil && len(all) == 0 {
		err = fault.NotFoundf("there is no organisation yet: the first start of versd makes one")
	}
	if err != nil {
		return catalog.Organisation{}, err
	}
	return all[0], nil
}

// Organisations lists all organisations, the first one made first.
func (r *Registry) Organisations(ctx context.Context) ([]catalog.Organisation, error) {
	return r.catalog.Organisations(ctx)
}

// CreateOrganisation makes an organisation with a name nobody has.
func (r *Registry) CreateOrganisation(ctx context.Context, name string) (org catalog.Organisation, err error) {
	err = r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		org, err = r.createOrganisation(ctx, tx, name)
		return err
	})
	return org, err
}

func (r *Registry) createOrganisation(ctx context.Context, tx *catalog.Tx, name string) (catalog.Organisation, error) {
	if !ident.ValidName(name, ident.RepositoryName) {
		return catalog.Organisation{}, fault.Invalidf("organisation name %q is not valid: use 1 to %d letters, digits, '-', '_' or '.'",
			name, ident.RepositoryName)
	}
	org := catalog.Organisation{ID: ident.New(), Name: name, CreatedAt: r.now()}
	var err error
	if org.GID, err = tx.NextGID(ctx, r.firstGID); err != nil {
		return org, err
	}
	return org, tx.InsertOrganisation(ctx, org)
}

// DeleteOrganisation removes an organisation that has no VMs, commits and repositories any more. Its keys end, its name is
// free. The one that local connections act for stays.
func (r *Registry) DeleteOrganisation(ctx context.Context, id string) error {
	return r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		org, err := tx.Organisation(ctx, id)
		if err != nil {
			return err
		}
		if local, err := tx.LocalKey(ctx); err == nil && local.OrgID == id {
			return fault.Conflictf("organisation '%s' is the one that users of the local socket act for; it cannot be deleted", org.Name)
		}
		vms, commits, repositories, err := tx.Holdings(ctx, id)
		if err != nil {
			return err
		}
		if vms+commits+repositories > 0 {
			return fault.Conflictf("organisation '%s' has %d VMs, %d commits and %d repositories; delete them first",
				org.Name, vms, commits, repositories)
		}
		return tx.DeleteOrganisation(ctx, id, r.now())
	})
}

// Quotas gives what an organisation may use: nil is no limit.
func (r *Registry) Quotas(ctx context.Context, orgID string) (catalog.Quotas, error) {
	own, err := r.catalog.Quotas(ctx, orgID)
	if err != nil {
		return own, err
	}
	return catalog.Quotas{
		VMs: inForce(own.VMs, r.quotas.VMs), VCPUs: inForce(own.VCPUs, r.quotas.VCPUs),
		MemoryMiB: inForce(own.MemoryMiB, r.quotas.MemoryMiB), StorageMiB: inForce(own.StorageMiB, r.quotas.StorageMiB),
	}, nil
}

func inForce(own, standard *int64) *int64 {
	switch {
	case own == nil:
		return standard
	case *own < 0:
		return nil
	}
	return own
}

// OwnQuotas gives what is set for an organisation itself: nil follows the configuration, Unlimited is no limit.
func (r *Registry) OwnQuotas(ctx context.Context, orgID string) (catalog.Quotas, error) {
	return r.catalog.Quotas(ctx, orgID)
}

// SetQuotas replaces what is set for an organisation. What runs already is not touched: a quota below what is used only
// refuses more.
func (r *Registry) SetQuotas(ctx context.Context, orgID string, q catalog.Quotas) error {
	return r.catalog.SetQuotas(ctx, orgID, q)
}

// Egress gives what the VMs of an organisation may reach; nil: what the server permits.
func (r *Registry) Egress(ctx context.Context, orgID string) (*egress.Policy, error) {
	return r.catalog.OrganisationEgress(ctx, orgID)
}

// SetEgress replaces what the VMs of an organisation may reach; nil: what the server permits. A running versd applies it to
// VMs that run, within a second.
func (r *Registry) SetEgress(ctx context.Context, orgID string, policy *egress.Policy) error {
	if policy != nil {
		if err := policy.ValidateBelow(); err != nil {
			return fault.Invalidf("%w", err)
		}
	}
	return r.catalog.SetOrganisationEgress(ctx, orgID, policy)
}
