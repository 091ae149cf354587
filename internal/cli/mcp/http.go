package mcp

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"vers/internal/fault"
)

const (
	idleSession  = 12 * time.Hour // then a client that never said goodbye is forgotten; others just begin a new session
	shutdownTime = 2 * time.Second
)

// ServeHTTP speaks with any number of clients at addr until ctx ends. token is what they must send; without one only a
// loopback address is possible. ready is called with the URL when connections are accepted.
func (s *Server) ServeHTTP(ctx context.Context, addr, token string, ready func(url string)) error {
	loopback, err := isLoopback(addr)
	if err != nil {
		return err
	}
	if !loopback && token == "" {
		return fault.Invalidf("the address %s can be reached from other machines: set VERS_MCP_HTTP_TOKEN to a secret that clients must send, or use --addr 127.0.0.1:3920", addr)
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for MCP clients at %s: %w", addr, err)
	}
	server := &http.Server{
		Handler: s.Handler(token, loopback), ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	ready("http://" + listener.Addr().String() + "/")
	select {
	case err := <-ended:
		return fmt.Errorf("serve MCP clients: %w", err)
	case <-ctx.Done():
	}
	// Answers under way get a moment; streams that clients hold open would never end.
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	if err := server.Shutdown(limited); errors.Is(err, context.DeadlineExceeded) {
		server.Close()
	}
	return nil
}

// isLoopback reports whether only this machine can reach addr.
func isLoopback(addr string) (bool, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false, fault.Invalidf("the address %q is not possible: %w (it is host:port, for example 127.0.0.1:3920)", addr, err)
	}
	return localHost(host), nil
}

// localHost reports whether host always means this machine.
func localHost(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Handler is the HTTP server: MCP at /, and /healthz. token may be empty; loopback says that only this machine reaches
// the server, so that requests that name another host come from a page of somebody else (DNS rebinding).
func (s *Server) Handler(token string, loopback bool) http.Handler {
	if token != "" {
		s.options.Mask.Hide(token)
	}
	protocol := sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return s.sdk },
		&sdk.StreamableHTTPOptions{Logger: s.options.Log, SessionTimeout: idleSession})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case loopback && !localHost(hostOf(r.Host)):
			http.Error(w, fmt.Sprintf("the host %q is not this machine", r.Host), http.StatusForbidden)
		case !originAllowed(r, loopback):
			http.Error(w, fmt.Sprintf("pages of %q may not use this server", r.Header.Get("Origin")), http.StatusForbidden)
		case token != "" && !bearer(r, token):
			w.Header().Set("WWW-Authenticate", `Bearer realm="vers mcp"`)
			http.Error(w, "send the token of VERS_MCP_HTTP_TOKEN as: Authorization: Bearer <token>", http.StatusUnauthorized)
		default:
			protocol.ServeHTTP(w, r)
		}
	})
	return mux
}

// hostOf gives the host of a Host header, without port and brackets.
func hostOf(header string) string {
	if host, _, err := net.SplitHostPort(header); err == nil {
		return host
	}
	return strings.Trim(header, "[]")
}

// originAllowed reports whether the request comes from no browser, from a page of this server's own host, or, where
// only this machine can reach us, from a page of this machine.
func originAllowed(r *http.Request, loopback bool) bool {
	values := r.Header.Values("Origin")
	if len(values) == 0 {
		return true
	}
	u, err := url.Parse(values[0])
	if err != nil || len(values) > 1 || u.Host == "" {
		return false
	}
	return loopback && localHost(u.Hostname()) || strings.EqualFold(u.Host, r.Host)
}

// bearer compares the token in constant time.
func bearer(r *http.Request, token string) bool {
	scheme, sent, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	a, b := sha256.Sum256([]byte(strings.TrimSpace(sent))), sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1 && strings.EqualFold(scheme, "Bearer")
}
