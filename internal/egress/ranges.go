package egress

import (
	"net/netip"
	"slices"
)

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
		ranges("inside the VM's own networks", MainNetwork, ControlNetwork),
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
