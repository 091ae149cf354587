package agent

import (
	"context"
	"io"
	"net"
	"strconv"

	"golang.org/x/crypto/ssh"
)

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
	conn, err := dialGuest(ctx, network, address)
	if err != nil {
		_ = request.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	channel, requests, err := request.Accept()
	if err != nil {
		_ = conn.Close()
		return
	}
	splice(channel, conn, discard(requests))
}

// dialGuest connects to an address as the guest sees it. localhost means loopback in images without /etc/hosts too, and
// IPv6 where a service listens there only.
func dialGuest(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || network != "tcp" || host != "localhost" {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	if err == nil {
		return conn, nil
	}
	if six, sixErr := new(net.Dialer).DialContext(ctx, network, net.JoinHostPort("::1", port)); sixErr == nil {
		return six, nil
	}
	return nil, err
}

// discard refuses a channel's requests and tells when the channel is closed.
func discard(requests <-chan *ssh.Request) (gone <-chan struct{}) {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		ssh.DiscardRequests(requests)
	}()
	return closed
}

// duplex is a connection whose directions end one by one.
type duplex interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// splice copies in both directions until both have ended, and closes both sides. gone is closed when a has ended in both
// directions, which ends b even if that has nothing to say; nil: a tells it in no other way.
func splice(a duplex, b net.Conn, gone <-chan struct{}) {
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
	select {
	case <-done:
	case <-gone:
	}
	_ = a.Close()
	_ = b.Close()
	<-done
}
