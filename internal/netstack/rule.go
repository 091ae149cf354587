package netstack

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Rule covers addresses and, if it names ports, only those. It is written
//
//	192.0.2.7             one address, all ports
//	192.0.2.0/24          a block
//	192.0.2.7:443         one port
//	10.0.0.0/8:80,8000-8999
//	[2001:db8::/32]:443   IPv6 with ports needs brackets
//
// and marshals to the same text.
type Rule struct {
	prefix netip.Prefix
	ports  []portRange // sorted, not overlapping; empty: all
}

type portRange struct{ first, last uint16 }

// ParseRule reads a rule.
func ParseRule(text string) (Rule, error) {
	address, ports := text, ""
	hasPorts := false
	if rest, ok := strings.CutPrefix(text, "["); ok {
		inside, after, closed := strings.Cut(rest, "]")
		if !closed {
			return Rule{}, fmt.Errorf("rule %q: the bracket is not closed", text)
		}
		address = inside
		if after != "" {
			if ports, hasPorts = strings.CutPrefix(after, ":"); !hasPorts {
				return Rule{}, fmt.Errorf("rule %q: after the bracket only a colon and ports may follow", text)
			}
		}
	} else if strings.Count(text, ":") == 1 {
		address, ports, hasPorts = strings.Cut(text, ":")
	}
	prefix, err := parsePrefix(address)
	if err != nil {
		return Rule{}, fmt.Errorf("rule %q: %w", text, err)
	}
	rule := Rule{prefix: prefix}
	if hasPorts {
		if rule.ports, err = parsePorts(ports); err != nil {
			return Rule{}, fmt.Errorf("rule %q: %w", text, err)
		}
	}
	return rule, nil
}

func parsePrefix(text string) (netip.Prefix, error) {
	if !strings.Contains(text, "/") {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("%q is not an IP address; names are not possible here, "+
				"because the decision is made on addresses", text)
		}
		if addr.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q has a zone; leave it out", text)
		}
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not a block of addresses like 192.0.2.0/24", text)
	}
	if prefix.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is an IPv4 block written as IPv6; write it as IPv4", text)
	}
	// A block with bits beyond its length (10.1.2.3/8) is more often a slip than a wish.
	if prefix != prefix.Masked() {
		return netip.Prefix{}, fmt.Errorf("%q has address bits beyond its length; did you mean %s?",
			text, prefix.Masked())
	}
	return prefix, nil
}

func parsePorts(text string) ([]portRange, error) {
	var list []portRange
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		low, err := parsePort(first)
		if err != nil {
			return nil, err
		}
		high, err := parsePort(last)
		if err != nil {
			return nil, err
		}
		if high < low {
			return nil, fmt.Errorf("ports %q run backwards", part)
		}
		list = append(list, portRange{low, high})
	}
	slices.SortFunc(list, func(a, b portRange) int { return int(a.first) - int(b.first) })
	merged := list[:1]
	for _, r := range list[1:] {
		if last := &merged[len(merged)-1]; int(r.first) <= int(last.last)+1 {
			last.last = max(last.last, r.last)
		} else {
			merged = append(merged, r)
		}
	}
	return merged, nil
}

func parsePort(text string) (uint16, error) {
	// ParseUint takes a sign-free number only, but "080" too: harmless.
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port from 1 to 65535", text)
	}
	return uint16(n), nil
}

// String gives the rule in the form that ParseRule reads.
func (r Rule) String() string {
	var b strings.Builder
	address := r.prefix.String()
	if r.prefix.IsSingleIP() {
		address = r.prefix.Addr().String()
	}
	if len(r.ports) > 0 && r.prefix.Addr().Is6() {
		address = "[" + address + "]"
	}
	b.WriteString(address)
	for i, ports := range r.ports {
		b.WriteByte(":,"[min(i, 1)])
		b.WriteString(strconv.Itoa(int(ports.first)))
		if ports.last != ports.first {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(int(ports.last)))
		}
	}
	return b.String()
}

// MarshalText makes rules strings in JSON and TOML.
func (r Rule) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (r *Rule) UnmarshalText(text []byte) error {
	rule, err := ParseRule(string(text))
	if err == nil {
		*r = rule
	}
	return err
}

// covers tells whether the rule speaks about addr (unmapped) and port.
func (r Rule) covers(addr netip.Addr, port uint16) bool {
	if !r.prefix.Contains(addr) {
		return false
	}
	return len(r.ports) == 0 || slices.ContainsFunc(r.ports, func(p portRange) bool {
		return p.first <= port && port <= p.last
	})
}

// preciseEnough tells whether an allow rule that covers addr means it: see step 3 of Policy.
func (r Rule) preciseEnough(addr netip.Addr, own bool) bool {
	switch {
	case addr.IsLoopback():
		return r.prefix.Addr().IsLoopback()
	case addr.IsLinkLocalUnicast():
		return r.prefix.Addr().IsLinkLocalUnicast()
	case own:
		return r.prefix.IsSingleIP()
	}
	return true
}
