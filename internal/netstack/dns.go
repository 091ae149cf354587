package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"vers/internal/fault"
)

const (
	dnsPort    = 53
	dnsTTL     = 3600 // seconds, for our own names; they never change
	dnsPeerTTL = 5    // seconds, for other VMs
	dnsMaxWait = 5 * time.Second
)

// nameServer answers the guest's DNS queries at the gateway. It asks the host's resolvers on the guest's behalf, so
// a resolver on the host's loopback works although guests cannot reach that.
//
// The policy decides which names are asked for at all. Addresses that the server does not open are taken out of answers,
// so that no name leads into the host's networks (DNS rebinding); the policy judges every flow's address besides. Addresses
// of names that rules are about are remembered (pins).
type nameServer struct {
	network    *Network
	udp, tcp   *dns.Server
	tokens     chan struct{} // one per query in flight
	configured []string
	conf       string

	mu       sync.Mutex
	servers  []string // from conf
	modified time.Time
	loaded   bool
}

func (n *Network) startNames(resolvers []string, conf string) error {
	if conf == "" {
		conf = "/etc/resolv.conf"
	}
	for _, resolver := range resolvers {
		if _, _, err := net.SplitHostPort(resolver); err != nil {
			return fault.Invalidf("resolver %q: %w; write it as host:port", resolver, err)
		}
	}
	s := &nameServer{
		network: n, configured: resolvers, conf: conf,
		tokens: make(chan struct{}, n.limits.DNSQueries),
	}
	address := tcpip.FullAddress{NIC: mainNIC, Addr: tcpipAddress(n.main.host), Port: dnsPort}
	packets, err := gonet.DialUDP(n.stack, &address, nil, ipv4.ProtocolNumber)
	if err != nil {
		return fault.New(fault.Internal, "start DNS: %w", err)
	}
	listener, err := gonet.ListenTCP(n.stack, address, ipv4.ProtocolNumber)
	if err != nil {
		_ = packets.Close()
		return fault.New(fault.Internal, "start DNS: %w", err)
	}
	// The long time-out saves a wake-up every two seconds; the socket is local and cannot break.
	s.udp = &dns.Server{PacketConn: packets, Handler: s, UDPSize: mainMTU, ReadTimeout: time.Hour}
	s.tcp = &dns.Server{Listener: netutil.LimitListener(stoppable{listener}, n.limits.DNSQueries), Handler: s}
	for _, server := range []*dns.Server{s.udp, s.tcp} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		server.MsgInvalidFunc = func([]byte, error) {}
		n.workers.Go(func() { _ = server.ActivateAndServe() })
		<-started
	}
	n.names = s
	return nil
}

// stoppable is a listener whose Close ends a waiting Accept.
type stoppable struct{ *gonet.TCPListener }

// Close ends Accept and the listener.
func (l stoppable) Close() error {
	l.Shutdown()
	return l.TCPListener.Close()
}

func (s *nameServer) close() {
	ctx, cancel := context.WithTimeout(context.Background(), dnsMaxWait)
	defer cancel()
	_ = s.udp.ShutdownContext(ctx)
	_ = s.tcp.ShutdownContext(ctx)
}

// ServeDNS answers one query.
func (s *nameServer) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	defer s.network.guard("dns")
	select {
	case s.tokens <- struct{}{}:
		defer func() { <-s.tokens }()
	default:
		return // as if lost: the client asks again
	}
	_, overUDP := w.RemoteAddr().(*net.UDPAddr)
	answer := s.answer(query, overUDP)
	if overUDP {
		size := dns.MinMsgSize
		if options := query.IsEdns0(); options != nil {
			size = max(size, int(options.UDPSize()))
		}
		answer.Truncate(size)
	}
	_ = w.WriteMsg(answer)
}

func (s *nameServer) answer(query *dns.Msg, overUDP bool) *dns.Msg {
	if query.Opcode != dns.OpcodeQuery || len(query.Question) != 1 {
		return failure(query, dns.RcodeNotImplemented)
	}
	question := query.Question[0]
	if local := s.answerLocal(query, question); local != nil {
		return local
	}
	name := plainName(question.Name)
	levels := s.network.filter.rules.Load().levels
	if err := levels.CheckName(name); err != nil {
		return s.refuse(query, name, err)
	}
	// Transfers of whole zones are for a resolver's neighbours, not for guests.
	if question.Qclass != dns.ClassINET || question.Qtype == dns.TypeAXFR || question.Qtype == dns.TypeIXFR {
		return s.refuse(query, name, errors.New("transfers and classes other than IN are not forwarded"))
	}
	if levels.ByName() && (question.Qtype == dns.TypeHTTPS || question.Qtype == dns.TypeSVCB || question.Qtype == dns.TypeANY) {
		return failure(query, dns.RcodeSuccess) // no data: their addresses would not be pinned
	}
	return s.screen(query, s.forward(query, overUDP), name, levels)
}

