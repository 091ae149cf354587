package netstack

import (
	"context"
	"errors"
	"hash/fnv"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Peers are the VMs that share an internal network with this one: of the same organisation, and both sides have opted in.
// Implementations MUST decide at every call, since VMs come, go and change their minds; methods are called from several
// goroutines and MUST NOT wait for this network.
type Peers interface {
	// Member reports whether this VM takes part.
	Member() bool
	// Resolve gives the ids of the peers with a name.
	Resolve(name string) []string
	// All gives the ids of all peers.
	All() []string
	// Reaches reports whether the VM with an id is a peer.
	Reaches(id string) bool
	// Dial connects to a TCP port of a peer. The connection has CloseWrite.
	Dial(ctx context.Context, id string, port uint16) (net.Conn, error)
}

// peersKept bounds the table; more peers than that are asked for at one time by nobody.
const peersKept = 8192

// peersPerName bounds an answer.
const peersPerName = 32

// peerTable gives peers their addresses in this network. An address follows from the id, so that it is mostly the same
// in all networks and after a restart; where two ids want the same one, the later one gets the next.
type peerTable struct {
	Peers

	mu   sync.Mutex
	ids  map[netip.Addr]string
	addr map[string]netip.Addr
}

// errNoPeer says little on purpose: a guest does not learn which VMs exist.
var errNoPeer = errors.New("no VM of the organisation has this address, or one of both sides is not on the internal network")

// has reports whether an address belongs to the internal network of this VM.
func (t *peerTable) has(addr netip.Addr) bool {
	return t.Peers != nil && netip.MustParsePrefix(peerNetwork).Contains(addr) && t.Member()
}

// wish is the address that an id wants.
func wish(id string) netip.Addr {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	sum := h.Sum32()
	return nthPeer(uint16(sum) ^ uint16(sum>>16))
}

// nthPeer is the n-th address; the first and the last of the network are none.
func nthPeer(n uint16) netip.Addr {
	n = n%0xfffe + 1
	return netip.AddrFrom4([4]byte{10, 78, byte(n >> 8), byte(n)})
}

// of gives the address of a peer; false if there is no room.
func (t *peerTable) of(id string) (netip.Addr, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if addr, ok := t.addr[id]; ok {
		return addr, true
	}
	if len(t.ids) >= peersKept {
		t.sweep()
	}
	if len(t.ids) >= peersKept {
		return netip.Addr{}, false
	}
	addr := wish(id)
	for t.ids[addr] != "" {
		octets := addr.As4()
		addr = nthPeer(uint16(octets[2])<<8 | uint16(octets[3]))
	}
	t.put(id, addr)
	return addr, true
}

func (t *peerTable) put(id string, addr netip.Addr) {
	if t.ids == nil {
		t.ids, t.addr = map[netip.Addr]string{}, map[string]netip.Addr{}
	}
	t.ids[addr], t.addr[id] = id, addr
}

// named gives the addresses of the peers with a name, the lowest first, at most peersPerName.
func (t *peerTable) named(name string) []netip.Addr {
	if t.Peers == nil || !t.Member() {
		return nil
	}
	var list []netip.Addr
	for _, id := range t.Resolve(name) {
		if addr, ok := t.of(id); ok && len(list) < peersPerName {
			list = append(list, addr)
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

// sweep forgets those that are no peers any more. The caller holds mu.
func (t *peerTable) sweep() {
	for addr, id := range t.ids {
		if !t.Reaches(id) {
			delete(t.ids, addr)
			delete(t.addr, id)
		}
	}
}

// at finds the peer with an address. One that was not resolved here yet, because versd was restarted since, is found if
// no other wants the same address.
func (t *peerTable) at(network string, addr netip.Addr) (id string, err error) {
	if network != "tcp" {
		return "", errors.New("the internal network carries TCP only")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	id = t.ids[addr]
	if id == "" {
		for _, candidate := range t.All() {
			if wish(candidate) != addr {
				continue
			}
			if id != "" {
				return "", errNoPeer
			}
			id = candidate
		}
		if _, elsewhere := t.addr[id]; id == "" || elsewhere || len(t.ids) >= peersKept {
			return "", errNoPeer
		}
		t.put(id, addr)
	}
	return id, t.check(id)
}

// check tells whether both sides take part now.
func (t *peerTable) check(id string) error {
	if !t.Member() || !t.Reaches(id) {
		return errNoPeer
	}
	return nil
}

// halfCloser is a connection whose directions end by themselves.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// peerBuffer is what one direction of a connection between two VMs carries at a time, in bytes.
const peerBuffer = 16 << 10

// servePeer carries a connection to another VM: it goes from stack to stack inside this process.
func (n *Network) servePeer(ctx context.Context, request *tcp.ForwarderRequest, flow *openFlow) {
	dialing, cancel := context.WithTimeout(ctx, n.limits.ConnectTimeout)
	defer cancel()
	out, err := n.peers.Dial(dialing, flow.peer, flow.dst.Port())
	if err != nil {
		n.log.Debug("network: peer not reached", "peer", flow.peer, "port", flow.dst.Port(), "reason", err)
		request.Complete(true)
		return
	}
	other, ok := out.(halfCloser)
	if !ok {
		_ = out.Close()
		request.Complete(true)
		return
	}
	queue := new(waiter.Queue)
	ep, tErr := n.accept(request, queue)
	request.Complete(false)
	if tErr != nil {
		_ = other.Close()
		return
	}
	ep.SocketOptions().SetKeepAlive(true)
	guest := newConn(queue, ep)
	defer context.AfterFunc(ctx, func() {
		ep.Abort()
		_ = other.Close()
	})()
	var both sync.WaitGroup
	both.Go(func() {
		defer n.guard("peer")
		n.copyPeer(ctx, other, guest, outward)
	})
	both.Go(func() {
		defer n.guard("peer")
		n.copyPeer(ctx, guest, other, inward)
	})
	both.Wait()
	_ = guest.Close()
	_ = other.Close()
}

// copyPeer carries one direction until its end. An error ends both.
func (n *Network) copyPeer(ctx context.Context, to, from halfCloser, d direction) {
	buf := make([]byte, peerBuffer)
	for {
		size, err := from.Read(buf[:min(len(buf), n.filter.chunk())])
		if size > 0 {
			if _, wrong := to.Write(buf[:size]); wrong != nil {
				err = wrong
			} else if !n.pay(ctx, d, size) {
				err = net.ErrClosed
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			_ = to.CloseWrite()
			return
		case err != nil:
			_ = to.Close()
			_ = from.Close()
			return
		}
	}
}
