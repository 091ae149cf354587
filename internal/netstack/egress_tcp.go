package netstack

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// tcpInFlight is how many connections of one guest may be waiting for their destination's answer.
	tcpInFlight = 256
	// bufferSize holds any UDP datagram. TCP uses the same buffers.
	bufferSize = 64 << 10
)

type packetHandler func(stack.TransportEndpointID, *stack.PacketBuffer) bool

// admitTCP decides about segments that belong to no connection. False makes the stack answer with a reset, which is
// right for a refused connection as well as for one that an earlier versd had.
func (n *Network) admitTCP(forward packetHandler) packetHandler {
	return func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		flags := header.TCP(pkt.TransportHeader().Slice()).Flags()
		if pkt.NICID != mainNIC || flags&(header.TCPFlagSyn|header.TCPFlagAck) != header.TCPFlagSyn {
			return false
		}
		switch n.admit("tcp", addrPort(id.LocalAddress, id.LocalPort)) {
		case admitted:
			return forward(id, pkt)
		case heldUp:
			return true // silence: the guest's stack asks again in a second
		}
		return false
	}
}

// serveTCP carries one outgoing connection. It first connects on the host, so that the guest sees what happened
// there: a refusal is a refusal.
func (n *Network) serveTCP(request *tcp.ForwarderRequest) {
	if !n.enter() {
		request.Complete(false)
		return
	}
	defer n.workers.Done()
	defer n.guard("egress tcp")
	defer n.counters.tcpFlows.Add(-1)
	if n.counters.tcpFlows.Add(1) > int64(n.limits.TCPFlows) {
		n.counters.limited.Add(1)
		request.Complete(true)
		return
	}
	ctx, cancel := context.WithCancel(n.ctx)
	defer cancel()
	dst := addrPort(request.ID().LocalAddress, request.ID().LocalPort)
	flow := n.track("tcp", dst, cancel)
	if flow == nil { // the policy changed meanwhile
		request.Complete(true)
		return
	}
	defer n.flows.remove(flow)
	n.counters.connectionsOut.Add(1)
	if flow.peer != "" {
		n.servePeer(ctx, request, flow)
		return
	}
	dialer := net.Dialer{Timeout: n.limits.ConnectTimeout}
	out, err := dialer.DialContext(ctx, "tcp4", dst.String())
	if err != nil {
		n.log.Debug("network: egress failed", "protocol", "tcp", "destination", dst, "reason", err)
		request.Complete(true)
		return
	}
	host := out.(*net.TCPConn)
	queue := new(waiter.Queue)
	ep, tErr := n.accept(request, queue)
	request.Complete(false)
	if tErr != nil { // the guest went away meanwhile
		abortHost(host)
		return
	}
	ep.SocketOptions().SetKeepAlive(true)
	(&tcpFlow{ctx: ctx, network: n, host: host, guest: newConn(queue, ep), ep: ep, queue: queue}).carry()
}

// accept does the handshake with the guest. It waits on queue and on nothing else, so Close has to ring there.
func (n *Network) accept(request *tcp.ForwarderRequest, queue *waiter.Queue) (tcpip.Endpoint, tcpip.Error) {
	done := make(chan struct{})
	defer close(done)
	stop := context.AfterFunc(n.ctx, func() {
		// More than once: the first ring may come before it listens.
		for ring := time.NewTicker(10 * time.Millisecond); ; {
			queue.Notify(waiter.WritableEvents)
			select {
			case <-ring.C:
			case <-done:
				ring.Stop()
				return
			}
		}
	})
	defer stop()
	return request.CreateEndpoint(queue)
}

// abortHost closes a connection so that the other end sees a reset.
func abortHost(host *net.TCPConn) {
	_ = host.SetLinger(0)
	_ = host.Close()
}

// tcpFlow is a pair of connections. Each direction ends by itself (half-close); an error ends both with resets.
type tcpFlow struct {
	ctx     context.Context // ends the flow
	network *Network
	host    *net.TCPConn
	guest   *conn
	ep      tcpip.Endpoint
	queue   *waiter.Queue
	abort   sync.Once
}

