package gateway

import (
	"context"
	"net"
	"time"

	"vers/internal/fault"
	"vers/internal/machine"
)

// URLRequest asks for the address of a VM.
type URLRequest struct {
	Port   int           // of the guest; 0: 80, or the domain's
	Domain string        // "": the VM's own name
	Life   time.Duration // of the link, where one is needed; 0: LinkLife
}

// URL is an address that a browser opens.
type URL struct {
	URL     string
	Private bool
	Ends    *time.Time // of the signed link in it; nil without one
}

// URL makes the address of a VM that the caller may reach.
func (g *Gateway) URL(ctx context.Context, vm machine.VM, req URLRequest) (URL, error) {
	switch {
	case req.Port < 0 || req.Port > 65535:
		return URL{}, fault.Invalidf("port %d is not valid: it must be from 1 to 65535", req.Port)
	case req.Life < 0 || req.Life > MaxLinkLife:
		return URL{}, fault.Invalidf("a link cannot open a name for %v; at most for %v", req.Life, MaxLinkLife)
	case req.Life == 0:
		req.Life = LinkLife
	}
	host, private := g.VMHost(vm.ID, req.Port), g.PrivateVMs
	if req.Domain != "" {
		d, err := g.Registry.DomainByName(ctx, req.Domain)
		if err == nil && d.VMID != vm.ID {
			err = fault.NotFoundf("domain '%s' not found", req.Domain)
		}
		if err != nil {
			return URL{}, err
		}
		if req.Port != 0 && req.Port != int(d.Port) {
			return URL{}, fault.Invalidf("domain '%s' leads to port %d, not %d", d.Domain, d.Port, req.Port)
		}
		host, private = d.Domain, !d.IsPublic
	}
	u := URL{URL: "https://" + host + "/", Private: private}
	if port := g.addresses.Port(); port != "443" {
		u.URL = "https://" + net.JoinHostPort(host, port) + "/"
	}
	if private {
		ends := time.Now().Add(req.Life).Truncate(time.Second).UTC()
		u.Ends = &ends
		u.URL += "?" + linkParameter + "=" + g.links.sign(host, vm.ID, ends)
	}
	return u, nil
}
