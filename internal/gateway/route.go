package gateway

import (
	"context"
	"net"
	"regexp"
	"strconv"
	"strings"

	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/machine"
)

// route is where a name leads.
type route struct {
	vm      machine.VM
	port    uint16 // of the guest
	private bool   // needs the organisation's key or a signed link
	host    string // the name itself
	api     bool   // to the server's own API, and not to a VM
	domain  bool   // somebody gave the VM this name; else it is made of its id
}

const defaultPort = 80

// vmName is the first part of a VM's host name: its id, with or without a port of the guest in front (3000-<id>).
var vmName = regexp.MustCompile(`^(?:([1-9][0-9]{0,4})-)?([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})$`)

// route finds what a host name means: the first part is a VM's id, whatever follows (spec/api.md 4.2), or the whole name
// is a domain. port is that of the listener, 0 for the main one.
func (g *Gateway) route(ctx context.Context, host string, port uint16) (route, error) {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if host == g.APIHost && g.API != nil && port == 0 {
		return route{host: host, api: true}, nil
	}
	first, _, _ := strings.Cut(host, ".")
	if m := vmName.FindStringSubmatch(first); m != nil {
		return g.vmRoute(ctx, host, m[1], m[2], port)
	}
	d, err := g.Registry.DomainByName(ctx, host)
	if err != nil {
		return route{}, err
	}
	vm, err := g.Machines.Find(ctx, d.VMID)
	if err != nil {
		return route{}, err
	}
	if port == 0 {
		port = d.Port
	}
	return route{vm: vm, port: port, private: !d.IsPublic, host: host, domain: true}, nil
}

func (g *Gateway) vmRoute(ctx context.Context, host, wanted, text string, port uint16) (route, error) {
	id, ok := ident.Parse(text)
	if !ok {
		return route{}, fault.NotFoundf("VM '%s' not found", text)
	}
	vm, err := g.Machines.Find(ctx, id)
	if err != nil {
		return route{}, err
	}
	if wanted != "" {
		n, err := strconv.ParseUint(wanted, 10, 16)
		if err != nil {
			return route{}, fault.Invalidf("%s is no port", wanted)
		}
		port = uint16(n)
	}
	if port == 0 {
		port = defaultPort
	}
	return route{vm: vm, port: port, private: g.PrivateVMs, host: host}, nil
}

// VMHost is the host name of a VM, of one of its ports if port is neither 0 nor 80.
func (g *Gateway) VMHost(vmID string, port int) string {
	name := vmID + "." + g.Domain
	if port != 0 && port != defaultPort {
		name = strconv.Itoa(port) + "-" + name
	}
	return name
}

// Port is the number in the address of the TLS listener, "" without one.
func (a Addresses) Port() string {
	_, port, _ := net.SplitHostPort(a.TLS)
	return port
}
