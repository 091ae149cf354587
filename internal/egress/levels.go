package egress

import (
	"fmt"
	"net/netip"
	"slices"
)

// Level is a policy and whose it is: "server", "organisation" or "VM", for messages.
type Level struct {
	Of     string `json:"of"`
	Policy Policy `json:"policy"`
}

// Levels hold for one VM, the server's own first. No level at all is a server with the default policy: the public
// internet and nothing else.
//
// A decision is made on the address a flow really goes to, in this order; the first step that applies decides:
//
//  1. Addresses that are no destination for anybody (unspecified, multicast, broadcast) and the VM's own networks
//     are refused, whatever the rules say.
//  2. A Deny rule of the server that covers the destination refuses it.
//  3. An Allow rule of the server covers it: permitted by the server, in every mode. A wide rule such as 0.0.0.0/0 does
//     not open what is dangerous by surprise: loopback and link-local addresses (the host's services, a cloud's metadata
//     server) need a rule inside those ranges, the host's own addresses a rule for that single address. A rule with a
//     name opens public addresses only, so that who owns the name cannot point it into the host's networks.
//  4. The server's mode none refuses.
//  5. The server's mode internet refuses everything but a public unicast address: private (RFC 1918, ULA), carrier-grade
//     NAT, loopback, link-local, documentation and benchmark ranges, and every address the host itself has.
//  6. What the server permits, each further level may refuse: by a Deny rule, by mode none without an Allow rule that
//     covers it, by mode internet where it is not public and no Allow rule covers it.
//
// A rule with a name covers the addresses by which the VM's resolver answered for that name (Check's names), as long as
// the answer is valid. IPv4 addresses written as IPv6 (::ffff:10.0.0.1) are decided as the IPv4 address they mean; other
// embeddings of IPv4 in IPv6 (NAT64, 6to4, Teredo, IPv4-compatible) are not public.
//
// A guest reaches a service of the host under an address of the host's other interfaces, never as 127.0.0.1: that is
// the guest itself.
type Levels []Level

// Stack makes the levels of a VM. organisation and vm may be nil: they say nothing.
func Stack(server Policy, organisation, vm *Policy) Levels {
	if server.Mode == ModeInherit {
		server.Mode = ModeInternet // there is nothing above it
	}
	levels := Levels{{Of: "server", Policy: server}}
	if organisation != nil {
		levels = append(levels, Level{Of: "organisation", Policy: *organisation})
	}
	if vm != nil {
		levels = append(levels, Level{Of: "VM", Policy: *vm})
	}
	return levels
}

// server is the first level's policy.
func (l Levels) server() Policy {
	if len(l) == 0 {
		return Policy{}
	}
	return l[0].Policy
}

// below are the other levels.
func (l Levels) below() Levels {
	if len(l) == 0 {
		return nil
	}
	return l[1:]
}

// HostAddress reports whether an address belongs to the host itself, on whatever interface.
type HostAddress func(netip.Addr) (bool, error)

// Check returns nil if every level permits a flow to dst, else the reason why not, which names the level. network is "tcp"
// or "udp"; names are those for which the VM's resolver answered with the address, lower case without a final dot. isHost
// is asked only where the answer matters. If isHost fails, the flow is refused.
func (l Levels) Check(network string, dst netip.AddrPort, names []string, isHost HostAddress) error {
	f := flow{addr: dst.Addr().Unmap().WithZone(""), port: dst.Port(), names: names}
	if network != "tcp" && network != "udp" {
		return fmt.Errorf("protocol %s is not forwarded", network)
	}
	if !f.addr.IsValid() || f.port == 0 {
		return fmt.Errorf("%s is no destination", dst)
	}
	if reason := neverReachable(f.addr); reason != "" {
		return fmt.Errorf("%s is %s", f.addr, reason)
	}
	if err := l.server().checkAsServer(f, isHost); err != nil {
		return fmt.Errorf("policy of the server: %w", err)
	}
	for _, level := range l.below() {
		if err := level.Policy.checkBelow(f); err != nil {
			return fmt.Errorf("policy of the %s: %w", level.Of, err)
		}
	}
	return nil
}

// CheckName returns nil if every level lets the guest ask for a name, else the reason why not.
func (l Levels) CheckName(name string) error {
	if err := l.server().resolves(name); err != nil {
		return fmt.Errorf("policy of the server: %w", err)
	}
	for _, level := range l.below() {
		if err := level.Policy.resolves(name); err != nil {
			return fmt.Errorf("policy of the %s: %w", level.Of, err)
		}
	}
	return nil
}

// CheckAnswer returns nil if an answer may tell the guest about an address: the server permits some flow to it, or would
// but for its mode. Else a name leads where nothing but the operator's word should (DNS rebinding).
func (l Levels) CheckAnswer(addr netip.Addr, isHost HostAddress) error {
	addr = addr.Unmap().WithZone("")
	if reason := neverReachable(addr); reason != "" {
		return fmt.Errorf("%s is %s", addr, reason)
	}
	own, err := isHost(addr)
	if err != nil {
		return fmt.Errorf("cannot tell whether %s is an address of the host: %w", addr, err)
	}
	why := closed(addr, own)
	if why == nil || slices.ContainsFunc(l.server().Allow, func(r Rule) bool {
		return r.name == "" && r.prefix.Contains(addr) && r.preciseEnough(addr, own)
	}) {
		return nil
	}
	return why
}

// About reports whether some rule is about a name, so that its addresses have to be remembered.
func (l Levels) About(name string) bool {
	about := func(r Rule) bool { return r.matches(name) }
	return slices.ContainsFunc(l, func(level Level) bool {
		return slices.ContainsFunc(level.Policy.Allow, about) || slices.ContainsFunc(level.Policy.Deny, about)
	})
}

// ByName reports whether the guest may ask for some names only. Then its resolver answers about addresses and nothing
// that could carry others past the policy.
func (l Levels) ByName() bool {
	return slices.ContainsFunc(l, func(level Level) bool { return level.Policy.Mode == ModeNone })
}

// Limits gives the lowest bounds of all levels; 0 is no bound.
func (l Levels) Limits() (bytesPerSecond, connectionsPerSecond int64) {
	lower := func(to *int64, n int64) {
		if n > 0 && (*to == 0 || n < *to) {
			*to = n
		}
	}
	for _, level := range l {
		lower(&bytesPerSecond, level.Policy.BytesPerSecond)
		lower(&connectionsPerSecond, level.Policy.ConnectionsPerSecond)
	}
	return bytesPerSecond, connectionsPerSecond
}
