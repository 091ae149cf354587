package netstack

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"vers/internal/egress"
)

// startResolver runs a real DNS server on the host's loopback, UDP and TCP.
func startResolver(t *testing.T, handle dns.HandlerFunc) string {
	t.Helper()
	packets, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp4", packets.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []*dns.Server{{PacketConn: packets, Handler: handle}, {Listener: listener, Handler: handle}} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go func() { _ = server.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = server.Shutdown() })
	}
	return packets.LocalAddr().String()
}

func answerWith(records ...string) dns.HandlerFunc {
	return func(w dns.ResponseWriter, query *dns.Msg) {
		answer := new(dns.Msg).SetReply(query)
		for _, text := range records {
			record, err := dns.NewRR(text)
			if err != nil {
				panic(err)
			}
			answer.Answer = append(answer.Answer, record)
		}
		if _, overUDP := w.RemoteAddr().(*net.UDPAddr); overUDP {
			answer.Truncate(dns.MinMsgSize)
		}
		_ = w.WriteMsg(answer)
	}
}

// ask sends a query from the guest to the gateway.
func (g *testGuest) ask(network, name string, kind uint16) (*dns.Msg, error) {
	g.t.Helper()
	query := new(dns.Msg).SetQuestion(name, kind)
	conn := &dns.Conn{}
	if network == "tcp" {
		stream, err := g.dial(soon(g.t), mainHost+":53")
		if err != nil {
			return nil, err
		}
		conn.Conn = stream
	} else {
		// dns.Conn takes what is a net.PacketConn for UDP.
		conn.Conn = g.dialUDP(mainHost + ":53")
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if err := conn.WriteMsg(query); err != nil {
		return nil, err
	}
	answer, err := conn.ReadMsg()
	if err == nil && answer.Id != query.Id {
		err = fmt.Errorf("answer %d to query %d", answer.Id, query.Id)
	}
	return answer, err
}

func TestDNS(t *testing.T) {
	records := []string{"example.test. 60 IN A 93.184.216.34", "example.test. 60 IN A 10.0.0.1"}
	for i := range 60 {
		records = append(records, fmt.Sprintf("example.test. 60 IN TXT \"%d a long answer that does not fit\"", i))
	}
	resolver := startResolver(t, answerWith(records...))
	_, guest := pair(t, Config{Resolvers: []string{resolver}})

	overTCP, err := guest.ask("tcp", "example.test.", dns.TypeANY)
	if err != nil || overTCP.Truncated || len(overTCP.Answer) != len(records)-1 {
		t.Errorf("TCP: %v, %v", overTCP, err)
	}
	overUDP, err := guest.ask("udp", "example.test.", dns.TypeA)
	if err != nil || !overUDP.Truncated || overUDP.Rcode != dns.RcodeSuccess {
		t.Errorf("UDP: %v, %v", overUDP, err)
	}
	// A private address is taken out of the answer; the forwarder refuses it besides.
	for _, record := range overTCP.Answer {
		if a, ok := record.(*dns.A); ok && a.A.String() != "93.184.216.34" {
			t.Errorf("the guest was told %s", a)
		}
	}
	if _, err := guest.dial(soon(t), "10.0.0.1:80"); err == nil {
		t.Error("the rebound address was reached")
	}
	if answer, err := guest.ask("udp", "example.test.", dns.TypeAXFR); err != nil || answer.Rcode != dns.RcodeRefused {
		t.Errorf("zone transfer: %v, %v", answer, err)
	}
}

func TestDNSLocalNames(t *testing.T) {
	var asked atomic.Int32
	resolver := startResolver(t, func(w dns.ResponseWriter, query *dns.Msg) {
		asked.Add(1)
		answerWith()(w, query)
	})
	_, guest := pair(t, Config{Resolvers: []string{resolver}, Egress: egress.Levels{{Policy: egress.Policy{Mode: egress.ModeNone}}}})
	tests := []struct {
		name    string
		kind    uint16
		code    int
		address string
	}{
		{"gateway.vers.internal.", dns.TypeA, dns.RcodeSuccess, mainHost},
		{"Gateway.Vers.Internal.", dns.TypeA, dns.RcodeSuccess, mainHost},
		{"gateway.vers.internal.", dns.TypeAAAA, dns.RcodeSuccess, ""},
		{"other.vers.internal.", dns.TypeA, dns.RcodeNameError, ""},
		{"vers.internal.", dns.TypeSOA, dns.RcodeNameError, ""},
		{"example.test.", dns.TypeA, dns.RcodeRefused, ""}, // policy none
	}
	for _, tt := range tests {
		answer, err := guest.ask("udp", tt.name, tt.kind)
		if err != nil || answer.Rcode != tt.code || (tt.address != "") != (len(answer.Answer) == 1) {
			t.Errorf("%s: %v, %v", tt.name, answer, err)
			continue
		}
		if tt.address != "" && answer.Answer[0].(*dns.A).A.String() != tt.address {
			t.Errorf("%s: %v", tt.name, answer.Answer)
		}
	}
	if asked.Load() != 0 {
		t.Errorf("the resolver was asked %d times", asked.Load())
	}
}

func TestDNSFailures(t *testing.T) {
	// A resolver that says nothing, one that is not there, one that fails.
	silent := startResolver(t, func(dns.ResponseWriter, *dns.Msg) {})
	failing := startResolver(t, func(w dns.ResponseWriter, query *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(query, dns.RcodeServerFailure))
	})
	good := startResolver(t, answerWith("example.test. 60 IN A 93.184.216.34"))
	limits := Limits{DNSTimeout: 200 * time.Millisecond}

	_, guest := pair(t, Config{Resolvers: []string{silent, "127.0.0.1:1", failing}, Limits: limits})
	start := time.Now()
	if answer, err := guest.ask("udp", "example.test.", dns.TypeA); err != nil || answer.Rcode != dns.RcodeServerFailure {
		t.Errorf("no resolver answers: %v, %v", answer, err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("SERVFAIL took %v", took)
	}
	_, second := pair(t, Config{Resolvers: []string{silent, failing, good}, Limits: limits})
	if answer, err := second.ask("udp", "example.test.", dns.TypeA); err != nil || len(answer.Answer) != 1 {
		t.Errorf("the third resolver answers: %v, %v", answer, err)
	}
	_, none := pair(t, Config{ResolvConf: "/nonexistent/resolv.conf"})
	if answer, err := none.ask("udp", "example.test.", dns.TypeA); err != nil || answer.Rcode != dns.RcodeServerFailure {
		t.Errorf("no resolv.conf: %v, %v", answer, err)
	}
}

// The host's file is followed when it changes.
func TestDNSResolvConf(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string, at time.Time) {
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(conf, at, at); err != nil {
			t.Fatal(err)
		}
	}
	s := &nameServer{conf: conf}
	write("search lan\nnameserver 127.0.0.53\nnameserver ::1\n", time.Unix(1e9, 0))
	if diff := cmp.Diff([]string{"127.0.0.53:53", "[::1]:53"}, s.resolvers()); diff != "" {
		t.Error(diff)
	}
	write("nameserver 10.255.0.1\n", time.Unix(2e9, 0))
	if diff := cmp.Diff([]string{"10.255.0.1:53"}, s.resolvers()); diff != "" {
		t.Error(diff)
	}
}

