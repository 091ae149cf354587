package agent

import (
	"errors"
	"net"
	"strconv"

	"golang.org/x/crypto/ssh"
)

// maxListeners bounds the remote forwardings of one connection.
const maxListeners = 64

// forwardRequest asks for, or cancels, remote forwarding (RFC 4254 section 7.1).
type forwardRequest struct {
	Address string
	Port    uint32
}

// listenTCP begins remote forwarding. Port 0 is any free one, and the answer tells which.
func (c *sshConn) listenTCP(payload []byte) (ok bool, answer []byte) {
	var req forwardRequest
	if ssh.Unmarshal(payload, &req) != nil || req.Port > 65535 {
		return false, nil
	}
	listeners, err := bind(req.Address, int(req.Port))
	if err != nil {
		c.server.log.Info("remote forwarding refused", "address", req.Address, "port", req.Port, "error", err)
		return false, nil
	}
	port := uint32(listeners[0].Addr().(*net.TCPAddr).Port)
	listener := &bound{listeners}
	if !c.keep(forwardKey(req.Address, port), listener) {
		return false, nil
	}
	for _, l := range listeners {
		go c.accept(l, "forwarded-tcpip", func(conn net.Conn) []byte {
			from, _ := conn.RemoteAddr().(*net.TCPAddr)
			msg := struct {
				Address    string // as the client has named it: it knows its forwardings by that
				Port       uint32
				OriginHost string
				OriginPort uint32
			}{req.Address, port, from.IP.String(), uint32(from.Port)}
			return ssh.Marshal(&msg)
		})
	}
	if req.Port == 0 {
		answer = ssh.Marshal(&struct{ Port uint32 }{port})
	}
	return true, answer
}

func forwardKey(address string, port uint32) string {
	return net.JoinHostPort(address, strconv.FormatUint(uint64(port), 10))
}

func (c *sshConn) cancelTCP(payload []byte) bool {
	var req forwardRequest
	return ssh.Unmarshal(payload, &req) == nil && c.drop(forwardKey(req.Address, req.Port))
}

// bind listens where a client has asked for: on loopback for localhost, on all addresses only where that is said.
func bind(address string, port int) ([]net.Listener, error) {
	var hosts []string
	switch address {
	case "localhost":
		hosts = []string{"127.0.0.1", "::1"}
	case "", "*":
		hosts = []string{""}
	default:
		hosts = []string{address}
	}
	var listeners []net.Listener
	for i, host := range hosts {
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil && i == 0 {
			return nil, err
		}
		if err != nil {
			continue // without IPv6
		}
		port = l.Addr().(*net.TCPAddr).Port
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// bound is the listeners of one forwarding.
type bound struct{ all []net.Listener }

func (b *bound) Accept() (net.Conn, error) { return b.all[0].Accept() }
func (b *bound) Addr() net.Addr            { return b.all[0].Addr() }

func (b *bound) Close() error {
	var errs []error
	for _, l := range b.all {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// socketRequest asks for, or cancels, forwarding of a Unix socket (OpenSSH's PROTOCOL, section 2.4).
type socketRequest struct{ Path string }

func (c *sshConn) listenUnix(payload []byte) bool {
	var req socketRequest
	if ssh.Unmarshal(payload, &req) != nil || req.Path == "" || req.Path[0] != '/' {
		return false
	}
	l, err := net.Listen("unix", req.Path)
	if err != nil {
		c.server.log.Info("remote forwarding refused", "socket", req.Path, "error", err)
		return false
	}
	if !c.keep(req.Path, l) {
		return false
	}
	go c.accept(l, "forwarded-streamlocal@openssh.com", func(net.Conn) []byte {
		return ssh.Marshal(&struct{ Path, Reserved string }{Path: req.Path})
	})
	return true
}

func (c *sshConn) cancelUnix(payload []byte) bool {
	var req socketRequest
	return ssh.Unmarshal(payload, &req) == nil && c.drop(req.Path)
}

// keep remembers a listener until it is dropped or the connection ends; or closes it.
func (c *sshConn) keep(key string, l net.Listener) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.listeners) >= maxListeners || c.listeners[key] != nil {
		_ = l.Close()
		return false
	}
	c.listeners[key] = l
	return true
}

func (c *sshConn) drop(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	l, ok := c.listeners[key]
	if ok {
		_ = l.Close()
		delete(c.listeners, key)
	}
	return ok
}

// accept hands the connections to l to the client, each in a channel of the type.
func (c *sshConn) accept(l net.Listener, channelType string, extra func(net.Conn) []byte) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return // closed
		}
		if !c.take() {
			_ = conn.Close()
			continue
		}
		go func() {
			defer c.release()
			c.hand(conn, channelType, extra(conn))
		}()
	}
}

// hand joins a connection with a new channel to the client.
func (c *sshConn) hand(conn net.Conn, channelType string, extra []byte) {
	channel, requests, err := c.conn.OpenChannel(channelType, extra)
	if err != nil {
		_ = conn.Close()
		return
	}
	splice(channel, conn, discard(requests))
}
