package netstack

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"vers/internal/egress"
)

// publicAddress is one of the public internet, as far as the namespace of the tests is concerned: the neighbour has it.
const publicAddress = "93.184.216.34"

// inPublic runs listen where publicAddress can be listened on.
func inPublic(t *testing.T, listen func()) {
	t.Helper()
	inPeer(t, func() {
		link, err := netlink.LinkByName("peer1")
		if err == nil {
			err = netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(publicAddress), Mask: net.CIDRMask(32, 32)}})
		}
		if err != nil {
			t.Error(err)
		}
		listen()
	})
	link, err := netlink.LinkByName("peer0")
	if err != nil {
		t.Fatal(err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: &net.IPNet{IP: net.ParseIP(publicAddress), Mask: net.CIDRMask(32, 32)}, Scope: netlink.SCOPE_LINK}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
}

func levels(t testing.TB, server, vm string) egress.Levels {
	t.Helper()
	parse := func(text string) *egress.Policy {
		if text == "" {
			return nil
		}
		p, err := egress.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return &p
	}
	first := egress.Policy{}
	if p := parse(server); p != nil {
		first = *p
	}
	return egress.Stack(first, nil, parse(vm))
}

// zone answers names of a table and counts what it was asked.
type zone struct {
	asked   atomic.Int32
	records map[string][]string // by name
}

func (z *zone) serve(w dns.ResponseWriter, query *dns.Msg) {
	z.asked.Add(1)
	answerWith(z.records[strings.ToLower(query.Question[0].Name)]...)(w, query)
}

func (g *testGuest) reaches(address string) error {
	conn, err := g.dial(soon(g.t), address)
	if err != nil {
		return err
	}
	defer conn.Close()
	return ping(conn)
}

// ping sends a word and waits for the echo. The connection stays open.
func ping(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	got := make([]byte, 5)
	_, err := io.ReadFull(conn, got)
	if err == nil && string(got) != "hello" {
		err = fmt.Errorf("the echo was %q", got)
	}
	return err
}

func (g *testGuest) code(name string, kind uint16) string {
	g.t.Helper()
	answer, err := g.ask("udp", name, kind)
	if err != nil {
		g.t.Fatalf("%s: %v", name, err)
	}
	return fmt.Sprintf("%s %d", dns.RcodeToString[answer.Rcode], len(answer.Answer))
}

