package server

import (
	"context"
	"net/http"

	"vers/api"
	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/registry"
)

func (s *Server) routeDomains() {
	add(s, operation{method: http.MethodGet, path: "/domains", id: "list-domains",
		summary: "Domains of the organisation, or of one VM", tag: "Domains"}, s.listDomains)
	add(s, operation{method: http.MethodPost, path: "/domains", status: http.StatusCreated, creates: true, id: "create-domain",
		summary: "Give a VM a host name, unique on the server, by which the gateway reaches one of its ports", tag: "Domains"}, s.createDomain)
	add(s, operation{method: http.MethodGet, path: "/domains/{id}", id: "get-domain",
		summary: "One domain", tag: "Domains"}, s.getDomain)
	add(s, operation{method: http.MethodDelete, path: "/domains/{id}", id: "delete-domain",
		summary: "Take a host name from its VM", tag: "Domains"}, s.deleteDomain)
}

func showDomain(d catalog.Domain) api.Domain {
	return api.Domain{DomainID: d.ID, VMID: d.VMID, Domain: d.Domain, Port: int(d.Port), Public: d.IsPublic, CreatedAt: d.CreatedAt.UTC()}
}

type listDomainsInput struct {
	VMID string `query:"vm_id" doc:"Only those of this VM"`
}

func (s *Server) listDomains(ctx context.Context, in *listDomainsInput) (*output[[]api.Domain], error) {
	id := ""
	if in.VMID != "" {
		vm, err := s.vm(ctx, in.VMID)
		if err != nil {
			return nil, err
		}
		id = vm.ID
	}
	domains, err := s.Registry.Domains(ctx, orgOf(ctx), id)
	if err != nil {
		return nil, err
	}
	shown := make([]api.Domain, 0, len(domains))
	for _, d := range domains {
		shown = append(shown, showDomain(d))
	}
	return reply(shown), nil
}

type createDomainInput struct{ Body api.DomainRequest }

func (s *Server) createDomain(ctx context.Context, in *createDomainInput) (*output[api.Domain], error) {
	vm, err := s.vm(ctx, in.Body.VMID)
	if err != nil {
		return nil, err
	}
	d, err := s.Registry.CreateDomain(ctx, orgOf(ctx), in.Body.Domain,
		registry.DomainTarget{VMID: vm.ID, Port: in.Body.Port, Public: in.Body.Public})
	if err != nil {
		return nil, err
	}
	return reply(showDomain(d)), nil
}

// DomainInput names a domain.
type DomainInput struct {
	ID string `path:"id" doc:"Domain id, a UUID"`
}

func domainID(text string) (string, error) {
	id, ok := ident.Parse(text)
	if !ok {
		return "", fault.Invalidf("domain id %q is malformed: it must be a UUID", text)
	}
	return id, nil
}

func (s *Server) getDomain(ctx context.Context, in *DomainInput) (*output[api.Domain], error) {
	id, err := domainID(in.ID)
	if err != nil {
		return nil, err
	}
	d, err := s.Registry.Domain(ctx, orgOf(ctx), id)
	if err != nil {
		return nil, err
	}
	return reply(showDomain(d)), nil
}

func (s *Server) deleteDomain(ctx context.Context, in *DomainInput) (*output[api.DomainDeleted], error) {
	id, err := domainID(in.ID)
	if err != nil {
		return nil, err
	}
	if err := s.Registry.DeleteDomain(ctx, orgOf(ctx), id); err != nil {
		return nil, err
	}
	return reply(api.DomainDeleted{DomainID: id}), nil
}
