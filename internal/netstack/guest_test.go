package netstack

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"vers/internal/egress"
)

// testGuest plays QEMU and the guest: UNIX datagram sockets as QEMU has them, and behind them a network stack of its
// own which knows neighbours only through ARP.
type testGuest struct {
	t     testing.TB
	dir   string
	stack *stack.Stack
	wires []*wire

	closeOnce sync.Once
	cancel    context.CancelFunc
	done      sync.WaitGroup
}

// wire is one network card of the guest.
type wire struct {
	side
	t      testing.TB
	socket *net.UnixConn
	remote *net.UnixAddr
	card   *channel.Endpoint
	seen   chan []byte // copies of the frames received, if somebody listens
}

func shortDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "ns")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func newTestGuest(t testing.TB, dir string) *testGuest {
	t.Helper()
	g := &testGuest{t: t, dir: dir, stack: stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})}
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	t.Cleanup(g.close)
	for _, s := range []side{mainSide(), controlSide()} {
		g.plug(ctx, s)
	}
	g.stack.SetRouteTable([]tcpip.Route{
		{Destination: tcpip.AddressWithPrefix{Address: tcpipAddress(controlSide().guest), PrefixLen: 30}.Subnet(), NIC: controlNIC},
		{Destination: header.IPv4EmptySubnet, Gateway: tcpipAddress(mainSide().host), NIC: mainNIC},
	})
	return g
}

func (g *testGuest) plug(ctx context.Context, s side) {
	w := &wire{
		side: s, t: g.t, card: channel.New(1024, s.mtu+header.EthernetMinimumSize, s.guestLinkAddress()), seen: make(chan []byte, 64),
		remote: &net.UnixAddr{Name: filepath.Join(g.dir, s.hostSock), Net: "unixgram"},
	}
	var err error
	local := &net.UnixAddr{Name: filepath.Join(g.dir, s.vmSock), Net: "unixgram"}
	_ = os.Remove(local.Name)
	if w.socket, err = net.ListenUnixgram("unixgram", local); err != nil {
		g.t.Fatal(err)
	}
	if err := g.stack.CreateNIC(s.nic, ethernet.New(w.card)); err != nil {
		g.t.Fatal(err)
	}
	address := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{
		Address: tcpipAddress(s.guest), PrefixLen: s.prefixLen(),
	}}
	if err := g.stack.AddProtocolAddress(s.nic, address, stack.AddressProperties{}); err != nil {
		g.t.Fatal(err)
	}
	g.done.Go(func() {
		for {
			pkt := w.card.ReadContext(ctx)
			if pkt == nil {
				return
			}
			view := pkt.ToView()
			w.send(view.AsSlice())
			view.Release()
			pkt.DecRef()
		}
	})
	g.done.Go(func() {
		frame := make([]byte, 1<<16)
		for {
			n, _, err := w.socket.ReadFromUnix(frame)
			if err != nil {
				return
			}
			select {
			case w.seen <- append([]byte(nil), frame[:n]...):
			default:
			}
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame[:n])})
			w.card.InjectInbound(0, pkt)
			pkt.DecRef()
		}
	})
	g.wires = append(g.wires, w)
}

// send puts a frame on the wire; one that nobody takes is lost.
func (w *wire) send(frame []byte) { _, _ = w.socket.WriteToUnix(frame, w.remote) }

// drain forgets the frames seen so far.
func (w *wire) drain() {
	for {
		select {
		case <-w.seen:
		default:
			return
		}
	}
}

// await returns the first frame that the guest receives and that matches.
func (w *wire) await(what string, matches func([]byte) bool) []byte {
	w.t.Helper()
	limit := time.After(10 * time.Second)
	for {
		select {
		case frame := <-w.seen:
			if matches(frame) {
				return frame
			}
		case <-limit:
			w.t.Fatalf("the guest never saw %s", what)
		}
	}
}

func (g *testGuest) main() *wire    { return g.wires[0] }
func (g *testGuest) control() *wire { return g.wires[1] }

func (g *testGuest) close() {
	g.closeOnce.Do(func() {
		g.cancel()
		for _, w := range g.wires {
			_ = w.socket.Close()
		}
		g.done.Wait()
		g.stack.Destroy()
	})
}

// listen makes a TCP listener in the guest. Every connection is handled by serve.
func (g *testGuest) listen(nic tcpip.NICID, port uint16, serve func(net.Conn)) {
	g.t.Helper()
	listener, err := gonet.ListenTCP(g.stack, tcpip.FullAddress{NIC: nic, Port: port}, ipv4.ProtocolNumber)
	if err != nil {
		g.t.Fatal(err)
	}
	g.done.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	})
	stop := sync.OnceFunc(func() { listener.Shutdown(); _ = listener.Close() })
	cancel := g.cancel
	g.cancel = func() { cancel(); stop() }
}

// dial connects from the guest to somewhere outside.
func (g *testGuest) dial(ctx context.Context, address string) (*gonet.TCPConn, error) {
	return gonet.DialContextTCP(ctx, g.stack, g.fullAddress(address), ipv4.ProtocolNumber)
}

func (g *testGuest) dialUDP(address string) *gonet.UDPConn {
	g.t.Helper()
	remote := g.fullAddress(address)
	conn, err := gonet.DialUDP(g.stack, nil, &remote, ipv4.ProtocolNumber)
	if err != nil {
		g.t.Fatal(err)
	}
	return conn
}

func (g *testGuest) fullAddress(address string) tcpip.FullAddress {
	resolved, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		g.t.Fatal(err)
	}
	return tcpip.FullAddress{Addr: tcpip.AddrFrom4Slice(resolved.IP.To4()), Port: uint16(resolved.Port)}
}

func newTestNetwork(t testing.TB, cfg Config) *Network {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = shortDir(t)
	}
	if len(cfg.Resolvers) == 0 && cfg.ResolvConf == "" {
		cfg.ResolvConf = filepath.Join(cfg.Dir, "no-such-file") // never ask the real resolvers
	}
	n, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

// pair gives a network and a guest on it.
func pair(t testing.TB, cfg Config) (*Network, *testGuest) {
	t.Helper()
	n := newTestNetwork(t, cfg)
	dir := cfg.Dir
	if dir == "" {
		dir = n.dir.path
	}
	return n, newTestGuest(t, dir)
}

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits for a condition that no event announces.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline:
			t.Fatalf("does not come true: %s", what)
		case <-tick.C:
		}
	}
}

func mustPolicy(t testing.TB, mode string, allow, deny []string) egress.Levels {
	t.Helper()
	policy, err := egress.New(mode, allow, deny)
	if err != nil {
		t.Fatal(err)
	}
	return egress.Stack(policy, nil, nil)
}
