package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"vers/internal/fault"
)

// ACME says which authority certifies names that it sees to be ours (RFC 8555). Who sets it agrees to its terms.
type ACME struct {
	Directory string        // URL of the authority's directory
	Email     string        // where it sends warnings; "" nowhere
	EAB       string        // id of an account at the authority that the server's belongs to (RFC 8555, 7.3.4); "" none
	EABKey    string        // file with that account's key, base64url
	Root      string        // file with what signs the directory's own certificate, PEM; "": what the host trusts
	DNSServer string        // host:port that takes updates (RFC 2136) for Domain; "": names of VMs have no certificate of ACME
	DNSKey    string        // file with the key for them, as tsig-keygen prints it
	Resolvers []string      // host:port of DNS servers that know the zone, before it is validated; none: the host's
	Check     time.Duration // how often it is looked which certificates are to be renewed; 0: every 10 minutes
}

const (
	// acmeReserve is what is left of a handshake's time when it does not wait any longer for a name's first certificate.
	acmeReserve = 2 * time.Second
	// acmeTries is how long a certificate is tried to get, with growing pauses between (certmagic's: 1, 2, 2, 5, 10
	// minutes …), and acmePause how long nothing is tried after that.
	acmeTries = time.Hour
	acmePause = 10 * time.Minute
	// One organisation may have so many certificates ordered at once, and one more in every acmeOrderEvery: authorities
	// limit what one account orders, which is the whole server.
	acmeOrders     = 50
	acmeOrderEvery = 5 * time.Minute
	// acmeKeep is how long files of certificates that have ended stay.
	acmeKeep = 30 * 24 * time.Hour
)

// acmeNames keeps certificates of an ACME server for those names that lead somewhere and that somebody asks for. certmagic
// orders, stores and renews them. Nothing depends on them: while a name has none, our own authority's is good for it.
type acmeNames struct {
	ACME
	g       *Gateway
	storage *certmagic.FileStorage
	roots   *x509.CertPool // nil: the host's
	dns     *certmagic.DNS01Solver
	eab     *acme.EAB
	log     *zap.Logger

	// Made by start.
	cache          *certmagic.Cache
	byALPN, byDNS  *certmagic.Config // names are proven by TLS-ALPN-01, or by DNS-01 (nil without a DNS server)
	issuerKey      string
	challengeReply *tls.Config

	mu      sync.Mutex
	started bool
	names   map[string]*acmeName
	orders  map[string]*rate.Limiter // by organisation
}

// acmeName is a name that has a certificate or is to get one.
type acmeName struct {
	tried  chan struct{} // closed: there is one, or the first try has failed
	once   sync.Once
	cancel context.CancelFunc
}

func (n *acmeName) hasBeenTried() { n.once.Do(func() { close(n.tried) }) }

func newACME(g *Gateway, o ACME, dir string) (*acmeNames, error) {
	a := &acmeNames{ACME: o, g: g, storage: &certmagic.FileStorage{Path: dir}, log: newZap(g.Logger),
		names: map[string]*acmeName{}, orders: map[string]*rate.Limiter{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if o.Root != "" {
		data, err := os.ReadFile(o.Root)
		if err != nil {
			return nil, fmt.Errorf("the root of the ACME server: %w", err)
		}
		if a.roots = x509.NewCertPool(); !a.roots.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("the root of the ACME server: %s holds no certificate in PEM form", o.Root)
		}
	}
	if o.EAB != "" {
		data, err := os.ReadFile(o.EABKey)
		if err != nil {
			return nil, fmt.Errorf("the key of the ACME account: %w", err)
		}
		a.eab = &acme.EAB{KeyID: o.EAB, MACKey: strings.TrimRight(strings.TrimSpace(string(data)), "=")}
		if _, err := base64.RawURLEncoding.DecodeString(a.eab.MACKey); err != nil {
			return nil, fmt.Errorf("the key of the ACME account: %s is no base64url: %w", o.EABKey, err)
		}
	}
	var err error
	if o.DNSServer != "" {
		a.dns, err = newDNSSolver(o, a.log)
	}
	return a, err
}

// start begins once it is known where challenges arrive. Certificates of earlier times are there and kept new from now
// on, asked for or not, and the operator's own names are ordered.
func (a *acmeNames) start(at net.Addr) {
	a.mu.Lock()
	if a.started {
		a.mu.Unlock()
		return
	}
	a.cache = certmagic.NewCache(certmagic.CacheOptions{RenewCheckInterval: a.Check, Logger: a.log,
		GetConfigForCert: func(c certmagic.Certificate) (*certmagic.Config, error) { return a.config(c.Names[0]), nil }})
	host, port, _ := net.SplitHostPort(at.String())
	a.byALPN = a.newConfig(func(issuer *certmagic.ACMEIssuer) {
		// Where certmagic sees that somebody listens already, and listens nowhere itself.
		issuer.ListenHost = host
		issuer.AltTLSALPNPort, _ = strconv.Atoi(port)
	})
	if a.dns != nil {
		a.byDNS = a.newConfig(func(issuer *certmagic.ACMEIssuer) { issuer.DNS01Solver = a.dns })
	}
	a.challengeReply = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{acmez.ACMETLS1Protocol}, GetCertificate: a.answer}
	a.started = true
	a.mu.Unlock()
	a.g.conns.Go(a.resume)
}