func (f *tcpFlow) carry() {
	stopped := make(chan struct{})
	var both sync.WaitGroup
	both.Go(func() {
		defer f.network.guard("egress tcp")
		f.finish(f.toHost(stopped))
	})
	both.Go(func() {
		defer f.network.guard("egress tcp")
		f.finish(f.toGuest())
	})
	done := make(chan struct{})
	go func() {
		both.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-f.ctx.Done():
		close(stopped)
		f.finish(net.ErrClosed)
		<-done
	}
	_ = f.guest.Close()
	_ = f.host.Close()
}

// finish ends a direction: nil is a clean end, which the copying has passed on already.
func (f *tcpFlow) finish(err error) {
	if err == nil {
		return
	}
	f.abort.Do(func() {
		f.ep.Abort()
		abortHost(f.host)
	})
}

// toHost copies what the guest sends. A buffer is held only while there is data: a thousand idle connections cost
// no buffers.
func (f *tcpFlow) toHost(stopped <-chan struct{}) error {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	f.queue.EventRegister(&entry)
	defer f.queue.EventUnregister(&entry)
	for {
		n, err := f.passToHost()
		switch {
		case errors.Is(err, io.EOF):
			return f.host.CloseWrite()
		case err != nil:
			return err
		case n > 0:
			if !f.network.pay(f.ctx, outward, n) {
				return net.ErrClosed
			}
			continue
		}
		select {
		case <-ready:
		case <-stopped:
			return net.ErrClosed
		}
	}
}

// passToHost moves what is there, at most a buffer full; zero if there is nothing.
func (f *tcpFlow) passToHost() (int, error) {
	buf := f.network.buffers.Get().(*[bufferSize]byte)
	defer f.network.buffers.Put(buf)
	writer := tcpip.SliceWriter(buf[:f.network.filter.chunk()])
	result, tErr := f.ep.Read(&writer, tcpip.ReadOptions{})
	switch tErr.(type) {
	case nil:
	case *tcpip.ErrWouldBlock:
		return 0, nil
	case *tcpip.ErrClosedForReceive:
		return 0, io.EOF
	default:
		return 0, errors.New(tErr.String())
	}
	f.ep.ModerateRecvBuf(result.Count)
	return f.host.Write(buf[:result.Count])
}

// toGuest copies what the host's connection receives, again without a buffer while there is nothing.
func (f *tcpFlow) toGuest() error {
	raw, err := f.host.SyscallConn()
	if err != nil {
		return err
	}
	for {
		carried := 0
		err := f.network.receive(raw.Read, f.network.filter.chunk(), func(data []byte) error {
			if len(data) == 0 {
				return io.EOF
			}
			carried = len(data)
			_, err := f.guest.Write(data)
			return err
		})
		if errors.Is(err, io.EOF) {
			return f.guest.CloseWrite()
		}
		if err != nil {
			return err
		}
		if !f.network.pay(f.ctx, inward, carried) {
			return net.ErrClosed
		}
	}
}

// receive waits until a socket of the host is readable, takes a buffer, reads once, at most most bytes, and hands the data
// to use.
func (n *Network) receive(read func(func(fd uintptr) bool) error, most int, use func([]byte) error) error {
	var buf *[bufferSize]byte
	var size int
	var problem error
	err := read(func(fd uintptr) bool {
		buf = n.buffers.Get().(*[bufferSize]byte)
		for {
			size, problem = unix.Read(int(fd), buf[:most])
			if problem != unix.EINTR {
				break
			}
		}
		if problem == unix.EAGAIN {
			n.buffers.Put(buf)
			buf = nil
			return false
		}
		return true
	})
	if buf != nil {
		defer n.buffers.Put(buf)
	}
	if err = errors.Join(err, problem); err != nil {
		return err
	}
	return use(buf[:size])
}

// reader adapts a datagram for an endpoint's Write.
func reader(data []byte) tcpip.Payloader { return bytes.NewReader(data) }
