package netstack

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"vers/internal/egress"
)

const (
	recordsKept   = 256 // of one answer
	addressesKept = 64  // of one answer
)

// screen takes out of a resolver's answer what the guest must not be told, and remembers the addresses of names that
// rules are about. An answer of which no address is left becomes a refusal.
func (s *nameServer) screen(query, answer *dns.Msg, name string, levels egress.Levels) *dns.Msg {
	if answer.Rcode != dns.RcodeSuccess {
		answer.Extra = options(answer.Extra)
		return answer
	}
	c := screening{server: s, levels: levels, chain: chain(name, answer.Answer)}
	var kept []dns.RR
	for _, record := range answer.Answer[:min(len(answer.Answer), recordsKept)] {
		if c.keeps(record) {
			kept = append(kept, record)
		}
	}
	if c.refused != nil {
		if len(c.addresses) == 0 {
			return s.refuse(query, name, c.refused)
		}
		s.network.refuse(protocolDNS, name, c.refused)
	}
	answer.Answer, answer.Extra = kept, options(answer.Extra)
	if levels.About(name) {
		until := time.Now().Add(pinTime(c.ttl))
		for _, addr := range c.addresses {
			s.network.filter.pins.add(name, addr, until)
		}
		for _, record := range kept {
			record.Header().Ttl = min(record.Header().Ttl, uint32(pinMost/time.Second))
		}
	}
	return answer
}

// screening is the work on one answer.
type screening struct {
	server    *nameServer
	levels    egress.Levels
	chain     map[string]bool
	addresses []netip.Addr
	ttl       uint32 // the longest of the addresses
	refused   error
}

// keeps decides about a record.
func (c *screening) keeps(record dns.RR) bool {
	var raw []byte
	switch record := record.(type) {
	case *dns.A:
		raw = record.A
	case *dns.AAAA:
		raw = record.AAAA
	default:
		return true
	}
	addr, ok := netip.AddrFromSlice(raw)
	if !ok || len(c.addresses) >= addressesKept || !c.chain[plainName(record.Header().Name)] {
		return false
	}
	if err := c.levels.CheckAnswer(addr, c.server.network.filter.isHost); err != nil {
		c.refused = fmt.Errorf("its address %w (DNS rebinding); the server's operator can open it", err)
		return false
	}
	c.addresses = append(c.addresses, addr.Unmap())
	c.ttl = max(c.ttl, record.Header().Ttl)
	return true
}

// chain gives the names that an answer is about: the one asked for, and what it is an alias of.
func chain(name string, records []dns.RR) map[string]bool {
	names := map[string]bool{name: true}
	for range recordsKept {
		before := len(names)
		for _, record := range records[:min(len(records), recordsKept)] {
			if alias, ok := record.(*dns.CNAME); ok && names[plainName(alias.Hdr.Name)] {
				names[plainName(alias.Target)] = true
			}
		}
		if len(names) == before {
			break
		}
	}
	return names
}

// options gives what of the additional records is about the message itself. The others are addresses that nobody asked for.
func options(records []dns.RR) []dns.RR {
	var kept []dns.RR
	for _, record := range records {
		if record.Header().Rrtype == dns.TypeOPT {
			kept = append(kept, record)
		}
	}
	return kept
}
