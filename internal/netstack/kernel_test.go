package netstack

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// kernelGuest is a network namespace with a tap device whose frames go through sockets like QEMU's: Linux's own
// network stack plays the guest.
type kernelGuest struct {
	t    testing.TB
	work chan func()
}

func newKernelGuest(t testing.TB, dir string) *kernelGuest {
	t.Helper()
	g := &kernelGuest{t: t, work: make(chan func())}
	ready := make(chan error, 1)
	var tap *Tap
	go func() {
		runtime.LockOSThread() // never unlocked: the namespace ends with the thread
		ns, err := netns.New()
		if err == nil {
			defer ns.Close()
			tap, err = NewTap(dir)
		}
		ready <- err
		for do := range g.work {
			do()
		}
	}()
	if err := <-ready; errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		close(g.work)
		t.Skip("no tap device here: ", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = tap.Close()
		close(g.work)
	})
	return g
}

// do runs f inside the guest's namespace.
func (g *kernelGuest) do(f func()) {
	done := make(chan struct{})
	g.work <- func() { defer close(done); f() }
	<-done
}

func (g *kernelGuest) dial(network, address string) (conn net.Conn, err error) {
	g.do(func() { conn, err = (&net.Dialer{Timeout: 5 * time.Second}).Dial(network, address) })
	return conn, err
}

// What the other tests do with gVisor as the guest, once with Linux: ARP, reset, port unreachable, echo.
func TestKernelGuest(t *testing.T) {
	served := serveTCP(t, ownAddress+":0", echoTCP)
	udpServed := serveUDPEcho(t, ownAddress+":0")
	dir := shortDir(t)
	n := newTestNetwork(t, Config{Dir: dir, Egress: mustPolicy(t, "", []string{served, udpServed}, nil)})
	guest := newKernelGuest(t, dir)

	conn, err := guest.dial("tcp4", served)
	if err != nil {
		t.Fatal(err)
	}
	checkEcho(t, conn, 3<<20)
	_ = conn.Close()
	if _, err := guest.dial("tcp4", "10.0.0.1:80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("refused TCP: %v", err)
	}
	udp, err := guest.dial("udp4", udpServed)
	if err != nil {
		t.Fatal(err)
	}
	checkUDPEcho(t, udp, 1400)
	checkUDPEcho(t, udp, 20000)
	_ = udp.Close()
	refused, err := guest.dial("udp4", "10.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = refused.Write([]byte("x"))
	_ = refused.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := refused.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("refused UDP: %v", err)
	}
	_ = refused.Close()
	guest.ping(t)

	var listener net.Listener
	guest.do(func() { listener, err = net.Listen("tcp4", "10.77.0.2:8080") })
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go echoTCP(conn.(*net.TCPConn))
		}
	}()
	inside, err := n.DialGuest(soon(t), 8080)
	if err != nil {
		t.Fatal(err)
	}
	checkEcho(t, inside, 3<<20)
	_ = inside.Close()
	if _, err := n.DialGuest(soon(t), 8081); !errors.Is(err, errRefused) {
		t.Errorf("closed port: %v", err)
	}

	// A connection that an earlier versd had is reset at the guest's next word, not left hanging.
	old, err := guest.dial("tcp4", served)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	second := newTestNetwork(t, Config{Dir: dir, Egress: mustPolicy(t, "", []string{served}, nil)})
	_, _ = old.Write([]byte("x"))
	_ = old.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadAll(old); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection of the past: %v", err)
	}
	fresh, err := second.DialGuest(soon(t), 8080)
	if err != nil {
		t.Fatal(err)
	}
	checkEcho(t, fresh, 1000)
	_ = fresh.Close()
}

func (g *kernelGuest) ping(t *testing.T) {
	t.Helper()
	var fd int
	var err error
	g.do(func() { fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP) })
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	if err := unix.Sendto(fd, icmpMessage(header.ICMPv4Echo), 0, &unix.SockaddrInet4{Addr: mainSide().host.As4()}); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, 1500)
	for {
		n, _, err := unix.Recvfrom(fd, reply, 0)
		if err != nil {
			t.Fatalf("the gateway does not answer echo: %v", err)
		}
		ip := header.IPv4(reply[:n])
		if ip.SourceAddress() == tcpipAddress(mainSide().host) && header.ICMPv4(ip.Payload()).Type() == header.ICMPv4EchoReply {
			return
		}
	}
}
