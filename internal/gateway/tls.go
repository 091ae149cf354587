package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"
)

// serveTLS decrypts a connection and hands it to what it speaks. port is that of the listener, 0 for the main one.
func (g *Gateway) serveTLS(raw net.Conn, port uint16, admitted func()) {
	conn := tls.Server(raw, g.tls)
	_ = conn.SetDeadline(time.Now().Add(handshakeLimit))
	ctx, cancel := context.WithTimeout(g.life, handshakeLimit)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		g.Logger.Debug("no TLS connection", "from", raw.RemoteAddr(), "error", err)
		return
	}
	if conn.ConnectionState().NegotiatedProtocol != "" {
		return // a challenge of an ACME server, which has seen what it wants
	}
	to, err := g.route(ctx, conn.ConnectionState().ServerName, port)
	if err != nil {
		return // it was there a moment ago
	}
	if port != 0 && !to.private {
		_ = conn.SetDeadline(time.Time{})
		admitted()
		g.splice(conn, to) // whoever speaks first
		return
	}
	start := &peeked{Conn: conn, r: bufio.NewReader(conn)}
	head, err := start.r.Peek(4)
	_ = conn.SetDeadline(time.Time{})
	if err != nil && len(head) == 0 {
		return
	}
	switch {
	case bytes.Equal(head, []byte("SSH-")) && port == 0 && !to.api:
		if to.vm.Labels[SSHLabel] == imageSSH {
			to.port = sshPort
			admitted()
			g.splice(start, to)
			return
		}
		g.serveSSH(start, &to.vm, admitted)
	case isMethod(head):
		admitted()
		done := make(chan struct{})
		g.webConns.put(&webConn{Conn: start, to: to, done: done})
		select {
		case <-done:
		case <-g.life.Done():
		}
	case to.private || to.api:
		g.Logger.Debug("refused", "host", to.host, "from", raw.RemoteAddr(), "error", "only HTTP can show a key")
	default:
		admitted()
		g.splice(start, to)
	}
}

// isMethod reports whether bytes may begin an HTTP request: methods are words of capital letters.
func isMethod(head []byte) bool {
	if len(head) < 4 {
		return false
	}
	for i, c := range head {
		if c == ' ' {
			return i >= 3
		}
		if c < 'A' || c > 'Z' {
			return false
		}
	}
	return true
}

// peeked is a connection whose first bytes were looked at.
type peeked struct {
	net.Conn
	r *bufio.Reader
}

// Read implements net.Conn.
func (p *peeked) Read(b []byte) (int, error) { return p.r.Read(b) }

// CloseWrite ends what is sent.
func (p *peeked) CloseWrite() error { return closeWrite(p.Conn) }

func closeWrite(conn net.Conn) error {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// splice joins a connection with the guest's port, until both directions have ended.
func (g *Gateway) splice(conn net.Conn, to route) {
	ctx, cancel := context.WithTimeout(g.life, dialLimit)
	defer cancel()
	inner, err := g.Machines.DialGuest(ctx, caller(to.vm), to.vm.ID, to.port)
	if err != nil {
		g.Logger.Debug("no connection into the guest", "vm", to.vm.ID, "port", to.port, "error", err)
		return
	}
	defer inner.Close()
	join(conn, inner)
}

// join copies both ways. When one direction has ended the other may go on; when one side breaks both end.
func join(a, b net.Conn) {
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		copyOne(b, a)
	}()
	copyOne(a, b)
	<-copied
}

func copyOne(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if err == nil {
		err = closeWrite(to)
	}
	if err != nil {
		_ = to.Close()
		_ = from.Close()
	}
}
