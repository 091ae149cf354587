package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"vers/internal/fault"
	"vers/internal/guest"
)

const (
	sshLoginLimit = 30 * time.Second
	dialLimit     = 30 * time.Second

	// A channel may hold 2 MiB that its reader has not taken yet, so their number bounds what a client can make of it.
	maxChannels = 256
	// maxLogins bounds the connections that have not logged in: anybody who reaches the gateway can open those.
	maxLogins = 32
)

// noSSH is a file of images that want no SSH (guest.ssh = false in a build script).
const noSSH = "/etc/vers/no-ssh"

// serveSSH makes the rest of the connection an SSH session with the agent's own server.
func (s *Server) serveSSH(ctx context.Context, conn net.Conn) error {
	s.identity.mu.RLock()
	hostKey, authorized := s.identity.hostKey, s.identity.authorized
	s.identity.mu.RUnlock()
	if hostKey == nil {
		return fault.Unavailablef("this VM has no identity yet, and so no SSH host key: wait until it is ready")
	}
	if _, err := os.Stat(s.path(noSSH)); err == nil {
		return fault.Forbiddenf("the image of this VM allows no SSH (%s)", noSSH)
	}
	if err := accept(conn, nil); err != nil {
		return nil
	}
	config := &ssh.ServerConfig{
		ServerVersion: "SSH-2.0-vers",
		PublicKeyCallback: func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if meta.User() != "root" || !authorized[string(key.Marshal())] {
				return nil, errors.New("unknown key or user")
			}
			return &ssh.Permissions{}, nil
		},
	}
	config.AddHostKey(hostKey)
	end := s.logins.begin(conn)
	_ = conn.SetDeadline(time.Now().Add(sshLoginLimit))
	server, channels, requests, err := ssh.NewServerConn(conn, config)
	end()
	if err != nil {
		s.log.Info("SSH login failed", "error", err)
		return nil
	}
	_ = conn.SetDeadline(time.Time{})
	c := &sshConn{server: s, conn: server, slots: make(chan struct{}, maxChannels), listeners: map[string]net.Listener{}}
	defer c.close()
	go c.answer(requests)
	for channel := range channels {
		c.open(ctx, channel)
	}
	return nil
}

// sshConn is one SSH connection that is logged in.
type sshConn struct {
	server *Server
	conn   *ssh.ServerConn
	slots  chan struct{} // one for every open channel

	mu        sync.Mutex
	closed    bool
	listeners map[string]net.Listener // remote forwarding, by the address as the client names it
}

// close ends the connection and what it listens on.
func (c *sshConn) close() {
	c.mu.Lock()
	c.closed = true
	for _, l := range c.listeners {
		_ = l.Close()
	}
	c.mu.Unlock()
	_ = c.conn.Close()
}

// open serves a channel that the client asks for.
func (c *sshConn) open(ctx context.Context, request ssh.NewChannel) {
	var serve func()
	switch request.ChannelType() {
	case "session":
		serve = func() { c.session(request) }
	case "direct-tcpip":
		serve = func() { forward(ctx, request, tcpTarget) }
	case "direct-streamlocal@openssh.com":
		serve = func() { forward(ctx, request, unixTarget) }
	default:
		_ = request.Reject(ssh.UnknownChannelType, "this server knows sessions and forwarding to the VM's ports")
		return
	}
	if !c.take() {
		_ = request.Reject(ssh.ResourceShortage, fmt.Sprintf("this connection has %d channels open, which is the most that is possible; use another connection", maxChannels))
		return
	}
	go func() {
		defer c.release()
		serve()
	}()
}

// take takes a channel's place, if there is one left.
func (c *sshConn) take() bool {
	select {
	case c.slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func (c *sshConn) release() { <-c.slots }

// answer answers connection-wide requests. Keepalives only want an answer, whatever it is.
func (c *sshConn) answer(requests <-chan *ssh.Request) {
	for req := range requests {
		var ok bool
		var payload []byte
		switch req.Type {
		case "keepalive@openssh.com":
			ok = true
		case "tcpip-forward":
			ok, payload = c.listenTCP(req.Payload)
		case "cancel-tcpip-forward":
			ok = c.cancelTCP(req.Payload)
		case "streamlocal-forward@openssh.com":
			ok = c.listenUnix(req.Payload)
		case "cancel-streamlocal-forward@openssh.com":
			ok = c.cancelUnix(req.Payload)
		}
		if req.WantReply {
			_ = req.Reply(ok, payload)
		}
	}
}

// logins are connections that have not logged in yet.
type logins struct {
	mu      sync.Mutex
	waiting []net.Conn // oldest first
}

// begin notes a connection until end is called. When too many wait, the oldest one is closed: a client that means it is
// through within a second, one that holds connections open is not.
func (l *logins) begin(conn net.Conn) (end func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) >= maxLogins {
		_ = l.waiting[0].Close()
		l.waiting = l.waiting[1:]
	}
	l.waiting = append(l.waiting, conn)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.waiting = slices.DeleteFunc(l.waiting, func(c net.Conn) bool { return c == conn })
	}
}

// dial makes the rest of the connection one to an address as the guest sees it.
func (s *Server) dial(ctx context.Context, conn net.Conn, body json.RawMessage) error {
	var req guest.DialRequest
	if err := decode(body, &req); err != nil {
		return err
	}
	switch req.Network {
	case "tcp", "tcp4", "tcp6", "unix":
	default:
		return fault.Invalidf("unknown network %q: use tcp, tcp4, tcp6 or unix", req.Network)
	}
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	inner, err := new(net.Dialer).DialContext(ctx, req.Network, req.Address)
	if err != nil {
		return fault.Unavailablef("connect to %s inside the VM: %w", req.Address, err)
	}
	if err := accept(conn, nil); err != nil {
		_ = inner.Close()
		return nil
	}
	outer, ok := conn.(duplex)
	if !ok {
		outer = wholeConn{conn}
	}
	splice(outer, inner, nil)
	return nil
}

// wholeConn is a connection that cannot end one direction: it ends both.
type wholeConn struct{ net.Conn }

func (w wholeConn) CloseWrite() error { return w.Close() }
