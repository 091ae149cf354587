package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/crypto/ssh"

	"vers/internal/fault"
	"vers/internal/guest"
)

const (
	sshLoginLimit = 30 * time.Second
	dialLimit     = 30 * time.Second
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
	_ = conn.SetDeadline(time.Now().Add(sshLoginLimit))
	server, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		s.log.Info("SSH login failed", "error", err)
		return nil
	}
	_ = conn.SetDeadline(time.Time{})
	defer func() { _ = server.Close() }()
	go answerGlobal(requests)
	for channel := range channels {
		switch channel.ChannelType() {
		case "session":
			go s.sshSession(channel)
		case "direct-tcpip":
			go forward(ctx, channel, tcpTarget)
		case "direct-streamlocal@openssh.com":
			go forward(ctx, channel, unixTarget)
		default:
			_ = channel.Reject(ssh.UnknownChannelType, "this server knows sessions and forwarding to the VM's ports")
		}
	}
	return nil
}

// answerGlobal answers connection-wide requests. Keepalives only want an answer, whatever it is.
func answerGlobal(requests <-chan *ssh.Request) {
	for req := range requests {
		if req.WantReply {
			_ = req.Reply(req.Type == "keepalive@openssh.com", nil)
		}
	}
}

func tcpTarget(extra []byte) (network, address string, err error) {
	var msg struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}
	if err := ssh.Unmarshal(extra, &msg); err != nil {
		return "", "", err
	}
	return "tcp", net.JoinHostPort(msg.Host, strconv.FormatUint(uint64(msg.Port), 10)), nil
}

func unixTarget(extra []byte) (network, address string, err error) {
	var msg struct {
		Path     string
		Reserved string
		Unused   uint32
	}
	if err := ssh.Unmarshal(extra, &msg); err != nil {
		return "", "", err
	}
	return "unix", msg.Path, nil
}

// forward connects a channel with an address as the guest sees it.
func forward(ctx context.Context, request ssh.NewChannel, target func([]byte) (string, string, error)) {
	network, address, err := target(request.ExtraData())
	if err != nil {
		_ = request.Reject(ssh.ConnectionFailed, "malformed request")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		_ = request.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	channel, requests, err := request.Accept()
	if err != nil {
		_ = conn.Close()
		return
	}
	go ssh.DiscardRequests(requests)
	splice(channel, conn)
}

// duplex is a connection whose directions end one by one.
type duplex interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// splice copies in both directions until both have ended, and closes both sides.
func splice(a duplex, b net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := io.Copy(a, b)
		if err == nil {
			err = a.CloseWrite()
		}
		if err != nil {
			_ = b.Close() // nobody takes what b sends
		}
	}()
	_, err := io.Copy(b, a)
	if half, ok := b.(interface{ CloseWrite() error }); ok && err == nil {
		err = half.CloseWrite()
	}
	if err != nil {
		_ = a.Close()
	}
	<-done
	_ = a.Close()
	_ = b.Close()
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
	splice(outer, inner)
	return nil
}

// wholeConn is a connection that cannot end one direction: it ends both.
type wholeConn struct{ net.Conn }

func (w wholeConn) CloseWrite() error { return w.Close() }