// A guest that may reach one name reaches the addresses that name has, on that port, and asks about no other name.
func TestEgressByName(t *testing.T) {
	var served string
	inPublic(t, func() { served = serveTCP(t, publicAddress+":0", echoTCP) })
	port := strings.TrimPrefix(served, publicAddress)
	z := &zone{records: map[string][]string{
		"example.test.":     {"example.test. 60 IN CNAME www.cdn.test.", "www.cdn.test. 60 IN A " + publicAddress, "stranger.test. 60 IN A 9.9.9.9"},
		"private.test.":     {"private.test. 60 IN A 10.0.0.1"},
		"a.b.example.test.": {"a.b.example.test. 99999 IN A 93.184.216.35"},
	}}
	n, guest := pair(t, Config{
		Resolvers: []string{startResolver(t, z.serve)},
		Egress:    levels(t, "", "allow=example.test"+port+",private.test,*.b.example.test:443"),
	})
	if guest.reaches(served) == nil {
		t.Error("the address was reached before its name was asked for")
	}
	if got := guest.code("Example.TEST.", dns.TypeA); got != "NOERROR 2" { // without the stranger
		t.Errorf("the name that is allowed: %s", got)
	}
	if err := guest.reaches(served); err != nil {
		t.Errorf("the name that is allowed is not reached: %v", err)
	}
	if guest.reaches(publicAddress+":9") == nil || guest.reaches("9.9.9.9"+port) == nil {
		t.Error("another port or address was reached")
	}
	before := z.asked.Load()
	for name, want := range map[string]string{
		"other.test.": "REFUSED 0", "www.example.test.": "REFUSED 0", "www.cdn.test.": "REFUSED 0", "b.example.test.": "REFUSED 0",
		"secret-data.evil.test.": "REFUSED 0", `x\.b.example.test.`: "REFUSED 0",
	} {
		if got := guest.code(name, dns.TypeA); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if got := guest.code("example.test.", dns.TypeHTTPS); got != "NOERROR 0" {
		t.Errorf("addresses that are not pinned: %s", got)
	}
	if z.asked.Load() != before {
		t.Error("the resolver heard of names that are not allowed")
	}
	if got := guest.code("private.test.", dns.TypeA); got != "REFUSED 0" {
		t.Errorf("an allowed name that leads to a private address: %s", got)
	}
	answer, err := guest.ask("udp", "a.b.example.test.", dns.TypeA)
	if err != nil || len(answer.Answer) != 1 || answer.Answer[0].Header().Ttl != uint32(pinMost/time.Second) {
		t.Errorf("an answer that outlives its pin: %v, %v", answer, err)
	}
	if n.Stats().NamesRefused != 7 || n.Traffic().Refused < 9 {
		t.Errorf("counted: %+v", n.Traffic())
	}
	if list := n.Refusals(); len(list) == 0 || list[0].Protocol != "dns" || list[0].Destination != "private.test" || !strings.Contains(list[0].Reason, "rebinding") {
		t.Errorf("remembered: %+v", list)
	}
}

// No name leads into the host's networks.
func TestEgressRebinding(t *testing.T) {
	z := &zone{records: map[string][]string{"mixed.test.": {"mixed.test. 60 IN A 10.0.0.1", "mixed.test. 60 IN A " + publicAddress}}}
	addresses := []string{"127.0.0.1", "127.9.9.9", "169.254.169.254", "10.0.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", ownAddress, mainHost, "10.78.0.1"}
	for i, addr := range addresses {
		name := fmt.Sprintf("n%d.test.", i)
		z.records[name] = []string{name + " 60 IN A " + addr}
	}
	z.records["six.test."] = []string{"six.test. 60 IN AAAA ::1", "six.test. 60 IN AAAA fd00::1"}
	z.records["opened.test."] = []string{"opened.test. 60 IN A 10.5.5.5"}
	_, guest := pair(t, Config{Resolvers: []string{startResolver(t, z.serve)}, Egress: levels(t, "internet,allow=10.5.0.0/16:80", "")})
	for i, addr := range addresses {
		if got := guest.code(fmt.Sprintf("n%d.test.", i), dns.TypeA); got != "REFUSED 0" {
			t.Errorf("a name with the address %s: %s", addr, got)
		}
	}
	if got := guest.code("six.test.", dns.TypeAAAA); got != "REFUSED 0" {
		t.Errorf("IPv6: %s", got)
	}
	answer, err := guest.ask("udp", "mixed.test.", dns.TypeA)
	if err != nil || len(answer.Answer) != 1 || answer.Answer[0].(*dns.A).A.String() != publicAddress {
		t.Errorf("a name with both: %v, %v", answer, err)
	}
	if got := guest.code("opened.test.", dns.TypeA); got != "NOERROR 1" {
		t.Errorf("a name with an address that the operator opened: %s", got)
	}
}

// A change holds for new connections at once, and cuts those that it does not permit.
func TestSetEgress(t *testing.T) {
	first, second := serveTCP(t, ownAddress+":0", echoTCP), serveTCP(t, ownAddress+":0", echoTCP)
	datagrams := serveUDPEcho(t, ownAddress+":0")
	server := "internet,allow=" + ownAddress
	n, guest := pair(t, Config{Egress: levels(t, server, "")})
	open := func(address string) net.Conn {
		conn, err := guest.dial(soon(t), address)
		if err != nil {
			t.Fatal(err)
		}
		if err := ping(conn); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	goes, stays := open(first), open(second)
	flow := guest.dialUDP(datagrams)
	checkUDPEcho(t, flow, 10)

	n.SetEgress(levels(t, server, "allow="+second))
	_ = goes.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := goes.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("the connection that is not permitted any more: %v, want a reset", err)
	}
	if err := ping(stays); err != nil {
		t.Errorf("the connection that is permitted: %v", err)
	}
	if guest.reaches(first) == nil {
		t.Error("a new connection that is not permitted was made")
	}
	eventually(t, "the UDP flow ends", func() bool { return n.Stats().UDPFlows == 0 })
	if err := guest.reaches(second); err != nil {
		t.Error(err)
	}
	n.SetEgress(levels(t, server, ""))
	if err := guest.reaches(first); err != nil {
		t.Errorf("opened again: %v", err)
	}
	_ = stays.Close()
	eventually(t, "no flow is left in the table", func() bool { return len(n.flows.list()) == 0 })
}

// A connection keeps the names by which it began: that a pin ends does not end it.
func TestSetEgressKeepsNames(t *testing.T) {
	var served string
	inPublic(t, func() { served = serveTCP(t, publicAddress+":0", echoTCP) })
	z := &zone{records: map[string][]string{"example.test.": {"example.test. 60 IN A " + publicAddress}}}
	n, guest := pair(t, Config{Resolvers: []string{startResolver(t, z.serve)}, Egress: levels(t, "", "allow=example.test")})
	guest.code("example.test.", dns.TypeA)
	conn, err := guest.dial(soon(t), served)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	n.filter.pins.mu.Lock()
	n.filter.pins.byAddr, n.filter.pins.count = nil, 0 // the time of its pin is over
	n.filter.pins.mu.Unlock()
	n.SetEgress(levels(t, "", "allow=example.test,9.9.9.9"))
	checkEcho(t, conn, 100)
	if guest.reaches(served) == nil {
		t.Error("a new connection was made without a pin")
	}
}

func TestEgressBandwidth(t *testing.T) {
	served := serveTCP(t, ownAddress+":0", func(conn *net.TCPConn) { _, _ = conn.Write(make([]byte, 1<<20)) })
	server := "internet,allow=" + ownAddress
	n, guest := pair(t, Config{Egress: levels(t, server, "inherit,bandwidth=100KiB")})
	conn, err := guest.dial(soon(t), served)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	began := time.Now()
	if _, err := io.ReadFull(conn, make([]byte, 164<<10)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 900*time.Millisecond { // 64 KiB at once, then 100 in a second
		t.Errorf("164 KiB came within %v", took)
	}
	n.SetEgress(levels(t, server, "")) // ends the waiting too
	began = time.Now()
	if got, err := io.Copy(io.Discard, conn); err != nil || got != 860<<10 {
		t.Errorf("the rest: %d, %v", got, err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("without a limit the rest took %v", took)
	}
}

func TestEgressConnectionsPerSecond(t *testing.T) {
	served := serveTCP(t, ownAddress+":0", echoTCP)
	n, guest := pair(t, Config{Egress: levels(t, "internet,connections=2,allow="+ownAddress, "")})
	began := time.Now()
	for range 4 { // two at once; the others are asked for again by the guest's TCP, and succeed
		if err := guest.reaches(served); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took < 900*time.Millisecond {
		t.Errorf("four connections within %v", took)
	}
	if n.Traffic().Limited == 0 || n.Traffic().ConnectionsOut != 4 {
		t.Errorf("%+v", n.Traffic())
	}
}

func TestTrafficCounts(t *testing.T) {
	served := serveTCP(t, ownAddress+":0", echoTCP)
	n, guest := pair(t, Config{Egress: mustPolicy(t, "", []string{ownAddress}, nil)})
	guest.listen(mainNIC, 80, echo)
	if err := guest.reaches(served); err != nil {
		t.Fatal(err)
	}
	in, err := n.DialGuest(soon(t), 80)
	if err != nil {
		t.Fatal(err)
	}
	checkEcho(t, in, 100_000)
	_ = in.Close()
	c := n.Traffic()
	if c.ConnectionsOut != 1 || c.ConnectionsIn != 1 || c.BytesOut < 100_000 || c.BytesIn < 100_000 || c.PacketsOut == 0 || c.PacketsIn == 0 {
		t.Errorf("%+v", c)
	}
}

func TestRefusals(t *testing.T) {
	var lines strings.Builder
	f := newFilter(nil, nil, slog.New(slog.NewTextHandler(&lines, nil)))
	for i := range 100 {
		f.refusals.add("tcp", fmt.Sprintf("10.0.0.%d:80", i), errors.New("private"))
	}
	f.refusals.add("tcp", "10.0.0.60:80", errors.New("private"))
	list := f.refusals.list()
	if len(list) != refusalsKept || list[0].Destination != "10.0.0.60:80" || list[0].Count != 2 || list[1].Destination != "10.0.0.99:80" {
		t.Errorf("%d refusals, the newest are %+v", len(list), list[:2])
	}
	if n := strings.Count(lines.String(), "\n"); n < 5 || n > 10 {
		t.Errorf("%d lines in the log", n)
	}
}

func TestPins(t *testing.T) {
	var p pins
	now := time.Now()
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{93, 0, byte(i >> 8), byte(i)}) }
	p.add("gone.test", addr(0), now.Add(-time.Second))
	if got := p.names(addr(0)); len(got) != 0 {
		t.Errorf("a pin whose time is over: %v", got)
	}
	for i := range pinsKept + 500 {
		p.add("a.test", addr(i), now.Add(time.Hour+time.Duration(i)*time.Second))
	}
	if p.count != pinsKept || len(p.byAddr) != pinsKept {
		t.Errorf("%d pins, %d addresses", p.count, len(p.byAddr))
	}
	if len(p.names(addr(pinsKept+499))) != 1 || len(p.names(addr(3))) != 0 {
		t.Error("not the ones that end first went")
	}
	p.add("b.test", addr(4000), now.Add(time.Hour))
	p.add("b.test", addr(4000), now.Add(time.Minute)) // a shorter answer does not end the longer one
	if got := p.names(addr(4000)); len(got) != 2 {
		t.Errorf("two names of an address: %v", got)
	}
	if d := pinTime(0); d != pinLeast+pinGrace {
		t.Errorf("an answer without time: %v", d)
	}
	if d := pinTime(1 << 31); d != pinMost+pinGrace {
		t.Errorf("an answer for ever: %v", d)
	}
}

// Whatever a resolver answers, no address of the host's networks comes through, and nothing breaks.
func FuzzScreen(f *testing.F) {
	seed := new(dns.Msg).SetQuestion("example.test.", dns.TypeA)
	for _, text := range []string{"example.test. 60 IN CNAME b.test.", "b.test. 60 IN A 127.0.0.1", "b.test. 60 IN A 93.184.216.34", "x.test. 1 IN AAAA ::1"} {
		record, err := dns.NewRR(text)
		if err != nil {
			f.Fatal(err)
		}
		seed.Answer = append(seed.Answer, record)
	}
	wire, err := seed.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wire)
	n := &Network{log: slog.New(slog.DiscardHandler)}
	n.filter = newFilter(nil, func(netip.Addr) (bool, error) { return false, nil }, n.log)
	s := &nameServer{network: n}
	rules := levels(f, "", "allow=*.test")
	f.Fuzz(func(t *testing.T, wire []byte) {
		answer := new(dns.Msg)
		if answer.Unpack(wire) != nil {
			return
		}
		query := new(dns.Msg).SetQuestion("example.test.", dns.TypeA)
		screened := s.screen(query, answer, "example.test", rules)
		if answer.Rcode != dns.RcodeSuccess {
			return
		}
		for _, record := range screened.Answer {
			if a, ok := record.(*dns.A); ok {
				if addr, ok := netip.AddrFromSlice(a.A); !ok || addr.Unmap().IsLoopback() || addr.Unmap().IsPrivate() {
					t.Fatalf("%v came through", a)
				}
			}
		}
	})
}
