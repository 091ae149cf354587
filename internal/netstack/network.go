// Package netstack gives every VM a network of its own, in user space: no tap device, no bridge, no firewall rule on
// the host, no root.
//
//	           QEMU                         versd
//	guest ── virtio-net ══ UNIX datagram ══ link ── gVisor stack ─┬─ DNS, DHCP, echo at 10.77.0.1
//	eth0     (main)        net0.*                                 ├─ filter, then a socket of the host
//	                                                              ├─ filter, then DialGuest of a peer
//	                                                              └─ DialGuest
//	agent ── virtio-net ══ UNIX datagram ══ link ── the same ─────── DialAgent, nothing else
//	         (control)     net1.*
//
// One datagram is one Ethernet frame. Nothing is connected, so QEMU may come late and versd may end and come back
// while the VM runs: New binds the same socket again, new connections work at once, and the guest's old ones are
// reset when it next uses them.
//
// The guest is not trusted. A frame that does not come from the guest's own addresses is dropped (link.inspect), a
// flow that the policy refuses is reset, and every resource a guest can use up has a limit.
package netstack

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"vers/internal/egress"
	"vers/internal/fault"
)

// Config describes the network of one VM.
type Config struct {
	// Dir is the VM's directory, absolute and of any length. New makes net0.host and net1.host in it, and sends to
	// net0.qemu and net1.qemu once QEMU has made those.
	Dir string
	// UID and GID are those of the QEMU process, which get the sockets; nobody else but root may send to them, and
	// QEMU's sockets must belong to UID. Both zero: the sockets stay ours, and QEMU's are taken from anybody.
	UID, GID int
	// Egress decides where the guest may connect to, until SetEgress.
	Egress egress.Levels
	// Peers are other VMs that the guest may reach by name. Nil: none.
	Peers Peers
	// Limits bounds what the guest can use up. Zero fields get defaults.
	Limits Limits
	// Resolvers are the DNS servers asked on behalf of the guest, as host:port. Empty: those of ResolvConf.
	Resolvers []string
	// ResolvConf is the file that names the host's resolvers; it is read again when it changes. Empty:
	// /etc/resolv.conf.
	ResolvConf string
	// Logger takes refusals, a few per second at most. Nil: slog.Default().
	Logger *slog.Logger

	// isHost replaces the question to the kernel, in tests.
	isHost egress.HostAddress
}

// Limits bounds what one guest can use up on the host.
type Limits struct {
	TCPFlows       int           // outgoing connections at a time; more are reset. Default 1024
	UDPFlows       int           // outgoing UDP flows at a time; one more ends the one idle for longest. Default 512
	DNSQueries     int           // queries in flight; more are not answered. Default 128
	UDPIdle        time.Duration // a UDP flow without traffic ends after this. Default one minute
	ConnectTimeout time.Duration // for a connection on behalf of the guest. Default 15 s
	DNSTimeout     time.Duration // for an answer from one resolver. Default 2 s
}

func (l Limits) withDefaults() Limits {
	set := func(n *int, value int) {
		if *n <= 0 {
			*n = value
		}
	}
	wait := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	set(&l.TCPFlows, 1024)
	set(&l.UDPFlows, 512)
	set(&l.DNSQueries, 128)
	wait(&l.UDPIdle, time.Minute)
	wait(&l.ConnectTimeout, 15*time.Second)
	wait(&l.DNSTimeout, 2*time.Second)
	return l
}

// Stats counts since New. Counters only rise, the two gauges say how many flows there are now.
type Stats struct {
	FramesReceived uint64 // from the guest, both networks
	FramesSent     uint64 // to the guest
	FramesSpoofed  uint64 // dropped: not the guest's MAC or IP address
	FramesDropped  uint64 // dropped: malformed or of no interest (IPv6, multicast)
	FlowsRefused   uint64 // TCP connections and UDP datagrams that the policy refused, connections that it ended
	FlowsLimited   uint64 // TCP connections refused or held up and UDP flows refused or ended early because of a limit
	NamesRefused   uint64 // DNS queries refused
	TCPFlows       int    // gauge
	UDPFlows       int    // gauge
}

