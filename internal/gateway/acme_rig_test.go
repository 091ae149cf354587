package gateway_test

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
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

	"vers/internal/gateway"
)

// pebble is Let's Encrypt's own ACME server for tests, with a DNS server in which all names lead to this machine.
type pebble struct {
	t        *testing.T
	web      *httptest.Server
	dns      *dnsServer
	validity uint64 // seconds
	eab      string // id of the account that others must belong to
	ready    chan struct{}
	handler  http.Handler
	ca       *ca.CAImpl
	db       *db.MemoryStore

	mu     sync.Mutex
	orders map[string]int // by name
}

func newPebble(t *testing.T, validity uint64) *pebble {
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	p := &pebble{t: t, dns: newDNSServer(t), validity: validity, ready: make(chan struct{}), orders: map[string]int{}}
	p.web = httptest.NewTLSServer(p)
	t.Cleanup(p.web.Close)
	return p
}

// options let a gateway use the server.
func (p *pebble) options(o *gateway.Options) {
	root := filepath.Join(p.t.TempDir(), "root.pem")
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.web.Certificate().Raw})
	if err := os.WriteFile(root, data, 0o600); err != nil {
		p.t.Fatal(err)
	}
	o.ACME = &gateway.ACME{Directory: p.web.URL + wfe.DirectoryPath, Root: root, Email: "operator@example.org"}
}

const eabKey = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"

// requireEAB refuses all accounts that do not belong to one; the answer is the file of its key.
func (p *pebble) requireEAB(id string) (keyFile string) {
	p.eab = id
	keyFile = filepath.Join(p.t.TempDir(), "eab.key")
	if err := os.WriteFile(keyFile, []byte(eabKey+"\n"), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return keyFile
}

// validates says at which port names are looked for. Requests wait until then.
func (p *pebble) validates(address string) {
	_, text, _ := net.SplitHostPort(address)
	port, _ := strconv.Atoi(text)
	quiet := log.New(io.Discard, "", 0)
	p.db = db.NewMemoryStore()
	if p.eab != "" {
		if err := p.db.AddExternalAccountKeyByID(p.eab, eabKey); err != nil {
			p.t.Fatal(err)
		}
	}
	p.ca = ca.New(quiet, p.db, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {ValidityPeriod: p.validity}})
	front := wfe.New(quiet, p.db, va.New(quiet, 1, port, true, p.dns.address, p.db), p.ca, []string{"pebble.example"}, true, p.eab != "", 1, 1)
	p.handler = front.Handler()
	close(p.ready)
}

// ServeHTTP counts orders by what they are for.
func (p *pebble) ServeHTTP(w http.ResponseWriter, r *http.Request) {
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

func (p *pebble) ordered(name string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.orders[name]
}

func (p *pebble) allOrders() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := 0
	for _, n := range p.orders {
		all += n
	}
	return all
}

// roots trust the server and nothing else.
func (p *pebble) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.ca.GetRootCert(0).Cert)
	return pool
}

// tsigKey is what the DNS server takes updates with.
const (
	tsigName   = "vers."
	tsigSecret = "c2l4dGVlbiBieXRlcyBhbmQgc29tZSBtb3JlIQ=="
)

// dnsServer has one zone, example.org, that takes updates; all other names have this machine's address.
type dnsServer struct {
	address string

	mu  sync.Mutex
	txt map[string][]string
}

const dnsZone = "example.org."

func newDNSServer(t *testing.T) *dnsServer {
	t.Helper()
	s := &dnsServer{txt: map[string][]string{}}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = tcp.Addr().String()
	udp, err := net.ListenPacket("udp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []*dns.Server{{Listener: tcp}, {PacketConn: udp}} {
		server.Handler = s
		server.TsigSecret = map[string]string{tsigName: tsigSecret}
		server.MsgAcceptFunc = func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept } // updates too
		go server.ActivateAndServe()
		t.Cleanup(func() { server.Shutdown() })
	}
	return s
}

// ServeDNS implements dns.Handler.
func (s *dnsServer) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
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

func (s *dnsServer) header(r *dns.Msg, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: r.Question[0].Name, Rrtype: kind, Class: dns.ClassINET, Ttl: 1}
}

// update adds a record, or removes it (class NONE, RFC 2136, 2.5).
func (s *dnsServer) update(name string, record *dns.TXT) {
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

func (s *dnsServer) records() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, texts := range s.txt {
		n += len(texts)
	}
	return n
}
