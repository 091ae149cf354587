package gateway

import (
	"net"
	"net/netip"
	"sync"
)

// gate bounds what one address can hold open, so that it cannot take from others: all its connections, and the part of
// them that has not logged in yet. IPv6 addresses count by network of 64 bits, which is what one host usually has.
type gate struct {
	mu      sync.Mutex
	perHost int
	open    map[netip.Prefix]*held
}

type held struct{ all, strangers int }

// strangers is the part of an address's connections that need not be logged in.
const strangersShare = 4

func newGate(perHost int) *gate { return &gate{perHost: perHost, open: map[netip.Prefix]*held{}} }

// enter counts a connection until release. ok is false if its address has too many. admitted says that it has shown who
// it is.
func (g *gate) enter(addr net.Addr) (release, admitted func(), ok bool) {
	key := hostOf(addr)
	g.mu.Lock()
	defer g.mu.Unlock()
	h := g.open[key]
	if h == nil {
		h = &held{}
	}
	if h.all >= g.perHost || h.strangers >= max(g.perHost/strangersShare, 1) {
		return nil, nil, false
	}
	g.open[key] = h
	h.all++
	h.strangers++
	known := sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		h.strangers--
	})
	release = func() {
		known()
		g.mu.Lock()
		defer g.mu.Unlock()
		if h.all--; h.all == 0 {
			delete(g.open, key)
		}
	}
	return release, known, true
}

// hostOf is what counts as one address.
func hostOf(addr net.Addr) netip.Prefix {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return netip.Prefix{} // no address: they share one allowance
	}
	ip := ap.Addr().Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, _ := ip.Prefix(bits)
	return p
}