func (a *acmeNames) newConfig(prove func(*certmagic.ACMEIssuer)) *certmagic.Config {
	c := certmagic.New(a.cache, certmagic.Config{Storage: a.storage, Logger: a.log, OnEvent: a.event,
		ShouldEmitFunc: func(event string) bool { return strings.HasPrefix(event, "cert_") }})
	issuer := certmagic.ACMEIssuer{CA: a.Directory, Email: a.Email, Agreed: true, ExternalAccount: a.eab, TrustedRoots: a.roots, Logger: a.log,
		DisableHTTPChallenge: true, DisableDistributedSolvers: true}
	prove(&issuer)
	made := certmagic.NewACMEIssuer(c, issuer)
	c.Issuers = []certmagic.Issuer{made}
	a.issuerKey = made.IssuerKey()
	return c
}

// config is how a name is proven: the operator's are in the operator's DNS.
func (a *acmeNames) config(name string) *certmagic.Config {
	if a.byDNS != nil && (name == a.g.APIHost || strings.HasPrefix(name, "*.")) {
		return a.byDNS
	}
	return a.byALPN
}

func (a *acmeNames) resume() {
	if a.byDNS != nil {
		a.keep(a.wildcard(), "")
	}
	names := []string{a.g.APIHost}
	// No such folder: there are none.
	stored, _ := a.storage.List(a.g.life, certmagic.StorageKeys.CertsPrefix(a.issuerKey), false)
	for _, key := range stored {
		names = append(names, path.Base(key))
	}
	for _, name := range names {
		if to, err := a.g.route(a.g.life, name, 0); err == nil && a.subject(to) == name {
			a.keep(name, to.vm.OrgID)
		}
	}
	for a.g.life.Err() == nil {
		err := certmagic.CleanStorage(a.g.life, a.storage, certmagic.CleanStorageOptions{Logger: a.log, OCSPStaples: true,
			ExpiredCerts: true, ExpiredCertGracePeriod: acmeKeep})
		if err != nil && a.g.life.Err() == nil {
			a.g.Logger.Warn("old certificates cannot be removed", "folder", a.storage.Path, "error", err)
		}
		select {
		case <-a.g.life.Done():
		case <-time.After(24 * time.Hour):
		}
	}
}

// close is called when nothing of the gateway runs any more.
func (a *acmeNames) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.started {
		a.started = false
		a.cache.Stop()
	}
}

// wildcard is the name that all VMs share.
func (a *acmeNames) wildcard() string { return "*." + strings.ToLower(a.g.Domain) }

// subject is the name on a certificate that is good for a route, "" if none is to be ordered. VMs come and go, and
// authorities count certificates: their names share a wildcard or have our own authority's.
func (a *acmeNames) subject(to route) string {
	_, above, _ := strings.Cut(to.host, ".")
	name := to.host
	switch {
	case a.dns != nil && "*."+above == a.wildcard():
		name = a.wildcard()
	case !to.domain && !to.api:
		return ""
	}
	if !certmagic.SubjectQualifiesForCert(name) || strings.HasSuffix("."+name, ".localhost") {
		return ""
	}
	return name
}

// certificate gives the one that a name has, nil if it has none now. The first time, it is ordered, and waited for almost
// until ctx ends.
func (a *acmeNames) certificate(ctx context.Context, hello *tls.ClientHelloInfo, to route) *tls.Certificate {
	name := a.subject(to)
	if name == "" {
		return nil
	}
	n := a.keep(name, to.vm.OrgID)
	if n == nil {
		return nil
	}
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-acmeReserve))
		defer cancel()
	}
	if name == to.host { // who comes to a VM's own name can do with our authority
		select {
		case <-n.tried:
		case <-ctx.Done():
			return nil
		}
	}
	c, err := a.config(name).GetCertificateWithContext(ctx, hello)
	if err != nil || time.Now().After(c.Leaf.NotAfter) {
		return nil
	}
	return c
}

