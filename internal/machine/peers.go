package machine

import (
	"context"
	"net"
	"strings"

	"vers/internal/fault"
)

// Peers are the VMs that one VM reaches by name: those of its organisation, if both sides take part in the internal network.
// It implements what internal/netstack asks for.
//
// A peer's name is its label AliasLabel, in any letter case, or its id. A name that several peers have means none of them.
type Peers struct {
	m *Manager
	v *vm
}

// Member reports whether the VM takes part.
func (p Peers) Member() bool { return p.v != nil && p.v.snapshot().Config.Internal }

// takesPart tells whether a VM can be reached by the peers of another.
func (p Peers) takesPart(r VM) bool {
	switch State(r.State) {
	case StateRunning, StatePaused, StateSleeping: // one that sleeps wakes
		return r.Config.Internal && r.OrgID == p.v.snapshot().OrgID
	}
	return false
}

// Resolve gives the ids of the peers with a name, as far as this VM takes part.
func (p Peers) Resolve(name string) []string {
	ids := p.find(func(r VM) bool { return r.ID == name || strings.EqualFold(r.Labels[AliasLabel], name) })
	if len(ids) > 1 {
		return nil
	}
	return ids
}

// All gives the ids of all peers.
func (p Peers) All() []string { return p.find(func(VM) bool { return true }) }

func (p Peers) find(wanted func(VM) bool) []string {
	if !p.Member() {
		return nil
	}
	var ids []string
	for _, v := range p.m.all() {
		if r := v.snapshot(); p.takesPart(r) && wanted(r) {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// Reaches reports whether the VM with an id is a peer now.
func (p Peers) Reaches(id string) bool {
	p.m.mu.Lock()
	other := p.m.vms[id]
	p.m.mu.Unlock()
	return other != nil && p.Member() && p.takesPart(other.snapshot())
}

// Dial connects to a TCP port of a peer, and wakes it if it sleeps.
func (p Peers) Dial(ctx context.Context, id string, port uint16) (net.Conn, error) {
	if !p.Reaches(id) {
		return nil, fault.NotFoundf("VM '%s' is no peer", id)
	}
	p.m.mu.Lock()
	other := p.m.vms[id]
	p.m.mu.Unlock()
	if other == nil {
		return nil, fault.NotFoundf("VM '%s' is gone", id)
	}
	return p.m.dial(ctx, other, func(n Network) (net.Conn, error) { return n.DialGuest(ctx, port) })
}

// recheck cuts connections between VMs of an organisation that are not permitted any more.
func (m *Manager) recheck(orgID string) {
	for _, v := range m.all() {
		if network := v.openNetwork(); network != nil && v.snapshot().OrgID == orgID {
			network.Recheck()
		}
	}
}
