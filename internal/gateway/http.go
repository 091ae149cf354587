package gateway

import (
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync"
	"time"

	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/machine"
)

// webConn is a decrypted connection that speaks HTTP, with where it leads.
type webConn struct {
	net.Conn
	to   route
	once sync.Once
	done chan struct{}
}

// Close implements net.Conn.
func (c *webConn) Close() error {
	defer c.once.Do(func() { close(c.done) })
	return c.Conn.Close()
}

// connQueue is a listener whose connections are put in.
type connQueue struct {
	conns chan net.Conn
	ended chan struct{}
	once  sync.Once
}

func newConnQueue() *connQueue {
	return &connQueue{conns: make(chan net.Conn), ended: make(chan struct{})}
}

func (q *connQueue) put(c net.Conn) {
	select {
	case q.conns <- c:
	case <-q.ended:
		_ = c.Close()
	}
}

// Accept implements net.Listener.
func (q *connQueue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.ended:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (q *connQueue) Close() error {
	q.once.Do(func() { close(q.ended) })
	return nil
}

// Addr implements net.Listener.
func (q *connQueue) Addr() net.Addr { return &net.TCPAddr{} }

type routeKey struct{}

func routeOf(ctx context.Context) route {
	to, _ := ctx.Value(routeKey{}).(route)
	return to
}

// newWeb is the server of all HTTP connections.
func (g *Gateway) newWeb() *http.Server {
	proxy := &httputil.ReverseProxy{
		Rewrite:       rewrite,
		Transport:     g.transport,
		FlushInterval: -1, // streams are passed on as they come
		ErrorHandler:  g.badGateway,
		ErrorLog:      slog.NewLogLogger(g.Logger.Handler(), slog.LevelDebug),
	}
	return &http.Server{
		Handler:           g.admit(proxy),
		ReadHeaderTimeout: handshakeLimit,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(g.Logger.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, routeKey{}, conn.(*webConn).to)
		},
	}
}

// newTransport reaches guests: the address that it dials is a VM's id and a port.
func (g *Gateway) newTransport() *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			id, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			vm, err := g.Machines.Find(ctx, id)
			if err != nil {
				return nil, err
			}
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil {
				return nil, err
			}
			ctx, cancel := context.WithTimeout(ctx, dialLimit)
			defer cancel()
			return g.Machines.DialGuest(ctx, caller(vm), id, uint16(n))
		},
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     10 * time.Second, // an open connection keeps a VM awake
		DisableCompression:  true,
	}
}

// rewrite sends a request to the guest as it came, with what a proxy adds.
func rewrite(r *httputil.ProxyRequest) {
	to := routeOf(r.In.Context())
	r.Out.URL.Scheme = "http"
	r.Out.URL.Host = net.JoinHostPort(to.vm.ID, strconv.Itoa(int(to.port)))
	r.Out.Host = r.In.Host
	r.SetXForwarded() // the connection's address: what a client claims in these headers is dropped
	r.Out.Header.Set("X-Forwarded-Proto", "https")
}

// admit lets a request pass if its host name is open, or if it shows a key of the VM's organisation or a signed link.
// The guest never sees either of them.
func (g *Gateway) admit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		to := routeOf(r.Context())
		if !leadsTo(r, to) {
			refuse(w, http.StatusMisdirectedRequest, "this connection was opened for another host name")
			return
		}
		if to.api {
			g.API.ServeHTTP(w, r)
			return
		}
		if g.takeLink(w, r, to) {
			return
		}
		allowed, err := g.allowed(r, to)
		if err != nil {
			refuse(w, http.StatusServiceUnavailable, "try again later")
			return
		}
		if !allowed {
			w.Header().Set("WWW-Authenticate", "Bearer")
			refuse(w, http.StatusUnauthorized, to.host+" is private: send an API key of its organisation (Authorization: Bearer …), or open the link that 'vers open' prints")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// leadsTo reports whether a request's Host is the name that the connection was made for: names share no connections, or
// one that is open could stand for one that is not.
func leadsTo(r *http.Request, to route) bool {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	return host == to.host || !to.private && !to.api
}

// allowed looks for a key or a signed link's cookie, and removes both.
func (g *Gateway) allowed(r *http.Request, to route) (bool, error) {
	byLink := g.links.take(r, to)
	scheme, text, _ := strings.Cut(strings.TrimSpace(r.Header.Get("Authorization")), " ")
	if !strings.EqualFold(scheme, "bearer") || !looksLikeKey(strings.TrimSpace(text)) {
		return byLink || !to.private, nil // it is the application's own
	}
	key, err := g.Registry.Authenticate(r.Context(), strings.TrimSpace(text))
	r.Header.Del("Authorization") // a guest must not see what opens the API, for whomever
	if err != nil && !fault.Is(err, fault.Unauthenticated) {
		return false, err
	}
	return byLink || !to.private || err == nil && key.OrgID == to.vm.OrgID, nil
}

// looksLikeKey reports whether a bearer token has the form of our API keys: an id and 64 hexadecimal digits (spec/api.md
// 1.2). All others are the application's own.
func looksLikeKey(text string) bool {
	const id, secret = 36, 64
	if len(text) != id+secret {
		return false
	}
	_, ok := ident.Parse(text[:id])
	_, err := hex.DecodeString(text[id:])
	return ok && err == nil
}

func refuse(w http.ResponseWriter, status int, why string) {
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, "vers: "+why, status)
}

// badGateway says why there is no answer of the guest.
func (g *Gateway) badGateway(w http.ResponseWriter, r *http.Request, err error) {
	to := routeOf(r.Context())
	g.Logger.Debug("no answer of the guest", "vm", to.vm.ID, "port", to.port, "error", err)
	switch {
	case errors.Is(err, context.Canceled):
		return // the client has gone
	case fault.Is(err, fault.NotFound):
		refuse(w, http.StatusNotFound, "this VM does not exist any more")
	case fault.Is(err, fault.Conflict):
		refuse(w, http.StatusServiceUnavailable, "this VM is not running ("+string(g.stateOf(r.Context(), to))+")")
	case fault.Is(err, fault.Exhausted):
		refuse(w, http.StatusServiceUnavailable, "this VM sleeps, and there is no room for it to wake now")
	case fault.Is(err, fault.Unavailable), fault.Is(err, fault.Timeout):
		refuse(w, http.StatusBadGateway, "nothing answers on port "+strconv.Itoa(int(to.port))+" of this VM; a server in it must listen on all addresses (0.0.0.0), not on localhost only")
	default:
		refuse(w, http.StatusBadGateway, "the server in this VM broke off")
	}
}

func (g *Gateway) stateOf(ctx context.Context, to route) machine.State {
	vm, err := g.Machines.Find(ctx, to.vm.ID)
	if err != nil {
		return machine.StateDead
	}
	return machine.State(vm.State)
}
