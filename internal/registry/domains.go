package registry

import (
	"context"
	"net/netip"
	"regexp"
	"strings"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

const (
	domainLength = 253
	domainsPerVM = 100
)

// label is one part of a host name (RFC 1123); international names come in their xn-- form.
var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// ParseDomain checks a host name and gives its canonical form: lower case, no dot at the end.
func ParseDomain(text string) (string, error) {
	name := strings.TrimSuffix(strings.ToLower(text), ".")
	refused := func(why string) (string, error) {
		return "", fault.Invalidf("domain %q is not valid: %s", text, why)
	}
	if name == "" || len(name) > domainLength {
		return refused("a host name has 1 to 253 characters")
	}
	labels := strings.Split(name, ".")
	if len(labels) < 2 {
		return refused("a host name needs at least one dot")
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return refused("it is an address, not a host name")
	}
	for _, l := range labels {
		if !label.MatchString(l) {
			return refused("each part has 1 to 63 letters, digits or '-', not at its ends; international names are written in their xn-- form")
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return refused("its last part has digits only")
	}
	return name, nil
}

// DomainTarget is where a host name leads: a port of a VM, for everybody or for the organisation only.
type DomainTarget struct {
	VMID   string
	Port   int // 0: 80
	Public bool
}

// defaultDomainPort is the guest's port behind a host name when none is said.
const defaultDomainPort = 80

// CreateDomain gives a VM a host name. The VM must be the organisation's, which the caller has checked.
func (r *Registry) CreateDomain(ctx context.Context, orgID, text string, target DomainTarget) (catalog.Domain, error) {
	vmID := target.VMID
	if target.Port == 0 {
		target.Port = defaultDomainPort
	}
	if target.Port < 1 || target.Port > 65535 {
		return catalog.Domain{}, fault.Invalidf("port %d is not valid: it must be from 1 to 65535", target.Port)
	}
	name, err := ParseDomain(text)
	if err != nil {
		return catalog.Domain{}, err
	}
	d := catalog.Domain{ID: ident.New(), OrgID: orgID, VMID: vmID, Domain: name, Port: uint16(target.Port), IsPublic: target.Public, CreatedAt: r.now()}
	return d, r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		switch _, err := tx.DomainByName(ctx, name); {
		case err == nil:
			return fault.Conflictf("domain '%s' is taken: delete it where it is, or choose another", name)
		case !fault.Is(err, fault.NotFound):
			return err
		}
		others, err := tx.Domains(ctx, orgID, vmID)
		if err != nil {
			return err
		}
		if len(others) >= domainsPerVM {
			return fault.Exhaustedf("VM '%s' has %d domains, which is the limit; delete some first", vmID, len(others))
		}
		err = tx.InsertDomain(ctx, d)
		if fault.Is(err, fault.Conflict) { // the name is free, so it is the VM that is gone
			err = fault.NotFoundf("VM '%s' not found", vmID)
		}
		return err
	})
}

// Domain gives a domain of an organisation.
func (r *Registry) Domain(ctx context.Context, orgID, id string) (catalog.Domain, error) {
	d, err := r.catalog.Domain(ctx, id)
	if err == nil && d.OrgID != orgID {
		err = fault.NotFoundf("domain %s not found", id)
	}
	return d, err
}

// DomainByName gives the domain with a host name, whoever's it is.
func (r *Registry) DomainByName(ctx context.Context, name string) (catalog.Domain, error) {
	return r.catalog.DomainByName(ctx, name)
}

// Domains lists the domains of an organisation, or of one of its VMs.
func (r *Registry) Domains(ctx context.Context, orgID, vmID string) ([]catalog.Domain, error) {
	return r.catalog.Domains(ctx, orgID, vmID)
}

// DeleteDomain takes a host name from its VM.
func (r *Registry) DeleteDomain(ctx context.Context, orgID, id string) error {
	return r.catalog.DeleteDomain(ctx, orgID, id)
}
