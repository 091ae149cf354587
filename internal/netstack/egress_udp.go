package netstack

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// admitUDP decides about datagrams that belong to no flow. False makes the stack answer "port unreachable".
func (n *Network) admitUDP(forward packetHandler) packetHandler {
	return func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		if pkt.NICID != mainNIC {
			return true // silence
		}
		switch n.admit("udp", addrPort(id.LocalAddress, id.LocalPort)) {
		case admitted:
			return forward(id, pkt)
		case heldUp:
			return true // lost, as on a network that is full
		}
		return false
	}
}

// udpTable holds the flows of a network.
type udpTable struct {
	mu    sync.Mutex
	flows map[*udpFlow]struct{}
}

// add takes a flow in. If there are too many, the one idle for longest is returned, taken out: a guest that asks
// many servers one question each should not run into a wall for a minute.
func (t *udpTable) add(flow *udpFlow, limit int) (evicted *udpFlow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.flows == nil {
		t.flows = make(map[*udpFlow]struct{})
	}
	if len(t.flows) >= limit {
		for f := range t.flows {
			if evicted == nil || f.active.Load() < evicted.active.Load() {
				evicted = f
			}
		}
		delete(t.flows, evicted)
	}
	t.flows[flow] = struct{}{}
	return evicted
}

func (t *udpTable) remove(flow *udpFlow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.flows, flow)
}

// udpFlow is a guest's port talking to one destination, through a connected socket of the host.
type udpFlow struct {
	network *Network
	host    *net.UDPConn
	ep      tcpip.Endpoint
	queue   *waiter.Queue
	active  atomic.Int64 // time of the newest datagram, UnixNano
	stopped chan struct{}
	stop    sync.Once
	tracked *openFlow
}

// serveUDP starts a flow. The stack calls it for the first datagram and waits, so that the second one finds it.
func (n *Network) serveUDP(request *udp.ForwarderRequest) {
	defer n.guard("egress udp")
	if !n.enter() {
		return
	}
	if flow := n.openUDP(request); flow != nil {
		go func() {
			defer n.workers.Done()
			flow.carry()
		}()
		return
	}
	n.workers.Done()
}

// openUDP makes a flow, nil if it cannot.
func (n *Network) openUDP(request *udp.ForwarderRequest) *udpFlow {
	dst := addrPort(request.ID().LocalAddress, request.ID().LocalPort)
	// Connecting a UDP socket sends nothing and does not wait.
	host, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(dst))
	if err != nil {
		n.log.Debug("network: egress failed", "protocol", "udp", "destination", dst, "reason", err)
		return nil
	}
	queue := new(waiter.Queue)
	ep, tErr := request.CreateEndpoint(queue)
	if tErr != nil {
		_ = host.Close()
		return nil
	}
	flow := &udpFlow{network: n, host: host, ep: ep, queue: queue, stopped: make(chan struct{})}
	flow.touch()
	if flow.tracked = n.track("udp", dst, flow.end); flow.tracked == nil { // the policy changed meanwhile
		flow.end()
		ep.Close()
		return nil
	}
	n.counters.connectionsOut.Add(1)
	n.counters.udpFlows.Add(1)
	if evicted := n.udp.add(flow, n.limits.UDPFlows); evicted != nil {
		n.counters.limited.Add(1)
		evicted.end()
	}
	return flow
}

func (f *udpFlow) touch() { f.active.Store(time.Now().UnixNano()) }

func (f *udpFlow) end() {
	f.stop.Do(func() {
		close(f.stopped)
		_ = f.host.Close()
	})
}

func (f *udpFlow) carry() {
	defer f.network.counters.udpFlows.Add(-1)
	defer f.network.udp.remove(f)
	defer f.network.flows.remove(f.tracked)
	defer f.ep.Close()
	var back sync.WaitGroup
	back.Go(func() {
		defer f.network.guard("egress udp")
		defer f.end()
		f.toGuest()
	})
	defer back.Wait()
	defer f.end()
	defer f.network.guard("egress udp")
	f.toHost()
}

// toHost passes on what the guest sends until the flow ends. A datagram that cannot be sent is lost, as on any
// network.
func (f *udpFlow) toHost() {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents)
	f.queue.EventRegister(&entry)
	defer f.queue.EventUnregister(&entry)
	for {
		for n := f.passToHost(); n >= 0; n = f.passToHost() {
			f.touch()
			if !f.network.payUntil(f.stopped, outward, n) {
				return
			}
		}
		select {
		case <-ready:
		case <-f.stopped:
			return
		case <-f.network.ctx.Done():
			return
		}
	}
}

// passToHost sends one datagram and gives its size, -1 if there is none.
func (f *udpFlow) passToHost() int {
	buf := f.network.buffers.Get().(*[bufferSize]byte)
	defer f.network.buffers.Put(buf)
	writer := tcpip.SliceWriter(buf[:])
	result, tErr := f.ep.Read(&writer, tcpip.ReadOptions{})
	if tErr != nil {
		return -1
	}
	_, _ = f.host.Write(buf[:result.Count])
	return result.Count
}

// toGuest passes on what comes back until the flow has been idle for long enough or ends.
func (f *udpFlow) toGuest() {
	raw, err := f.host.SyscallConn()
	if err != nil {
		return
	}
	idle := f.network.limits.UDPIdle
	_ = f.host.SetReadDeadline(time.Now().Add(idle))
	for {
		carried := 0
		err := f.network.receive(raw.Read, bufferSize, func(data []byte) error {
			f.touch()
			carried = len(data)
			_, _ = f.ep.Write(reader(data), tcpip.WriteOptions{})
			return nil
		})
		switch {
		case err == nil:
			if !f.network.payUntil(f.stopped, inward, carried) {
				return
			}
		case errors.Is(err, unix.ECONNREFUSED):
			// A refusal tells about an earlier datagram; the next one may fare better.
		case errors.Is(err, os.ErrDeadlineExceeded):
			// The deadline is moved only when it has come, not with every datagram.
			end := time.Unix(0, f.active.Load()).Add(idle)
			if !time.Now().Before(end) {
				return
			}
			_ = f.host.SetReadDeadline(end)
		default:
			return
		}
	}
}