type counters struct {
	received, sent, spoofed, dropped atomic.Uint64
	connectionsOut, connectionsIn    atomic.Uint64
	refused, limited, namesRefused   atomic.Uint64
	tcpFlows, udpFlows               atomic.Int64
}

// Network is the network of one VM. Its methods are safe for concurrent use.
type Network struct {
	filter   *filter
	limits   Limits
	log      *slog.Logger
	counters counters

	dir           *directory
	stack         *stack.Stack
	main, control *link
	names         *nameServer

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	mu      sync.Mutex
	closed  bool           // no more workers
	workers sync.WaitGroup // Add only through enter
	buffers sync.Pool      // *[bufferSize]byte
	udp     udpTable
	flows   flowTable
	peers   peerTable

	closeOnce sync.Once
}

// New makes the network of a VM, or after a crash takes it over: the guest need not notice. ctx bounds New only.
func New(ctx context.Context, cfg Config) (_ *Network, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("network of the VM in %s: %w", cfg.Dir, err)
		}
	}()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n := &Network{
		limits: cfg.Limits.withDefaults(), log: cfg.Logger,
	}
	if n.log == nil {
		n.log = slog.Default()
	}
	n.filter = newFilter(cfg.Egress, cfg.isHost, n.log)
	n.peers.Peers = cfg.Peers
	n.buffers.New = func() any { return new([bufferSize]byte) }
	n.ctx, n.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			_ = n.Close()
		}
	}()
	if n.dir, err = openDirectory(cfg.Dir); err != nil {
		return nil, err
	}
	if n.main, err = newLink(mainSide(), n.dir, cfg.UID, cfg.GID, &n.counters); err != nil {
		return nil, err
	}
	if n.control, err = newLink(controlSide(), n.dir, cfg.UID, cfg.GID, &n.counters); err != nil {
		return nil, err
	}
	if err := n.startStack(); err != nil {
		return nil, err
	}
	if err := n.startDHCP(); err != nil {
		return nil, err
	}
	if err := n.startNames(cfg.Resolvers, cfg.ResolvConf); err != nil {
		return nil, err
	}
	// Last: from now on the guest is heard.
	n.main.run()
	n.control.run()
	return n, nil
}

func (n *Network) startStack() error {
	n.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	if err := n.tuneTCP(); err != nil {
		return err
	}
	for _, l := range []*link{n.main, n.control} {
		options := stack.NICOptions{Name: l.name, QDisc: newQueue(l)}
		if err := n.stack.CreateNICWithOptions(l.nic, l, options); err != nil {
			return fault.New(fault.Internal, "%s: %s", l.name, err)
		}
		address := tcpip.ProtocolAddress{
			Protocol:          ipv4.ProtocolNumber,
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpipAddress(l.host), PrefixLen: l.prefixLen()},
		}
		if err := n.stack.AddProtocolAddress(l.nic, address, stack.AddressProperties{}); err != nil {
			return fault.New(fault.Internal, "%s: %s", l.name, err)
		}
	}
	// On the main network we are every address that the guest dials: take packets for all, answer as any.
	if err := n.stack.SetPromiscuousMode(mainNIC, true); err != nil {
		return fault.New(fault.Internal, "main network: %s", err)
	}
	if err := n.stack.SetSpoofing(mainNIC, true); err != nil {
		return fault.New(fault.Internal, "main network: %s", err)
	}
	n.stack.SetRouteTable(n.routes())
	forwardTCP := tcp.NewForwarder(n.stack, 0, tcpInFlight, n.serveTCP)
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, n.admitTCP(forwardTCP.HandlePacket))
	forwardUDP := udp.NewForwarder(n.stack, n.serveUDP)
	n.stack.SetTransportProtocolHandler(udp.ProtocolNumber, n.admitUDP(forwardUDP.HandlePacket))
	return nil
}

