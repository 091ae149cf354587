package netstack

import (
	"fmt"
	"net/netip"
	"slices"

	"vers/internal/fault"
)

// Mode is what a policy does with a destination that no rule names.
type Mode string

// The modes.
const (
	ModeInternet Mode = "internet" // addresses of the public internet only
	ModeNone     Mode = "none"     // nothing, and no names either
)

// Policy says which destinations a guest may reach. The zero value is the default policy: the public internet and
// nothing else. A decision is made on the address a flow really goes to, never on a name, in this order; the first
// step that applies decides:
//
//  1. Addresses that are no destination for anybody (unspecified, multicast, broadcast) and the VM's own networks
//     are refused, whatever the rules say.
//  2. A Deny rule that covers the destination refuses it.
//  3. An Allow rule that covers the destination permits it, in every mode. A wide rule such as 0.0.0.0/0 does not
//     open what is dangerous by surprise: loopback and link-local addresses (the host's services, a cloud's metadata
//     server) need a rule inside those ranges, the host's own addresses a rule for that single address.
//  4. Mode none refuses.
//  5. Everything but a public unicast address is refused: private (RFC 1918, ULA), carrier-grade NAT, loopback,
//     link-local, documentation and benchmark ranges, and every address the host itself has on any interface.
//
// IPv4 addresses written as IPv6 (::ffff:10.0.0.1) are decided as the IPv4 address they mean; other embeddings of
// IPv4 in IPv6 (NAT64, 6to4, Teredo, IPv4-compatible) are not public.
//
// A guest reaches a service of the host under an address of the host's other interfaces, never as 127.0.0.1: that is
// the guest itself.
type Policy struct {
	Mode  Mode   `json:"mode,omitempty"` // empty: internet
	Allow []Rule `json:"allow,omitempty"`
	Deny  []Rule `json:"deny,omitempty"`
}

// ParsePolicy reads a policy as it is written in a configuration. mode may be empty. For the rules see ParseRule.
func ParsePolicy(mode string, allow, deny []string) (Policy, error) {
	policy := Policy{Mode: Mode(mode)}
	switch policy.Mode {
	case "", ModeInternet, ModeNone:
	default:
		return Policy{}, fault.Invalidf("egress mode %q is unknown; use %q or %q", mode, ModeInternet, ModeNone)
	}
	for _, list := range []struct {
		name  string
		texts []string
		rules *[]Rule
	}{{"allow", allow, &policy.Allow}, {"deny", deny, &policy.Deny}} {
		for _, text := range list.texts {
			rule, err := ParseRule(text)
			if err != nil {
				return Policy{}, fault.Invalidf("egress %s list: %w", list.name, err)
			}
			*list.rules = append(*list.rules, rule)
		}
	}
	return policy, nil
}

// HostAddress reports whether an address belongs to the host itself, on whatever interface.
type HostAddress func(netip.Addr) (bool, error)

// Check returns nil if the policy permits a flow to dst, else the reason why not. network is "tcp" or "udp"; isHost
// is asked only where the answer matters. If isHost fails, the flow is refused.
func (p Policy) Check(network string, dst netip.AddrPort, isHost HostAddress) error {
	addr := dst.Addr().Unmap().WithZone("")
	if network != "tcp" && network != "udp" {
		return fmt.Errorf("protocol %s is not forwarded", network)
	}
	if !addr.IsValid() || dst.Port() == 0 {
		return fmt.Errorf("%s is no destination", dst)
	}
	if reason := neverReachable(addr); reason != "" {
		return fmt.Errorf("%s is %s", addr, reason)
	}
	if i := slices.IndexFunc(p.Deny, func(r Rule) bool { return r.covers(addr, dst.Port()) }); i >= 0 {
		return fmt.Errorf("the deny list has %s", p.Deny[i])
	}
	own, err := isHost(addr)
	if err != nil {
		return fmt.Errorf("cannot tell whether %s is an address of the host: %w", addr, err)
	}
	for _, rule := range p.Allow {
		if rule.covers(addr, dst.Port()) && rule.preciseEnough(addr, own) {
			return nil
		}
	}
	if p.Mode == ModeNone {
		return fmt.Errorf("egress is off for this VM")
	}
	if p.Mode != "" && p.Mode != ModeInternet {
		return fmt.Errorf("egress mode %q is unknown", p.Mode)
	}
	if reason := notPublic(addr); reason != "" {
		return fmt.Errorf("%s is %s", addr, reason)
	}
	if own {
		return fmt.Errorf("%s is an address of the host", addr)
	}
	return nil
}

// addressRange is a block of addresses with the reason why the default policy refuses it.
type addressRange struct {
	prefix netip.Prefix
	reason string
}

func ranges(reason string, prefixes ...string) []addressRange {
	list := make([]addressRange, len(prefixes))
	for i, prefix := range prefixes {
		list[i] = addressRange{netip.MustParsePrefix(prefix), reason}
	}
	return list
}

// neverRanges are destinations that no rule can open.
func neverRanges() []addressRange {
	return slices.Concat(
		ranges("unspecified", "0.0.0.0/8", "::/128"),
		ranges("multicast", "224.0.0.0/4", "ff00::/8"),
		ranges("a broadcast address", "255.255.255.255/32"),
		ranges("inside the VM's own networks", mainPrefix, controlPrefix),
	)
}

// notPublicRanges are the blocks of the IANA special-purpose registries (RFC 6890 and its successors) that are not
// globally reachable. For IPv6 only 2000::/3 is handed out at all, see notPublic.
func notPublicRanges() []addressRange {
	return slices.Concat(
		ranges("a loopback address", "127.0.0.0/8"),
		ranges("link-local (metadata services live there)", "169.254.0.0/16"),
		ranges("a private address", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
		ranges("a carrier-grade NAT address", "100.64.0.0/10"),
		ranges("reserved for special purposes", "192.0.0.0/24", "192.88.99.0/24", "240.0.0.0/4",
			"2001::/23", "2002::/16"),
		ranges("reserved for documentation", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24",
			"2001:db8::/32", "3fff::/20"),
		ranges("reserved for benchmarks", "198.18.0.0/15"),
	)
}

func find(list []addressRange, addr netip.Addr) string {
	for _, r := range list {
		if r.prefix.Contains(addr) {
			return r.reason
		}
	}
	return ""
}

func neverReachable(addr netip.Addr) string { return find(neverRanges(), addr) }

func notPublic(addr netip.Addr) string {
	if reason := find(notPublicRanges(), addr); reason != "" {
		return reason
	}
	if addr.Is6() && !netip.MustParsePrefix("2000::/3").Contains(addr) {
		return "not a public address"
	}
	return ""
}