// rawUDP puts a UDP datagram on the wire as a DHCP client does, before it has an address.
func (w *wire) rawUDP(source, destination [4]byte, payload []byte) {
	udpLength := header.UDPMinimumSize + len(payload)
	frame := make([]byte, header.EthernetMinimumSize+header.IPv4MinimumSize+udpLength)
	header.Ethernet(frame).Encode(&header.EthernetFields{
		SrcAddr: w.guestLinkAddress(), DstAddr: header.EthernetBroadcastAddress, Type: header.IPv4ProtocolNumber,
	})
	ip := header.IPv4(frame[header.EthernetMinimumSize:])
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(header.IPv4MinimumSize + udpLength), TTL: 64, Protocol: uint8(header.UDPProtocolNumber),
		SrcAddr: tcpip.AddrFrom4(source), DstAddr: tcpip.AddrFrom4(destination),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	datagram := header.UDP(ip.Payload())
	datagram.Encode(&header.UDPFields{SrcPort: dhcpClientPort, DstPort: dhcpServerPort, Length: uint16(udpLength)})
	copy(datagram.Payload(), payload)
	w.send(frame)
}

func (w *wire) awaitDHCP() (*dhcpv4.DHCPv4, tcpip.Address) {
	w.t.Helper()
	var reply *dhcpv4.DHCPv4
	var to tcpip.Address
	w.await("a DHCP reply", func(frame []byte) bool {
		ip := header.IPv4(frame[header.EthernetMinimumSize:])
		if header.Ethernet(frame).Type() != header.IPv4ProtocolNumber || ip.TransportProtocol() != header.UDPProtocolNumber ||
			header.UDP(ip.Payload()).DestinationPort() != dhcpClientPort {
			return false
		}
		var err error
		if reply, err = dhcpv4.FromBytes(header.UDP(ip.Payload()).Payload()); err != nil {
			w.t.Fatal(err)
		}
		to = ip.DestinationAddress()
		return true
	})
	return reply, to
}

