package fake

import (
	"context"
	"net"
	"sync"

	"vers/internal/egress"
	"vers/internal/fault"
	"vers/internal/machine"
)

// Service is what listens on a port of every guest. conn is closed when the guest ends and when Service returns.
type Service func(vmID string, conn net.Conn)

// Serve makes all guests listen on a port, those too that run already, as if their image had a program for it. nil:
// nothing listens there any more.
func (d *Driver) Serve(port uint16, s Service) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s == nil {
		delete(d.services, port)
	} else {
		d.services[port] = s
	}
}

// Networks opens the networks of a driver's machines.
func Networks(d *Driver) machine.Networks {
	return func(_ context.Context, spec machine.NetworkSpec) (machine.Network, error) {
		if err := d.at(OpNetwork, machine.Spec{Dir: spec.Dir}); err != nil {
			return nil, err
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.networks++
		n := &network{driver: d, dir: spec.Dir, closed: make(chan struct{}), open: map[*conn]struct{}{}, levels: spec.Egress, Peers: spec.Peers}
		d.byVM[spec.VMID] = n
		return n, nil
	}
}

// network implements machine.Network: connections go through it and end with it, as with the host's side of a real one.
// The guest's agent lives on.
type network struct {
	driver *Driver
	dir    string
	closed chan struct{}
	Peers  machine.Peers

	mu   sync.Mutex
	open map[*conn]struct{} // nil: closed

	levels   egress.Levels
	traffic  egress.Counters
	rechecks int
}

// conn is the host's end of a connection.
type conn struct {
	*net.UnixConn
	network *network
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.network.mu.Lock()
	delete(c.network.open, c)
	c.network.mu.Unlock()
	return c.UnixConn.Close()
}

func errClosed() error {
	return fault.New(fault.Unavailable, "the VM's network is closed: %w", net.ErrClosed)
}

func errSilent(ctx context.Context, g *guest) error {
	return fault.New(fault.Timeout, "connect to the guest of VM %s: no answer; is it still booting or paused? %w", g.spec.ID, ctx.Err())
}

// guest gives the machine at the other end, once it runs.
func (n *network) guest(ctx context.Context) (*guest, *agentProcess, error) {
	select {
	case <-n.closed:
		return nil, nil, errClosed()
	default:
	}
	n.driver.mu.Lock()
	g := n.driver.byDir[n.dir]
	n.driver.mu.Unlock()
	if g == nil {
		return nil, nil, fault.Unavailablef("connect to the guest: no machine runs in %s", n.dir)
	}
	if n.driver.at(OpDial, g.spec) != nil {
		select {
		case <-ctx.Done():
			return nil, nil, errSilent(ctx, g)
		case <-n.closed:
			return nil, nil, errClosed()
		}
	}
	a, err := g.ready(ctx, n.closed)
	return g, a, err
}

// keep makes a connection one that ends with the network.
func (n *network) keep(c *net.UnixConn) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open == nil {
		c.Close()
		return nil, errClosed()
	}
	kept := &conn{c, n}
	n.open[kept] = struct{}{}
	return kept, nil
}

// DialAgent implements machine.Network.
func (n *network) DialAgent(ctx context.Context) (net.Conn, error) {
	_, a, err := n.guest(ctx)
	if err != nil {
		return nil, err
	}
	c, err := a.incoming.dial(ctx)
	if err != nil {
		return nil, err
	}
	return n.keep(c)
}

// DialGuest implements machine.Network.
func (n *network) DialGuest(ctx context.Context, port uint16) (net.Conn, error) {
	if port == 0 {
		return nil, fault.Invalidf("port 0 of a guest cannot be dialled; ports go from 1 to 65535")
	}
	g, _, err := n.guest(ctx)
	if err != nil {
		return nil, err
	}
	n.driver.mu.Lock()
	service := n.driver.services[port]
	n.driver.mu.Unlock()
	if service == nil {
		return nil, fault.Unavailablef("connect to port %d in the guest: connection refused: nothing listens on that port", port)
	}
	client, server, err := connPair()
	if err != nil {
		return nil, err
	}
	unlock, err := g.begin()
	if err != nil {
		client.Close()
		server.Close()
		return nil, fault.Unavailablef("connect to port %d in the guest: %w", port, err)
	}
	g.calls.Go(func() {
		defer server.Close()
		defer context.AfterFunc(g.life, func() { server.Close() })()
		service(g.spec.ID, server)
	})
	unlock()
	return n.keep(client)
}

// SetEgress implements machine.Network. Nothing is held back: what holds can be asked with Egress.
func (n *network) SetEgress(levels egress.Levels) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.levels = levels
}

// Recheck implements machine.Network.
func (n *network) Recheck() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rechecks++
}

// Traffic implements machine.Network.
func (n *network) Traffic() egress.Counters {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.traffic
}

// Refusals implements machine.Network.
func (n *network) Refusals() []egress.Refusal { return nil }

// Egress gives the policies that the newest network of a VM has, and its peers.
func (d *Driver) Egress(vmID string) (egress.Levels, machine.Peers) {
	d.mu.Lock()
	n := d.byVM[vmID]
	d.mu.Unlock()
	if n == nil {
		return nil, machine.Peers{}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.levels, n.Peers
}

// Rechecks says how often the newest network of a VM was told to look at its connections again.
func (d *Driver) Rechecks(vmID string) int {
	d.mu.Lock()
	n := d.byVM[vmID]
	d.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rechecks
}

// Talk lets the guest of a VM open connections and exchange packets, as far as counters are concerned.
func (d *Driver) Talk(vmID string, connections, packets uint64) {
	d.mu.Lock()
	n := d.byVM[vmID]
	d.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.traffic = n.traffic.Add(egress.Counters{ConnectionsOut: connections, PacketsOut: packets})
}

// Send lets the guest of a VM send bytes, as far as counters are concerned.
func (d *Driver) Send(vmID string, bytes uint64) {
	d.mu.Lock()
	n := d.byVM[vmID]
	d.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.traffic = n.traffic.Add(egress.Counters{BytesOut: bytes, PacketsOut: 1})
}

// Close implements machine.Network.
func (n *network) Close() error {
	n.mu.Lock()
	open := n.open
	n.open = nil
	n.mu.Unlock()
	if open == nil {
		return nil
	}
	close(n.closed)
	for c := range open {
		c.UnixConn.Close()
	}
	n.driver.mu.Lock()
	defer n.driver.mu.Unlock()
	n.driver.networks--
	return nil
}
