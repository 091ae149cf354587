package gateway_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vers/internal/gateway"
	"vers/internal/gateway/acmetest"
	"vers/internal/machine/machinetest"
	"vers/internal/registry"
)

const day = 24 * 60 * 60

// use lets a gateway have its certificates from an ACME server.
func use(p *acmetest.Server) func(*gateway.Options) {
	return func(o *gateway.Options) {
		o.ACME = &gateway.ACME{Directory: p.Directory(), Root: p.Root(), Email: "operator@example.org"}
	}
}

// domain gives a VM a name.
func (r *rig) domain(vmID, name string) string {
	r.t.Helper()
	d, err := r.registry.CreateDomain(r.t.Context(), r.Acme.OrgID, name, registry.DomainTarget{VMID: vmID, Public: true})
	r.must(err)
	return d.ID
}

// certificate gives what a name's handshake shows, verified.
func (r *rig) certificate(host string, roots *x509.CertPool) (*x509.Certificate, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: machinetest.Patience}, Config: &tls.Config{ServerName: host, RootCAs: roots,
		NextProtos: []string{"h2", "http/1.1"}}} // as browsers do
	conn, err := d.DialContext(r.t.Context(), "tcp", r.tls)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// trusted waits until a name has a certificate of these roots.
func (r *rig) trusted(host string, roots *x509.CertPool) (c *x509.Certificate) {
	r.t.Helper()
	r.soon(host+" is trusted", func() (ok bool) {
		var err error
		c, err = r.certificate(host, roots)
		return err == nil
	})
	return c
}

func TestACME(t *testing.T) {
	before := acmeGoroutines()
	p := acmetest.New(t, 90*day)
	r := newRig(t, use(p))
	p.Validates(r.tls)
	vm := r.Run(t)
	r.domain(vm.ID, "app.acme.example")
	first := r.trusted("app.acme.example", p.Roots())
	if first.DNSNames[0] != "app.acme.example" {
		t.Errorf("certificate for %v", first.DNSNames)
	}
	r.trusted("api.example.org", p.Roots())

	// Names that are not ours to prove, or lead nowhere, cost no order.
	ordered := p.Orders()
	vmHost := vm.ID + ".vm.example.org"
	r.trusted(vmHost, r.roots())
	for _, nowhere := range []string{"nowhere.acme.example", "00000000-0000-4000-8000-000000000000.vm.example.org"} {
		if _, err := r.certificate(nowhere, p.Roots()); err == nil {
			t.Errorf("%s is connected", nowhere)
		}
	}
	for _, name := range []string{"app.acme.example", "nowhere.acme.example"} {
		c := tls.Client(r.dial(), &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"acme-tls/1"}})
		if err := c.HandshakeContext(t.Context()); err == nil {
			t.Errorf("a challenge for %s, which was not asked for, is answered", name)
		}
		c.Close()
	}
	r.checkFiles(filepath.Join(r.options.Dir, "acme"))

	// After a restart there is no ACME server, and no need for one.
	r.gateway.Close()
	p.Close()
	r.start()
	if again := r.trusted("app.acme.example", p.Roots()); again.SerialNumber.Cmp(first.SerialNumber) != 0 {
		t.Error("another certificate after a restart")
	}
	r.trusted("api.example.org", p.Roots())
	if n := p.Orders(); n != ordered || p.Ordered("app.acme.example") != 1 {
		t.Errorf("%d orders, %d were needed", n, ordered)
	}
	r.gateway.Close()
	r.soon("certmagic's goroutines are gone", func() bool { return acmeGoroutines() <= before })
}

func (r *rig) dial() net.Conn {
	r.t.Helper()
	conn, err := (&net.Dialer{}).DialContext(r.t.Context(), "tcp", r.tls)
	r.must(err)
	return conn
}

// checkFiles fails the test if anybody but the owner can read what is in a folder.
func (r *rig) checkFiles(dir string) {
	r.t.Helper()
	keys := 0
	r.must(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a lock
		}
		if d.IsDir() && info.Mode().Perm() != 0o700 {
			r.t.Errorf("%s is %v", path, info.Mode())
		}
		if filepath.Ext(path) == ".key" {
			keys++
			if info.Mode().Perm() != 0o600 {
				r.t.Errorf("%s is %v", path, info.Mode())
			}
		}
		return err
	}))
	if keys != 3 {
		r.t.Errorf("%d keys, want those of the account, the domain and the API", keys)
	}
}

// acmeGoroutines counts those of certmagic. Its limit on orders per account lives as long as the process.
func acmeGoroutines() int {
	buf := make([]byte, 8<<20)
	n := 0
	for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "certmagic") && !strings.Contains(stack, "RingBufferRateLimiter") {
			n++
		}
	}
	return n
}