func TestDHCP(t *testing.T) {
	n, guest := pair(t, Config{})
	w := guest.main()
	mac := net.HardwareAddr(w.guestMAC[:])
	discover, err := dhcpv4.NewDiscovery(mac)
	if err != nil {
		t.Fatal(err)
	}
	broadcast := [4]byte{255, 255, 255, 255}
	w.rawUDP([4]byte{}, broadcast, discover.ToBytes())
	offer, _ := w.awaitDHCP()
	if offer.MessageType() != dhcpv4.MessageTypeOffer || offer.YourIPAddr.String() != mainGuest {
		t.Fatalf("offer: %s", offer.Summary())
	}
	request, err := dhcpv4.NewRequestFromOffer(offer)
	if err != nil {
		t.Fatal(err)
	}
	w.rawUDP([4]byte{}, broadcast, request.ToBytes())
	ack, _ := w.awaitDHCP()
	mtu, _ := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options)
	if ack.MessageType() != dhcpv4.MessageTypeAck || ack.YourIPAddr.String() != mainGuest ||
		ack.Router()[0].String() != mainHost || ack.DNS()[0].String() != mainHost || mtu != mainMTU ||
		ack.SubnetMask().String() != "ffffff00" || ack.IPAddressLeaseTime(0) != dhcpLease {
		t.Errorf("ack: %s", ack.Summary())
	}

	// Renewal comes from the address and goes back to it.
	renew, _ := dhcpv4.NewRequestFromOffer(offer)
	renew.ClientIPAddr = net.ParseIP(mainGuest)
	renew.Options.Del(dhcpv4.OptionRequestedIPAddress)
	renew.Options.Del(dhcpv4.OptionServerIdentifier)
	w.rawUDP(w.guest.As4(), w.host.As4(), renew.ToBytes())
	if ack, to := w.awaitDHCP(); ack.MessageType() != dhcpv4.MessageTypeAck || to != tcpipAddress(w.guest) {
		t.Errorf("renewal: %s to %s", ack.Summary(), to)
	}

	// A client that remembers another network's address is told to forget it.
	other, _ := dhcpv4.New(dhcpv4.WithHwAddr(mac), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest),
		dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(192, 168, 1, 5))))
	w.rawUDP([4]byte{}, broadcast, other.ToBytes())
	if nak, _ := w.awaitDHCP(); nak.MessageType() != dhcpv4.MessageTypeNak {
		t.Errorf("foreign address: %s", nak.Summary())
	}

	// Somebody else's MAC gets nothing. Proof by order: the next answer belongs to the next request.
	stranger, _ := dhcpv4.NewDiscovery(net.HardwareAddr{2, 0, 0, 0, 0, 9})
	w.rawUDP([4]byte{}, broadcast, stranger.ToBytes())
	w.rawUDP([4]byte{}, broadcast, []byte("rubbish"))
	again, _ := dhcpv4.NewDiscovery(mac)
	w.rawUDP([4]byte{}, broadcast, again.ToBytes())
	if offer, _ := w.awaitDHCP(); offer.TransactionID != again.TransactionID {
		t.Errorf("answer to %s, want %s", offer.TransactionID, again.TransactionID)
	}
	if n.Stats().FramesSpoofed != 0 {
		t.Error("DHCP was taken for spoofing")
	}
}

func FuzzDHCP(f *testing.F) {
	s := mainSide()
	discover, err := dhcpv4.NewDiscovery(net.HardwareAddr(s.guestMAC[:]))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(discover.ToBytes())
	f.Fuzz(func(_ *testing.T, packet []byte) { s.answerDHCP(packet) })
}
