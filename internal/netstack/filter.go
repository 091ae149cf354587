package netstack

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"vers/internal/egress"
)

// filter holds what decides about the guest's flows and names, and what it decided.
type filter struct {
	rules    atomic.Pointer[rules]
	isHost   egress.HostAddress
	pins     pins
	refusals refusals
}

// rules hold until SetEgress replaces them.
type rules struct {
	levels      egress.Levels
	bandwidth   [2]*rate.Limiter // by direction
	connections *rate.Limiter
	chunk       int           // bytes that are carried at a time
	replaced    chan struct{} // closed when other rules hold
}

// direction of data, an index of rules.bandwidth.
type direction int

const (
	outward direction = iota
	inward
)

// minChunk is what one packet carries.
const minChunk = 1460

func newFilter(levels egress.Levels, isHost egress.HostAddress, log *slog.Logger) *filter {
	if isHost == nil {
		isHost = kernelHostAddress
	}
	f := &filter{isHost: isHost, refusals: refusals{log: log, lines: rate.NewLimiter(1, 5)}}
	f.rules.Store(newRules(levels))
	return f
}

func newRules(levels egress.Levels) *rules {
	r := &rules{levels: levels, connections: rate.NewLimiter(rate.Inf, 0), chunk: bufferSize, replaced: make(chan struct{})}
	bytes, connections := levels.Limits()
	for i := range r.bandwidth {
		r.bandwidth[i] = rate.NewLimiter(rate.Inf, 0)
		if bytes > 0 {
			r.bandwidth[i] = rate.NewLimiter(rate.Limit(bytes), int(max(bufferSize, min(bytes/10, 1<<30))))
		}
	}
	if bytes > 0 {
		r.chunk = int(min(max(minChunk, bytes/10), bufferSize))
	}
	if connections > 0 {
		r.connections = rate.NewLimiter(rate.Limit(connections), int(connections))
	}
	return r
}

func (f *filter) chunk() int { return f.rules.Load().chunk }

// check asks the policy about a flow.
func (f *filter) check(network string, dst netip.AddrPort, names []string) error {
	return f.rules.Load().levels.Check(network, dst, names, f.isHost)
}

// admission is what happens to a new flow.
type admission int

const (
	refused admission = iota
	heldUp
	admitted
)

// admit asks the policy about a new flow, and the limit of connections per second.
func (n *Network) admit(network string, dst netip.AddrPort) admission {
	if err := n.checkFlow(network, dst, n.filter.pins.names(dst.Addr())); err != nil {
		n.refuse(network, dst.String(), err)
		return refused
	}
	if !n.filter.rules.Load().connections.Allow() {
		n.counters.limited.Add(1)
		return heldUp
	}
	return admitted
}

// checkFlow tells whether a flow is permitted now.
func (n *Network) checkFlow(network string, dst netip.AddrPort, names []string) error {
	if n.peers.has(dst.Addr()) {
		_, err := n.peers.at(network, dst.Addr())
		return err
	}
	return n.filter.check(network, dst, names)
}

// refuse counts, remembers and logs a refusal.
func (n *Network) refuse(protocol, destination string, reason error) {
	if protocol == protocolDNS {
		n.counters.namesRefused.Add(1)
	} else {
		n.counters.refused.Add(1)
	}
	n.filter.refusals.add(protocol, destination, reason)
}

// protocolDNS stands in refusals for a name that was asked for.
const protocolDNS = "dns"

// openFlow is a flow that exists, so that a change of the policy can end it.
type openFlow struct {
	network string
	dst     netip.AddrPort
	names   []string // by which dst was known when it began
	peer    string   // id of the VM it leads to; "" it leaves the host
	cut     func()
}

type flowTable struct {
	mu    sync.Mutex
	flows map[*openFlow]struct{}
}

func (t *flowTable) remove(f *openFlow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.flows, f)
}

func (t *flowTable) list() []*openFlow {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]*openFlow, 0, len(t.flows))
	for f := range t.flows {
		list = append(list, f)
	}
	return list
}

// track notes a flow that was admitted. It is nil if a change of the policy came between and refuses it: from here on a
// change finds it.
func (n *Network) track(network string, dst netip.AddrPort, cut func()) *openFlow {
	f := &openFlow{network: network, dst: dst, names: n.filter.pins.names(dst.Addr()), cut: cut}
	if n.peers.has(dst.Addr()) {
		f.peer, _ = n.peers.at(network, dst.Addr())
	}
	n.flows.mu.Lock()
	if n.flows.flows == nil {
		n.flows.flows = map[*openFlow]struct{}{}
	}
	n.flows.flows[f] = struct{}{}
	n.flows.mu.Unlock()
	if err := n.checkOpen(f); err != nil {
		n.flows.remove(f)
		n.refuse(network, dst.String(), err)
		return nil
	}
	return f
}

// checkOpen asks the policy again about a flow. What its names mean now does not matter: it began with what they meant
// then.
func (n *Network) checkOpen(f *openFlow) error {
	if f.peer != "" {
		return n.peers.check(f.peer)
	}
	return n.checkFlow(f.network, f.dst, f.names)
}

// SetEgress replaces the policy and its limits. New flows follow it when it returns, and open ones that it does not permit
// are cut.
func (n *Network) SetEgress(levels egress.Levels) {
	old := n.filter.rules.Swap(newRules(levels))
	close(old.replaced)
	n.Recheck()
}

// Recheck cuts open flows that are not permitted any more: what Peers say has changed.
func (n *Network) Recheck() {
	for _, f := range n.flows.list() {
		if err := n.checkOpen(f); err != nil {
			n.refuse(f.network, f.dst.String(), err)
			f.cut()
		}
	}
}

// Refusals gives the latest refusals, the newest first.
func (n *Network) Refusals() []egress.Refusal { return n.filter.refusals.list() }

// pay waits until the bandwidth has room for what was carried just now; false if ctx ended. So a flow is late with its
// next bytes, and holds no buffer while it waits.
func (n *Network) pay(ctx context.Context, d direction, bytes int) bool {
	return n.payUntil(ctx.Done(), d, bytes)
}

func (n *Network) payUntil(stopped <-chan struct{}, d direction, bytes int) bool {
	r := n.filter.rules.Load()
	limiter := r.bandwidth[d]
	if limiter.Limit() == rate.Inf || bytes <= 0 {
		return true
	}
	delay := limiter.ReserveN(time.Now(), min(bytes, limiter.Burst())).Delay()
	if delay == 0 {
		return true
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.replaced: // the new rules begin with nothing owed
		return true
	case <-stopped:
	case <-n.ctx.Done():
	}
	return false
}
