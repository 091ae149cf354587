package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"vers/internal/fault"
)

// agentRefusals is how long a refusal of the agent's port is taken for an agent that has its address already and
// will listen in a moment.
const agentRefusals = time.Second

// DialGuest connects to a TCP port of the guest, from the gateway's address. It fails with fault.Unavailable if
// nothing listens there, and with fault.Timeout if the guest does not answer before ctx ends. The connection has
// deadlines and CloseWrite.
func (n *Network) DialGuest(ctx context.Context, port uint16) (net.Conn, error) {
	if port == 0 {
		return nil, fault.Invalidf("port 0 of a guest cannot be dialled; ports go from 1 to 65535")
	}
	conn, err := n.dial(ctx, n.main, port)
	if err == nil {
		n.counters.connectionsIn.Add(1)
	}
	return conn, err
}

// DialAgent connects to the agent over the control network. Errors are those of DialGuest.
func (n *Network) DialAgent(ctx context.Context) (net.Conn, error) {
	pause := synFirst
	for start := time.Now(); ; pause = min(2*pause, synLater) {
		conn, err := n.dial(ctx, n.control, agentPort)
		if !errors.Is(err, errRefused) || time.Since(start) > agentRefusals {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-n.ctx.Done():
			return nil, errClosed()
		case <-time.After(pause):
		}
	}
}

// errRefused marks that the guest itself answered with a reset.
var errRefused = errors.New("connection refused")

func errClosed() error {
	return fault.New(fault.Unavailable, "the VM's network is closed: %w", net.ErrClosed)
}

func (n *Network) dial(ctx context.Context, l *link, port uint16) (net.Conn, error) {
	remote := netip.AddrPortFrom(l.guest, port)
	if n.ctx.Err() != nil {
		return nil, errClosed()
	}
	if ctx.Err() != nil {
		return nil, dialGaveUp(ctx, remote)
	}
	queue := new(waiter.Queue)
	ep, tErr := n.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, queue)
	if tErr != nil {
		return nil, fault.New(fault.Internal, "connect to %s in the guest: %s", remote, tErr)
	}
	if err := n.connect(ctx, l, ep, queue, remote); err != nil {
		ep.Close()
		return nil, err
	}
	ep.SocketOptions().SetKeepAlive(true)
	return newConn(queue, ep), nil
}

// connect opens ep to remote, repeating the first segment while there is no answer.
func (n *Network) connect(ctx context.Context, l *link, ep tcpip.Endpoint, queue *waiter.Queue, remote netip.AddrPort) error {
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	queue.EventRegister(&entry)
	defer queue.EventUnregister(&entry)

	// Bound first: the port must be known before the segment leaves.
	if err := ep.Bind(tcpip.FullAddress{NIC: l.nic, Addr: tcpipAddress(l.host)}); err != nil {
		return fault.New(fault.Exhausted, "connect to %s in the guest: no local port: %s", remote, err)
	}
	local, tErr := ep.GetLocalAddress()
	if tErr != nil {
		return fault.New(fault.Internal, "connect to %s in the guest: %s", remote, tErr)
	}
	l.syns.expect(local.Port)
	defer l.syns.forget(local.Port)

	start := time.Now()
	tErr = ep.Connect(tcpip.FullAddress{NIC: l.nic, Addr: tcpipAddress(remote.Addr()), Port: remote.Port()})
	if _, started := tErr.(*tcpip.ErrConnectStarted); !started {
		return dialError(tErr, remote)
	}
	pause := synPause(0, 0)
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-ready:
			return dialError(ep.LastError(), remote)
		case <-ctx.Done():
			return dialGaveUp(ctx, remote)
		case <-n.ctx.Done():
			return errClosed()
		case <-timer.C:
			if frame := l.syns.frame(local.Port); frame != nil {
				l.tx.trySend(frame)
			}
			pause = synPause(pause, time.Since(start))
			timer.Reset(pause)
		}
	}
}

func dialGaveUp(ctx context.Context, remote netip.AddrPort) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fault.New(fault.Timeout, "connect to %s in the guest: no answer; "+
			"is it still booting, paused, or behind a firewall of its own? %w", remote, ctx.Err())
	}
	return fault.New(fault.Unavailable, "connect to %s in the guest: given up: %w", remote, ctx.Err())
}

func dialError(err tcpip.Error, remote netip.AddrPort) error {
	switch err.(type) {
	case nil:
		return nil
	case *tcpip.ErrConnectionRefused, *tcpip.ErrConnectionReset, *tcpip.ErrConnectionAborted:
		return fault.New(fault.Unavailable, "connect to %s in the guest: %w: nothing listens on that port", remote, errRefused)
	case *tcpip.ErrTimeout:
		return fault.New(fault.Timeout, "connect to %s in the guest: no answer; "+
			"is it still booting, paused, or behind a firewall of its own?", remote)
	}
	return fault.New(fault.Unavailable, "connect to %s in the guest: %s", remote, err)
}
