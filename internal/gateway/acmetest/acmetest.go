// Package acmetest has what certificates of an ACME server are tested with: Let's Encrypt's own server for tests, and a DNS
// server that takes updates. Tests that use it cannot be parallel.
package acmetest

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
)

// Server is an ACME server (pebble), with a DNS server in which all names lead to this machine.
type Server struct {
	DNS *DNS

	t        testing.TB
	web      *httptest.Server
	validity uint64 // seconds
	eab      string // id of the account that others must belong to
	ready    chan struct{}
	handler  http.Handler
	ca       *ca.CAImpl
	db       *db.MemoryStore

	mu     sync.Mutex
	orders map[string]int // by name
}

// New starts a server whose certificates are good for so many seconds. It ends with the test.
func New(t testing.TB, validity uint64) *Server {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	p := &Server{t: t, DNS: newDNS(t), validity: validity, ready: make(chan struct{}), orders: map[string]int{}}
	p.web = httptest.NewTLSServer(p)
	t.Cleanup(p.Close)
	return p
}

// Close ends the server.
func (p *Server) Close() { p.web.Close() }

// Directory is the address of the server's directory.
func (p *Server) Directory() string { return p.web.URL + wfe.DirectoryPath }

// Root is a file with what signs the directory's own certificate.
func (p *Server) Root() string {
	p.t.Helper()
	return p.file("root.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.web.Certificate().Raw})))
}

func (p *Server) file(name, text string) string {
	p.t.Helper()
	path := filepath.Join(p.t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return path
}

const eabKey = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"

// RequireEAB refuses accounts that do not belong to the one with this id; the answer is the file of its key.
func (p *Server) RequireEAB(id string) (keyFile string) {
	p.t.Helper()
	p.eab = id
	return p.file("eab.key", eabKey+"\n")
}

// Validates says at which port names are looked for. Requests wait until then.
func (p *Server) Validates(address string) {
	_, text, _ := net.SplitHostPort(address)
	port, _ := strconv.Atoi(text)
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	p.db = db.NewMemoryStore()
	if p.eab != "" {
		if err := p.db.AddExternalAccountKeyByID(p.eab, eabKey); err != nil {
			p.t.Fatal(err)
		}
	}
	p.ca = ca.New(quiet, p.db, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {ValidityPeriod: p.validity}})
	front := wfe.New(quiet, p.db, va.New(quiet, 1, port, true, p.DNS.Address, p.db), p.ca, []string{"pebble.example"}, true, p.eab != "", 1, 1)
	p.handler = front.Handler()
	close(p.ready)
}

// ServeHTTP counts orders by what they are for.
func (p *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	<-p.ready
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	w2 := httptest.NewRecorder()
	p.handler.ServeHTTP(w2, r)
	if r.URL.Path == "/order-plz" && w2.Code == http.StatusCreated {
		var jws struct{ Payload string }
		_ = json.Unmarshal(body, &jws)
		payload, _ := base64.RawURLEncoding.DecodeString(jws.Payload)
		var order struct{ Identifiers []struct{ Value string } }
		_ = json.Unmarshal(payload, &order)
		p.mu.Lock()
		for _, identifier := range order.Identifiers {
			p.orders[identifier.Value]++
		}
		p.mu.Unlock()
	}
	for key, values := range w2.Header() {
		w.Header()[key] = values
	}
	w.WriteHeader(w2.Code)
	_, _ = w.Write(w2.Body.Bytes())
}

// Ordered is how many orders there were for a name.
func (p *Server) Ordered(name string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.orders[name]
}

// Orders is how many orders there were.
func (p *Server) Orders() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := 0
	for _, n := range p.orders {
		all += n
	}
	return all
}

// Roots trust the certificates of the server and nothing else.
func (p *Server) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.ca.GetRootCert(0).Cert)
	return pool
}

// The key that the DNS server takes updates with.
const (
	tsigName   = "vers."
	tsigSecret = "c2l4dGVlbiBieXRlcyBhbmQgc29tZSBtb3JlIQ=="
)

// TSIG is a file with the key that the DNS server takes updates with.
func (p *Server) TSIG() string {
	p.t.Helper()
	return p.file("tsig.key", "key \""+strings.TrimSuffix(tsigName, ".")+"\" {\n\talgorithm hmac-sha256;\n\tsecret \""+tsigSecret+"\";\n};\n")
}

// DNS has one zone, example.org, that takes updates; all other names have this machine's address.
type DNS struct {
	Address string

	mu  sync.Mutex
	txt map[string][]string
}

const dnsZone = "example.org."

func newDNS(t testing.TB) *DNS {
	t.Helper()
	s := &DNS{txt: map[string][]string{}}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Address = tcp.Addr().String()
	udp, err := net.ListenPacket("udp", s.Address)
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []*dns.Server{{Listener: tcp}, {PacketConn: udp}} {
		server.Handler = s
		server.TsigSecret = map[string]string{tsigName: tsigSecret}
		server.MsgAcceptFunc = func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept } // updates too
		go func() { _ = server.ActivateAndServe() }()
		t.Cleanup(func() { _ = server.Shutdown() })
	}
	return s
}

// ServeDNS implements dns.Handler.
func (s *DNS) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := new(dns.Msg).SetReply(r)
	m.Authoritative = true
	switch {
	case r.Opcode == dns.OpcodeUpdate:
		if r.IsTsig() == nil || w.TsigStatus() != nil || r.Question[0].Name != dnsZone {
			m.Rcode = dns.RcodeRefused
			break
		}
		for _, rr := range r.Ns {
			if record, ok := rr.(*dns.TXT); ok {
				s.update(strings.ToLower(record.Hdr.Name), record)
			}
		}
		m.SetTsig(tsigName, dns.HmacSHA256, 300, int64(r.IsTsig().TimeSigned))
	case r.Question[0].Qtype == dns.TypeA:
		m.Answer = []dns.RR{&dns.A{Hdr: s.header(r, dns.TypeA), A: net.IPv4(127, 0, 0, 1)}}
	case r.Question[0].Qtype == dns.TypeSOA && strings.EqualFold(r.Question[0].Name, dnsZone):
		m.Answer = []dns.RR{&dns.SOA{Hdr: s.header(r, dns.TypeSOA), Ns: "ns." + dnsZone, Mbox: "operator." + dnsZone, Serial: 1, Minttl: 1}}
	case r.Question[0].Qtype == dns.TypeTXT:
		for _, text := range s.txt[strings.ToLower(r.Question[0].Name)] {
			m.Answer = append(m.Answer, &dns.TXT{Hdr: s.header(r, dns.TypeTXT), Txt: []string{text}})
		}
	}
	_ = w.WriteMsg(m)
}

func (s *DNS) header(r *dns.Msg, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: r.Question[0].Name, Rrtype: kind, Class: dns.ClassINET, Ttl: 1}
}

// update adds a record, or removes it (class NONE, RFC 2136, 2.5).
func (s *DNS) update(name string, record *dns.TXT) {
	text := strings.Join(record.Txt, "")
	if record.Hdr.Class == dns.ClassINET {
		s.txt[name] = append(s.txt[name], text)
		return
	}
	var kept []string
	for _, t := range s.txt[name] {
		if t != text {
			kept = append(kept, t)
		}
	}
	s.txt[name] = kept
}

// Records is how many TXT records there are.
func (s *DNS) Records() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, texts := range s.txt {
		n += len(texts)
	}
	return n
}
