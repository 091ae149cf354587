package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Rule covers addresses, or what the VM's resolver answers for names, and if it has ports, only those. It is written
//
//	192.0.2.7             one address, all ports
//	192.0.2.0/24          a block
//	192.0.2.7:443         one port
//	10.0.0.0/8:80,8000-8999
//	[2001:db8::/32]:443   IPv6 with ports needs brackets
//	example.org:443       a name
//	*.example.org         all names below it, at any depth, not itself
//
// and marshals to the same text.
type Rule struct {
	prefix netip.Prefix // not valid if name is set
	name   string       // lower case, without a final dot; "*." in front of it: names below
	ports  []portRange  // sorted, not overlapping; empty: all
}

type portRange struct{ first, last uint16 }

// ParseRule reads a rule.
func ParseRule(text string) (Rule, error) {
	rule, err := parseRule(text)
	if err != nil {
		return Rule{}, fmt.Errorf("rule %q: %w", shorten(text), err)
	}
	return rule, nil
}

// shorten keeps messages readable, whatever was typed.
func shorten(text string) string {
	if len(text) > 2*maxNameLength {
		return text[:maxNameLength] + "…"
	}
	return text
}

func parseRule(text string) (rule Rule, err error) {
	target, ports, hasPorts, bracket, err := splitPorts(text)
	if err != nil {
		return rule, err
	}
	if bracket || isAddress(target) {
		rule.prefix, err = parsePrefix(target)
	} else {
		rule.name, err = parseName(target)
	}
	if err == nil && hasPorts {
		rule.ports, err = parsePorts(ports)
	}
	return rule, err
}

func splitPorts(text string) (target, ports string, hasPorts, bracket bool, err error) {
	rest, bracket := strings.CutPrefix(text, "[")
	if !bracket {
		if strings.Count(text, ":") != 1 {
			return text, "", false, false, nil
		}
		target, ports, hasPorts = strings.Cut(text, ":")
		return target, ports, hasPorts, false, nil
	}
	target, after, closed := strings.Cut(rest, "]")
	if !closed {
		return "", "", false, true, errors.New("the bracket is not closed")
	}
	if after != "" {
		if ports, hasPorts = strings.CutPrefix(after, ":"); !hasPorts {
			return "", "", false, true, errors.New("after the bracket only a colon and ports may follow")
		}
	}
	return target, ports, hasPorts, true, nil
}

// isAddress tells addresses and blocks, wrong ones too, from names: the last label of a name is no number.
func isAddress(text string) bool {
	if strings.ContainsAny(text, ":/%") {
		return true
	}
	text = strings.TrimSuffix(text, ".")
	last := strings.ToLower(text[strings.LastIndexByte(text, '.')+1:])
	hex := strings.HasPrefix(last, "0x")
	return hex || strings.Trim(last, "0123456789") == ""
}

// parseName reads a DNS name, with or without "*." in front.
func parseName(text string) (string, error) {
	name := strings.TrimSuffix(strings.ToLower(text), ".")
	below, wild := strings.CutPrefix(name, "*.")
	labels := strings.Split(below, ".")
	wrong := func(why string) (string, error) {
		return "", fmt.Errorf("%q is neither an IP address nor a name like example.org or *.example.org: %s", shorten(text), why)
	}
	switch {
	case len(name) > maxNameLength:
		return wrong(fmt.Sprintf("it has more than %d characters", maxNameLength))
	case len(labels) < 2 && (!wild || below == ""):
		return wrong("a name has a dot inside")
	case labels[len(labels)-1] == "internal":
		return wrong("names below .internal are those of VMs, which decide for themselves (docs/network.md)")
	}
	for _, label := range labels {
		switch {
		case label == "" || len(label) > maxLabelLength:
			return wrong(fmt.Sprintf("between two dots are 1 to %d characters", maxLabelLength))
		case strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "":
			return wrong("it has letters, digits, - and _ only; others are written in their xn-- form")
		}
	}
	return name, nil
}

func parsePrefix(text string) (netip.Prefix, error) {
	if !strings.Contains(text, "/") {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("%q is not an IP address", text)
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
	if strings.Count(text, ",") >= maxPorts {
		return nil, fmt.Errorf("a rule has at most %d ranges of ports", maxPorts)
	}
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
	address := r.name
	switch {
	case r.name != "":
	case r.prefix.IsSingleIP():
		address = r.prefix.Addr().String()
	default:
		address = r.prefix.String()
	}
	if len(r.ports) > 0 && r.name == "" && r.prefix.Addr().Is6() {
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

// covers tells whether the rule speaks about a flow.
func (r Rule) covers(f flow) bool {
	if r.name == "" && !r.prefix.Contains(f.addr) || r.name != "" && !slices.ContainsFunc(f.names, r.matches) {
		return false
	}
	return len(r.ports) == 0 || slices.ContainsFunc(r.ports, func(p portRange) bool {
		return p.first <= f.port && f.port <= p.last
	})
}

// matches tells whether the rule is about a name, lower case without a final dot. A name with a dot or another strange
// character inside of a label, which is written with a backslash, is none that rules are about.
func (r Rule) matches(name string) bool {
	if strings.Contains(name, `\`) {
		return false
	}
	if parent, wild := strings.CutPrefix(r.name, "*"); wild {
		return len(name) > len(parent) && strings.HasSuffix(name, parent)
	}
	return r.name != "" && r.name == name
}

// preciseEnough tells whether an allow rule that covers addr means it: see step 3 of Levels.
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
