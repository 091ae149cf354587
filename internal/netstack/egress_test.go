package netstack

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"vers/internal/egress"
)

// serveTCP starts a real server of the host at address (port 0: any) and returns where it listens.
func serveTCP(t *testing.T, address string, serve func(*net.TCPConn)) string {
	t.Helper()
	listener, err := net.Listen("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn.(*net.TCPConn))
			}()
		}
	}()
	return listener.Addr().String()
}

func echoTCP(conn *net.TCPConn) {
	_, _ = io.Copy(struct{ io.Writer }{conn}, conn)
	_ = conn.CloseWrite()
}

func serveUDPEcho(t *testing.T, address string) string {
	t.Helper()
	conn, err := net.ListenPacket("udp4", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(buf[:n], from)
		}
	}()
	return conn.LocalAddr().String()
}

func TestEgressTCP(t *testing.T) {
	served := serveTCP(t, ownAddress+":0", echoTCP)
	other := serveTCP(t, ownAddress+":0", echoTCP)
	n, guest := pair(t, Config{Egress: mustPolicy(t, "none", []string{served}, nil)})

	conn, err := guest.dial(soon(t), served)
	if err != nil {
		t.Fatal(err)
	}
	checkEcho(t, conn, 3<<20)
	_ = conn.Close()
	eventually(t, "the flow ends", func() bool { return n.Stats().TCPFlows == 0 })

	for _, address := range []string{other, "10.99.1.5:80", "10.98.7.7:80", "169.254.169.254:80", "10.77.0.1:80", "9.9.9.9:443"} {
		start := time.Now()
		if conn, err := guest.dial(soon(t), address); err == nil {
			t.Errorf("%s could be reached", address)
			_ = conn.Close()
		} else if !strings.Contains(err.Error(), "refused") || time.Since(start) > time.Second {
			t.Errorf("%s: %v after %v, want a reset at once", address, err, time.Since(start))
		}
	}
	if got := n.Stats().FlowsRefused; got != 6 {
		t.Errorf("%d refusals counted", got)
	}
}

// The default policy keeps a guest away from the host, whatever address it uses for it.
func TestEgressDefaultRefusesHost(t *testing.T) {
	served := serveTCP(t, "0.0.0.0:0", echoTCP)
	_, port, _ := net.SplitHostPort(served)
	// As if the host had a public address: only the question to the kernel can tell.
	wide := mustPolicy(t, "", []string{"10.0.0.0/8"}, nil)
	for name, policy := range map[string]egress.Levels{"default": {}, "private networks allowed": wide} {
		_, guest := pair(t, Config{Egress: policy})
		for _, host := range []string{ownAddress, "10.99.1.200", "10.77.0.1"} {
			if conn, err := guest.dial(soon(t), net.JoinHostPort(host, port)); err == nil {
				t.Errorf("%s: the host was reached as %s", name, host)
				_ = conn.Close()
			}
		}
	}
}

// A destination that is another machine: refused by default because it is private, reached when allowed; a port
// where nothing listens is refused by that machine.
func TestEgressToNeighbour(t *testing.T) {
	var served, udpServed string
	inPeer(t, func() {
		served = serveTCP(t, peerAddress+":0", echoTCP)
		udpServed = serveUDPEcho(t, peerAddress+":0")
	})
	_, refused := pair(t, Config{})
	if _, err := refused.dial(soon(t), served); err == nil {
		t.Error("a private address was reached by default")
	}
	n, guest := pair(t, Config{Egress: mustPolicy(t, "", []string{"10.98.0.0/24"}, nil)})
	conn, err := guest.dial(soon(t), served)
	if err != nil {
		t.Fatal(err)
	}
	checkEcho(t, conn, 1<<20)
	_ = conn.Close()
	checkUDPEcho(t, guest.dialUDP(udpServed), 100)
	before := n.Stats().FlowsRefused
	if _, err := guest.dial(soon(t), peerAddress+":1"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("closed port: %v", err)
	}
	if n.Stats().FlowsRefused != before {
		t.Error("the neighbour's refusal was counted as ours")
	}
}

func TestEgressHalfClose(t *testing.T) {
	// The server answers only after it has seen the guest's end.
	served := serveTCP(t, ownAddress+":0", func(conn *net.TCPConn) {
		got, _ := io.ReadAll(conn)
		_, _ = conn.Write(bytes.ToUpper(got))
	})
	_, guest := pair(t, Config{Egress: mustPolicy(t, "", []string{ownAddress}, nil)})
	conn, err := guest.dial(soon(t), served)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = conn.Write([]byte("question"))
	_ = conn.CloseWrite()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "QUESTION" {
		t.Errorf("got %q, %v", got, err)
	}

	// The other way round: the server ends first and still gets what the guest has to say.
	heard := make(chan string, 1)
	served = serveTCP(t, ownAddress+":0", func(conn *net.TCPConn) {
		_, _ = conn.Write([]byte("hello"))
		_ = conn.CloseWrite()
		got, _ := io.ReadAll(conn)
		heard <- string(got)
	})
	second, err := guest.dial(soon(t), served)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(second); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
	_, _ = second.Write([]byte("bye"))
	_ = second.Close()
	if got := <-heard; got != "bye" {
		t.Errorf("the server heard %q", got)
	}
}