// keep lets a name have a certificate from now on. nil: it is too early.
func (a *acmeNames) keep(name, orgID string) *acmeName {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.started {
		return nil
	}
	n := a.names[name]
	if n == nil {
		n = &acmeName{tried: make(chan struct{})}
		var ctx context.Context
		ctx, n.cancel = context.WithCancel(a.g.life)
		a.names[name] = n
		a.g.conns.Go(func() { a.load(ctx, name, orgID, n) })
	}
	return n
}

// load takes a certificate from disk or orders it. When that has failed for long enough, the name is forgotten, until
// somebody asks for it again.
func (a *acmeNames) load(ctx context.Context, name, orgID string, n *acmeName) {
	defer n.hasBeenTried()
	config := a.config(name)
	c, err := config.CacheManagedCertificate(ctx, name)
	switch {
	case err == nil && c.NeedsRenewal(config):
		err = a.cache.RenewManagedCertificates(a.g.life)
	case errors.Is(err, fs.ErrNotExist):
		err = a.order(ctx, config, name, orgID)
	}
	if err == nil || ctx.Err() != nil {
		return
	}
	a.g.Logger.Warn("no certificate of the ACME server; tried again when somebody asks", "name", name, "not_before", time.Now().Add(acmePause).Format(time.TimeOnly), "error", err)
	n.hasBeenTried()
	select {
	case <-ctx.Done():
	case <-time.After(acmePause):
		a.forget(name)
	}
}

func (a *acmeNames) order(ctx context.Context, config *certmagic.Config, name, orgID string) error {
	if !a.mayOrder(orgID) {
		return fmt.Errorf("the organisation %s has ordered %d certificates; one more is possible every %v", orgID, acmeOrders, acmeOrderEvery)
	}
	ctx, cancel := context.WithTimeout(ctx, acmeTries)
	defer cancel()
	if err := config.ObtainCertAsync(ctx, name); err != nil { // tries again by itself
		return err
	}
	_, err := config.CacheManagedCertificate(ctx, name)
	return err
}

// mayOrder counts the orders of an organisation; "" is the operator.
func (a *acmeNames) mayOrder(orgID string) bool {
	if orgID == "" {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.orders[orgID]
	if l == nil {
		l = rate.NewLimiter(rate.Every(acmeOrderEvery), acmeOrders)
		a.orders[orgID] = l
	}
	return l.Allow()
}

// forget ends what is done for a name.
func (a *acmeNames) forget(name string) {
	a.mu.Lock()
	n := a.names[name]
	delete(a.names, name)
	a.mu.Unlock()
	if n != nil {
		n.cancel()
	}
	a.cache.RemoveManaged([]certmagic.SubjectIssuer{{Subject: name}})
}

// event is called by certmagic. An error before an order or a renewal prevents it.
func (a *acmeNames) event(ctx context.Context, event string, data map[string]any) error {
	name, _ := data["identifier"].(string)
	switch event {
	case "cert_obtaining":
		return a.stillWanted(ctx, name)
	case "cert_obtained":
		a.g.Logger.Info("certificate of the ACME server", "name", name, "server", data["issuer"], "renewed", data["renewal"])
	case "cert_failed":
		a.g.Logger.Warn("no certificate of the ACME server; it is tried again, and the old one or our own authority's used until then", "name", name, "renewal", data["renewal"], "error", data["error"])
		a.mu.Lock()
		defer a.mu.Unlock()
		if n := a.names[name]; n != nil {
			n.hasBeenTried()
		}
	}
	return nil
}

// stillWanted refuses names that lead nowhere any more.
func (a *acmeNames) stillWanted(ctx context.Context, name string) error {
	if strings.HasPrefix(name, "*.") {
		return nil
	}
	to, err := a.g.route(ctx, name, 0)
	if err == nil && a.subject(to) != name {
		err = fault.NotFoundf("%s has another certificate", name)
	}
	if fault.Is(err, fault.NotFound) {
		a.g.Logger.Info("a name leads nowhere any more: its certificate is not renewed", "name", name)
		a.forget(name)
		return certmagic.ErrNoRetry{Err: err}
	}
	return err
}

// isChallenge reports whether the ACME server looks whether a name is ours (RFC 8737).
func isChallenge(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acmez.ACMETLS1Protocol
}

// challenge gives how such a connection is answered, nil for all others.
func (a *acmeNames) challenge(hello *tls.ClientHelloInfo) *tls.Config {
	if !isChallenge(hello) {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.challengeReply
}

func (a *acmeNames) answer(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if _, ok := certmagic.GetACMEChallenge(hello.ServerName); !ok {
		return nil, fmt.Errorf("no certificate is being ordered for %q", hello.ServerName)
	}
	return a.byALPN.GetCertificate(hello)
}
