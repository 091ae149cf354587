package server

import (
	"context"
	"net/http"
	"time"

	"vers/api"
	"vers/internal/fault"
	"vers/internal/gateway"
)

func (s *Server) routeGateway() {
	add(s, operation{method: http.MethodGet, path: "/gateway", id: "gateway",
		summary: "[ours] How VMs are reached from outside", tag: "Access"}, s.showGateway)
	add(s, operation{method: http.MethodPost, path: "/vm/{id}/url", id: "vm-url",
		summary: "[ours] Address of a port of a VM, with a signed link where its name is private", tag: "Access"}, s.vmURL)
}

func (s *Server) showGateway(context.Context, *none) (*output[api.Gateway], error) {
	g := s.Gateway
	if g == nil {
		return reply(api.Gateway{Ports: []int{}}), nil
	}
	at := g.Addresses()
	answer := api.Gateway{Domain: g.Domain, TLSAddress: at.TLS, SSHAddress: at.SSH, Ports: append([]int{}, at.Ports...), APIHost: g.APIHost,
		PrivateVMs: g.PrivateVMs, SSHAuthority: g.SSHAuthority()}
	if g.ACME != nil {
		answer.ACMEDirectory = g.ACME.Directory
	}
	if g.Certificate == "" {
		answer.Authority = g.Authority()
	}
	return reply(answer), nil
}

type vmURLInput struct {
	VMInput
	Body api.URLRequest
}

func (s *Server) vmURL(ctx context.Context, in *vmURLInput) (*output[api.URL], error) {
	vm, err := s.vm(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if s.Gateway == nil || s.Gateway.Addresses().TLS == "" {
		return nil, fault.Unavailablef("this server has no gateway: set gateway.listen in its configuration; 'vers tunnel' reaches ports without one")
	}
	req := gateway.URLRequest{Port: in.Body.Port, Domain: in.Body.Domain, Life: time.Duration(in.Body.ExpiresIn) * time.Second}
	u, err := s.Gateway.URL(ctx, vm, req)
	if err != nil {
		return nil, err
	}
	return reply(api.URL{URL: u.URL, Private: u.Private, ExpiresAt: u.Ends}), nil
}