// A reset on one side is a reset on the other, not a clean end.
func TestEgressReset(t *testing.T) {
	served := serveTCP(t, ownAddress+":0", func(conn *net.TCPConn) {
		_, _ = io.ReadFull(conn, make([]byte, 1))
		_ = conn.SetLinger(0)
	})
	n, guest := pair(t, Config{Egress: mustPolicy(t, "", []string{ownAddress}, nil)})
	conn, err := guest.dial(soon(t), served)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = conn.Write([]byte("x"))
	if _, err := io.ReadAll(conn); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("got %v, want a reset", err)
	}
	eventually(t, "the flow ends", func() bool { return n.Stats().TCPFlows == 0 })
}

func TestEgressLimits(t *testing.T) {
	served := serveTCP(t, ownAddress+":0", echoTCP)
	n, guest := pair(t, Config{
		Egress: mustPolicy(t, "", []string{ownAddress}, nil), Limits: Limits{TCPFlows: 3, UDPFlows: 3},
	})
	var held []net.Conn
	for range 3 {
		conn, err := guest.dial(soon(t), served)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
	if _, err := guest.dial(soon(t), served); err == nil {
		t.Error("a fourth connection was possible")
	}
	_ = held[0].Close()
	eventually(t, "the flow ends", func() bool { return n.Stats().TCPFlows == 2 })
	conn, err := guest.dial(soon(t), served)
	if err != nil {
		t.Fatal(err)
	}
	checkEcho(t, conn, 10)

	// More UDP flows than allowed: the newest always works, the oldest ends.
	address := serveUDPEcho(t, ownAddress+":0")
	for range 6 {
		checkUDPEcho(t, guest.dialUDP(address), 10)
	}
	eventually(t, "three flows are left", func() bool { return n.Stats().UDPFlows == 3 })
	if got := n.Stats().FlowsLimited; got != 1+3 {
		t.Errorf("%d flows counted as limited", got)
	}
}

func checkUDPEcho(t *testing.T, conn net.Conn, size int) {
	t.Helper()
	sent := bytes.Repeat([]byte{'u'}, size)
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write(sent); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1<<16)
	n, err := conn.Read(got)
	if err != nil || !bytes.Equal(got[:n], sent) {
		t.Fatalf("UDP echo of %d bytes gave %d, %v", size, n, err)
	}
}

func TestEgressUDP(t *testing.T) {
	address := serveUDPEcho(t, ownAddress+":0")
	other := serveUDPEcho(t, ownAddress+":0")
	n, guest := pair(t, Config{
		Egress: mustPolicy(t, "", []string{address}, nil), Limits: Limits{UDPIdle: 100 * time.Millisecond},
	})
	conn := guest.dialUDP(address)
	defer conn.Close()
	for _, size := range []int{1, 1472, 1473, 9000, 60000} { // the last ones in fragments
		checkUDPEcho(t, conn, size)
	}
	eventually(t, "the idle flow ends", func() bool { return n.Stats().UDPFlows == 0 })
	checkUDPEcho(t, conn, 5) // and comes back

	refused := guest.dialUDP(other)
	defer refused.Close()
	guest.main().drain()
	_, _ = refused.Write([]byte("x"))
	guest.main().await("port unreachable", func(frame []byte) bool {
		ip := header.IPv4(frame[header.EthernetMinimumSize:])
		if header.Ethernet(frame).Type() != header.IPv4ProtocolNumber || ip.TransportProtocol() != header.ICMPv4ProtocolNumber {
			return false
		}
		message := header.ICMPv4(ip.Payload())
		return message.Type() == header.ICMPv4DstUnreachable && message.Code() == header.ICMPv4PortUnreachable
	})
	if n.Stats().FlowsRefused != 1 {
		t.Errorf("%d refusals", n.Stats().FlowsRefused)
	}
}

// A destination that does not read holds up its own flow only.
func TestEgressSlowReader(t *testing.T) {
	hold := make(chan struct{})
	defer close(hold)
	slow := serveTCP(t, ownAddress+":0", func(*net.TCPConn) { <-hold })
	fast := serveTCP(t, ownAddress+":0", echoTCP)
	_, guest := pair(t, Config{Egress: mustPolicy(t, "", []string{ownAddress}, nil)})
	stuck, err := guest.dial(soon(t), slow)
	if err != nil {
		t.Fatal(err)
	}
	defer stuck.Close()
	_ = stuck.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	var timeout net.Error
	if _, err := stuck.Write(make([]byte, 64<<20)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("somebody took 64 MiB: %v", err)
	}
	conn, err := guest.dial(soon(t), fast)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	checkEcho(t, conn, 1<<20)
}