// A certificate is replaced in time while the gateway runs, as long as its name leads somewhere.
func TestACMERenewal(t *testing.T) {
	p := acmetest.New(t, 15)
	r := newRig(t, use(p), func(o *gateway.Options) { o.ACME.Check = 100 * time.Millisecond })
	p.Validates(r.tls)
	vm := r.Run(t)
	const kept, gone = "kept.acme.example", "gone.acme.example"
	r.domain(vm.ID, kept)
	id := r.domain(vm.ID, gone)
	first := r.trusted(kept, p.Roots())
	r.trusted(gone, p.Roots())
	r.must(r.registry.DeleteDomain(t.Context(), r.Acme.OrgID, id))
	if _, err := r.certificate(gone, p.Roots()); err == nil {
		t.Error("a domain that was deleted is connected")
	}
	r.soon("the certificate is renewed", func() bool {
		c, err := r.certificate(kept, p.Roots())
		return err == nil && c.SerialNumber.Cmp(first.SerialNumber) != 0
	})
	r.soon("the deleted domain's is to be renewed", func() bool {
		return strings.Contains(r.log.String(), "leads nowhere any more: its certificate is not renewed\" name="+gone)
	})
	n := p.Ordered(gone)
	second := r.trusted(kept, p.Roots())
	r.soon("the certificate is renewed once more", func() bool {
		c, err := r.certificate(kept, p.Roots())
		return err == nil && c.SerialNumber.Cmp(second.SerialNumber) != 0
	})
	if more := p.Ordered(gone) - n; more != 0 {
		t.Errorf("%d orders for a domain that was deleted", more)
	}
}

// Without the ACME server, or when it refuses, connections go on, and it is not asked each time.
func TestACMEFails(t *testing.T) {
	var asked atomic.Int32
	down := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		http.Error(w, "down", http.StatusForbidden)
	}))
	t.Cleanup(down.Close)
	p := acmetest.New(t, 90*day)
	unreachable := httptest.NewServer(http.NotFoundHandler())
	unreachable.Close()
	for _, tt := range []struct {
		name   string
		set    func(o *gateway.Options)
		orders func() int
		log    string
	}{
		{"unreachable", func(o *gateway.Options) { o.ACME = &gateway.ACME{Directory: unreachable.URL} }, func() int { return 0 }, "connection refused"},
		{"down", func(o *gateway.Options) { o.ACME = &gateway.ACME{Directory: down.URL} }, func() int { return int(asked.Load()) }, "403"},
		{"refuses", use(p), func() int { return p.Ordered("refuses.acme.example") }, "unauthorized"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := tt.name + ".acme.example"
			r := newRig(t, tt.set, func(o *gateway.Options) { o.APIHost = "" })
			if tt.name == "refuses" {
				p.Validates("127.0.0.1:1") // where nothing listens
			}
			r.domain(r.Run(t).ID, host)
			r.trusted(host, r.roots())
			r.soon("the reason is logged", func() bool {
				return strings.Contains(r.log.String(), "level=WARN") && strings.Contains(r.log.String(), "name="+host) && strings.Contains(r.log.String(), tt.log)
			})
			n := tt.orders()
			for range 20 {
				r.trusted(host, r.roots())
			}
			if tt.orders() != n {
				t.Errorf("the ACME server was asked %d times more", tt.orders()-n)
			}
		})
	}
}

// With a DNS server that takes updates, VMs share a wildcard. This ACME server knows only accounts that it has given out.
func TestACMEByDNS(t *testing.T) {
	p := acmetest.New(t, 90*day)
	r := newRig(t, use(p), func(o *gateway.Options) {
		o.ACME.EAB, o.ACME.EABKey = "operator", p.RequireEAB("operator")
		o.ACME.DNSServer, o.ACME.DNSKey, o.ACME.Resolvers = p.DNS.Address, p.TSIG(), []string{p.DNS.Address}
	})
	p.Validates(r.tls)
	vm, other := r.Run(t), r.Run(t)
	r.domain(vm.ID, "app.dns.example")
	r.trusted(vm.ID+".vm.example.org", p.Roots())
	r.trusted("api.example.org", p.Roots())
	r.trusted("3000-"+other.ID+".vm.example.org", p.Roots())
	r.trusted("app.dns.example", p.Roots()) // as without DNS
	if p.Ordered("*.vm.example.org") != 1 || p.Orders() != 3 {
		t.Errorf("%d orders, %d of them for VMs", p.Orders(), p.Ordered("*.vm.example.org"))
	}
	r.soon("the records are removed", func() bool { return p.DNS.Records() == 0 })
	r.gateway.Close()
	p.Close()
	r.start()
	r.trusted(vm.ID+".vm.example.org", p.Roots())
}

// One organisation cannot use up what the server may order.
func TestACMEOrders(t *testing.T) {
	down := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(down.Close)
	r := newRig(t, func(o *gateway.Options) { o.ACME = &gateway.ACME{Directory: down.URL}; o.APIHost = "" })
	vm := r.Run(t)
	for i := range 51 {
		host := fmt.Sprintf("n%d.orders.example", i)
		r.domain(vm.ID, host)
		r.trusted(host, r.roots())
	}
	log := r.log.String()
	if n := strings.Count(log, "has ordered 50 certificates"); n != 1 {
		t.Errorf("%d of 51 names were refused an order, want one\n%s", n, log)
	}
}