// plainName is a name as rules have it.
func plainName(name string) string { return strings.TrimSuffix(strings.ToLower(name), ".") }

// refuse answers REFUSED, with the reason in a form that clients can show (RFC 8914).
func (s *nameServer) refuse(query *dns.Msg, name string, reason error) *dns.Msg {
	s.network.refuse(protocolDNS, name, reason)
	answer := failure(query, dns.RcodeRefused)
	if options := query.IsEdns0(); options != nil {
		answer.SetEdns0(mainMTU, false)
		answer.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeProhibited, ExtraText: reason.Error()}}
	}
	return answer
}

func failure(query *dns.Msg, code int) *dns.Msg {
	answer := new(dns.Msg).SetRcode(query, code)
	answer.RecursionAvailable = true
	return answer
}

// answerLocal knows the names that exist inside a VM's network only; nobody outside is asked about that zone.
func (s *nameServer) answerLocal(query *dns.Msg, question dns.Question) *dns.Msg {
	name := strings.ToLower(question.Name)
	if name != internalZone && !strings.HasSuffix(name, "."+internalZone) {
		return nil
	}
	addresses, ttl := []netip.Addr{s.network.main.host}, uint32(dnsTTL)
	if name != mainHostname {
		addresses, ttl = s.network.peers.named(plainName(strings.TrimSuffix(name, "."+internalZone))), dnsPeerTTL
	}
	if len(addresses) == 0 {
		return failure(query, dns.RcodeNameError)
	}
	answer := failure(query, dns.RcodeSuccess)
	answer.Authoritative = true
	if question.Qtype != dns.TypeA && question.Qtype != dns.TypeANY {
		return answer
	}
	for _, addr := range addresses {
		answer.Answer = append(answer.Answer, &dns.A{
			Hdr: dns.RR_Header{Name: question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl},
			A:   net.IP(addr.AsSlice()),
		})
	}
	return answer
}

// forward asks the resolvers one after the other. Without any answer the guest gets SERVFAIL soon, so that programs
// report the failure and do not hang.
func (s *nameServer) forward(query *dns.Msg, overUDP bool) *dns.Msg {
	ctx, cancel := context.WithTimeout(s.network.ctx, dnsMaxWait)
	defer cancel()
	client := &dns.Client{Net: "udp", Timeout: s.network.limits.DNSTimeout}
	if !overUDP {
		client.Net = "tcp"
	}
	// The resolver gets an identifier of ours: a guest's may be known to others.
	asked := query.Copy()
	asked.Id = dns.Id()
	for _, server := range s.resolvers() {
		answer, _, err := client.ExchangeContext(ctx, asked, server)
		if err != nil {
			s.network.log.Debug("network: resolver failed", "resolver", server, "reason", err)
			continue
		}
		// A resolver that cannot or will not (SERVFAIL, REFUSED) leaves the question to the next one.
		if answer.Rcode == dns.RcodeServerFailure || answer.Rcode == dns.RcodeRefused {
			continue
		}
		if len(answer.Question) != 1 || !sameQuestion(answer.Question[0], asked.Question[0]) {
			continue
		}
		answer.Id = query.Id
		return answer
	}
	return failure(query, dns.RcodeServerFailure)
}

func sameQuestion(a, b dns.Question) bool {
	return strings.EqualFold(a.Name, b.Name) && a.Qtype == b.Qtype && a.Qclass == b.Qclass
}

// resolvers returns the servers to ask, from the configuration or from the host's file, which is read again when it
// has changed (a laptop changes its network).
func (s *nameServer) resolvers() []string {
	if len(s.configured) > 0 {
		return s.configured
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	info, err := os.Stat(s.conf)
	if err != nil {
		return nil
	}
	if s.loaded && info.ModTime().Equal(s.modified) {
		return s.servers
	}
	config, err := dns.ClientConfigFromFile(s.conf)
	if err != nil {
		s.network.log.Debug("network: cannot read the host's resolvers", "file", s.conf, "reason", err)
		return nil
	}
	s.servers = nil
	for _, server := range config.Servers {
		s.servers = append(s.servers, net.JoinHostPort(server, config.Port))
	}
	s.loaded, s.modified = true, info.ModTime()
	return s.servers
}
