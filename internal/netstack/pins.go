package netstack

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// A pin is valid as long as the answer it comes from, but within these bounds: a program connects some time after it
	// asked, and many keep an answer for a moment longer than they may.
	pinLeast = time.Minute
	pinMost  = time.Hour
	pinGrace = time.Minute

	// pinsKept bounds the pins of a VM. One more ends the one that is valid for the shortest time.
	pinsKept = 4096
)

// pins remembers for which names the guest was told an address. The zero value is empty.
type pins struct {
	mu     sync.Mutex
	byAddr map[netip.Addr]map[string]time.Time // until when, by name
	count  int
}

// pinTime is how long an answer with a TTL in seconds is remembered.
func pinTime(ttl uint32) time.Duration {
	return min(max(time.Duration(ttl)*time.Second, pinLeast), pinMost) + pinGrace
}

// add remembers an answer.
func (p *pins) add(name string, addr netip.Addr, until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byAddr == nil {
		p.byAddr = map[netip.Addr]map[string]time.Time{}
	}
	old, known := p.byAddr[addr][name]
	if !known {
		if p.count >= pinsKept {
			p.makeRoom(time.Now())
		}
		if p.byAddr[addr] == nil {
			p.byAddr[addr] = map[string]time.Time{}
		}
		p.count++
	}
	if until.After(old) {
		p.byAddr[addr][name] = until
	}
}

// makeRoom drops what is not valid any more, else the pin that ends first. The caller holds mu.
func (p *pins) makeRoom(now time.Time) {
	var firstAddr netip.Addr
	var firstName string
	var first time.Time
	before := p.count
	for addr, names := range p.byAddr {
		for name, until := range names {
			if until.Before(now) {
				p.drop(addr, name)
			} else if first.IsZero() || until.Before(first) {
				firstAddr, firstName, first = addr, name, until
			}
		}
	}
	if p.count == before {
		p.drop(firstAddr, firstName)
	}
}

func (p *pins) drop(addr netip.Addr, name string) {
	delete(p.byAddr[addr], name)
	if len(p.byAddr[addr]) == 0 {
		delete(p.byAddr, addr)
	}
	p.count--
}

// names gives the names for which an address is valid now.
func (p *pins) names(addr netip.Addr) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	now := time.Now()
	for name, until := range p.byAddr[addr.Unmap()] {
		if !until.Before(now) {
			names = append(names, name)
		}
	}
	return names
}