// routes lead to the guest, and to nobody else: the stack never forwards packets, it only ends connections.
func (n *Network) routes() []tcpip.Route {
	var routes []tcpip.Route
	for _, l := range []*link{n.control, n.main} {
		address := tcpip.AddressWithPrefix{Address: tcpipAddress(l.guest), PrefixLen: l.prefixLen()}
		routes = append(routes, tcpip.Route{Destination: address.Subnet(), NIC: l.nic})
	}
	return routes
}

// tuneTCP fits TCP to a link that has no distance but can stand still for a long time.
func (n *Network) tuneTCP() error {
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 256 << 10, Max: 512 << 10}
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 256 << 10, Max: 1 << 20}
	// A VM that was paused is answered within seconds after it goes on, however long the pause was, and its
	// connections live through a pause of half an hour.
	maxRTO, retries := tcpip.TCPMaxRTOOption(2*time.Second), tcpip.TCPMaxRetriesOption(900)
	// Thousands of short connections to the agent should not linger. A new one with the same ports has another
	// initial sequence number and timestamp.
	timeWait := tcpip.TCPTimeWaitTimeoutOption(2 * time.Second)
	for _, option := range []tcpip.SettableTransportProtocolOption{
		&sack, &moderate, &send, &receive, &maxRTO, &retries, &timeWait,
	} {
		if err := n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return fault.New(fault.Internal, "set a TCP option: %s", err)
		}
	}
	return nil
}

// Stats returns the counters.
func (n *Network) Stats() Stats {
	c := &n.counters
	return Stats{
		FramesReceived: c.received.Load(), FramesSent: c.sent.Load(),
		FramesSpoofed: c.spoofed.Load(), FramesDropped: c.dropped.Load(),
		FlowsRefused: c.refused.Load(), FlowsLimited: c.limited.Load(), NamesRefused: c.namesRefused.Load(),
		TCPFlows: int(c.tcpFlows.Load()), UDPFlows: int(c.udpFlows.Load()),
	}
}

// Traffic counts what went over the main network.
func (n *Network) Traffic() egress.Counters {
	c, l := &n.counters, n.main
	return egress.Counters{
		BytesOut: l.bytesReceived.Load(), BytesIn: l.bytesSent.Load(),
		PacketsOut: l.received.Load(), PacketsIn: l.sent.Load(),
		ConnectionsOut: c.connectionsOut.Load(), ConnectionsIn: c.connectionsIn.Load(),
		Refused: c.refused.Load() + c.namesRefused.Load(), Limited: c.limited.Load(), Spoofed: c.spoofed.Load(),
	}
}

// enter announces a worker that Close waits for; false if the network is closing. The caller calls workers.Done.
func (n *Network) enter() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	n.workers.Add(1)
	return true
}

// Close ends all connections, removes the sockets and returns when nothing of the network is left. Idempotent.
func (n *Network) Close() error {
	n.closeOnce.Do(func() {
		n.mu.Lock()
		n.closed = true
		n.mu.Unlock()
		n.cancel()
		if n.names != nil {
			n.names.close()
		}
		n.abortEndpoints() // while the cables still carry the resets
		for _, l := range []*link{n.main, n.control} {
			if l != nil {
				l.close()
			}
		}
		n.abortEndpoints() // those that the guest opened meanwhile; no more can come now
		n.workers.Wait()
		if n.stack != nil {
			n.stack.Destroy()
		}
		if n.dir != nil {
			_ = n.dir.file.Close()
		}
	})
	return nil
}

func (n *Network) abortEndpoints() {
	if n.stack == nil {
		return
	}
	for _, ep := range n.stack.RegisteredEndpoints() {
		ep.Abort()
	}
}

// guard keeps a defect in the handling of one flow from ending all VMs of the process.
func (n *Network) guard(what string) {
	if problem := recover(); problem != nil {
		n.log.Error("network: a worker failed", "what", what, "problem", problem, "stack", string(debug.Stack()))
	}
}
