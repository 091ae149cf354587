package test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Addresses of a netLab. What is outside stands for the internet, a private network and a cloud's metadata service; the
// host, on which versd runs, has addresses of its own.
const (
	labPublic   = "93.184.216.34"
	labMetadata = "169.254.169.254"
	labPrivate  = "10.98.0.2"
	labOpened   = "10.98.0.3" // private too, but opened by the operator
	labHost     = "10.99.0.1" // the host's, besides its loopback
	labHostIPv4 = "93.184.216.99"
	labPort     = 8080
)

// netLab is a host with an outside, each a network namespace: nothing leaves the machine, and nothing of it is reached.
type netLab struct {
	t             *testing.T
	host, outside *labSpace
	resolver      string // host:port, on the host's loopback
	names         atomic.Pointer[map[string]string]
}

// labSpace is a network namespace with a thread in it, which takes it along when it ends.
type labSpace struct {
	handle netns.NsHandle
	jobs   chan func()
}

func newLabSpace(t *testing.T) *labSpace {
	t.Helper()
	s := &labSpace{jobs: make(chan func())}
	ready := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		var err error
		s.handle, err = netns.New()
		ready <- err
		for job := range s.jobs {
			job()
		}
	}()
	must(t, <-ready)
	t.Cleanup(func() {
		close(s.jobs)
		s.handle.Close()
	})
	return s
}

// do runs f in the namespace. Sockets and processes made there stay there.
func (s *labSpace) do(f func()) {
	done := make(chan struct{})
	s.jobs <- func() { defer close(done); f() }
	<-done
}

func newNetLab(t *testing.T) *netLab {
	t.Helper()
	l := &netLab{t: t, host: newLabSpace(t), outside: newLabSpace(t)}
	l.names.Store(&map[string]string{})
	must(t, l.connect())
	l.serve(l.outside, "0.0.0.0", "outside")
	l.serve(l.host, "0.0.0.0", "host")
	l.serveNames()
	return l
}

// connect gives both sides their addresses.
func (l *netLab) connect() error {
	host, err := netlink.NewHandleAt(l.host.handle)
	if err != nil {
		return err
	}
	defer host.Close()
	outside, err := netlink.NewHandleAt(l.outside.handle)
	if err != nil {
		return err
	}
	defer outside.Close()
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lab0"}, PeerName: "lab1", PeerNamespace: netlink.NsFd(l.outside.handle)}
	if err := host.LinkAdd(pair); err != nil {
		return fmt.Errorf("make a veth pair: %w", err)
	}
	for _, side := range []struct {
		h         *netlink.Handle
		link      string
		addresses []string
	}{
		{host, "lo", []string{labHost + "/32", labHostIPv4 + "/32"}},
		{host, "lab0", []string{"10.98.0.1/24"}},
		{outside, "lo", nil},
		{outside, "lab1", []string{labPrivate + "/24", labOpened + "/24", labPublic + "/32", labMetadata + "/32"}},
	} {
		link, err := side.h.LinkByName(side.link)
		if err != nil {
			return err
		}
		for _, text := range side.addresses {
			address, err := netlink.ParseAddr(text)
			if err == nil {
				err = side.h.AddrAdd(link, address)
			}
			if err != nil {
				return fmt.Errorf("address %s: %w", text, err)
			}
		}
		if err := side.h.LinkSetUp(link); err != nil {
			return err
		}
	}
	link, err := host.LinkByName("lab0")
	if err != nil {
		return err
	}
	for _, text := range []string{labPublic, labMetadata} {
		target := &net.IPNet{IP: net.ParseIP(text), Mask: net.CIDRMask(32, 32)}
		err = errors.Join(err, host.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: target, Scope: netlink.SCOPE_LINK}))
	}
	return err
}

// serve greets everybody who connects with a name.
func (l *netLab) serve(space *labSpace, address, name string) {
	l.t.Helper()
	var listener net.Listener
	var err error
	space.do(func() { listener, err = net.Listen("tcp4", fmt.Sprintf("%s:%d", address, labPort)) })
	must(l.t, err)
	l.t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				fmt.Fprintln(conn, name)
				_, _ = io.Copy(io.Discard, conn) // until the other side ends it
			}()
		}
	}()
}

// serveNames answers on the host's loopback, for what SetName says.
func (l *netLab) serveNames() {
	var packets net.PacketConn
	var err error
	l.host.do(func() { packets, err = net.ListenPacket("udp4", "127.0.0.1:0") })
	must(l.t, err)
	l.resolver = packets.LocalAddr().String()
	server := &dns.Server{PacketConn: packets, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, query *dns.Msg) {
		answer := new(dns.Msg).SetReply(query)
		q := query.Question[0]
		if addr := (*l.names.Load())[strings.ToLower(q.Name)]; addr == "" {
			answer.Rcode = dns.RcodeNameError
		} else if q.Qtype == dns.TypeA {
			answer.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.ParseIP(addr)}}
		}
		_ = w.WriteMsg(answer)
	})}
	started := make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	go func() { _ = server.ActivateAndServe() }()
	<-started
	l.t.Cleanup(func() { _ = server.Shutdown() })
}

// setNames replaces the names that the resolver knows.
func (l *netLab) setNames(names map[string]string) {
	all := map[string]string{}
	for name, addr := range names {
		all[name+"."] = addr
	}
	l.names.Store(&all)
}

// reachable expects that the host itself gets a greeting from an address: what a guest does not reach is there.
func (l *netLab) reachable(address, want string) {
	l.t.Helper()
	var got []byte
	var err error
	l.host.do(func() {
		var conn net.Conn
		if conn, err = net.Dial("tcp4", address); err == nil {
			defer conn.Close()
			got = make([]byte, len(want))
			_, err = io.ReadFull(conn, got)
		}
	})
	if err != nil || string(got) != want {
		l.t.Fatalf("the host itself gets %q from %s, %v", got, address, err)
	}
}

// newServer starts a versd on the lab's host.
func (l *netLab) newServer(extraConfig ...string) *server {
	l.t.Helper()
	s, err := startServerIn(l.host.do, scratch(l.t), append([]string{fmt.Sprintf("resolvers = [%q]", l.resolver)}, extraConfig...)...)
	must(l.t, err)
	l.t.Cleanup(func() {
		if err := s.stopAll(); err != nil {
			l.t.Error(err)
		}
		if l.t.Failed() {
			l.t.Logf("versd's log:\n%s", s.log())
		}
	})
	return s
}
