package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"

	"golang.org/x/crypto/ssh"

	"vers/internal/fault"
)

// Tunnel forwards the connections to a local port to an address as the VM sees it, over one SSH connection, which is
// made again if it breaks. Close it.
type Tunnel struct {
	dial     func(context.Context) (*ssh.Client, error)
	listener net.Listener
	remote   string
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	notice   func(string)

	mu     sync.Mutex
	client *ssh.Client // nil: none, or broken
}

// OpenTunnel logs in to the VM with dial and listens on a local port, 0 for any free one, at 127.0.0.1. The tunnel ends
// with ctx or Close. notice is told, in words for the user, about connections that could not be forwarded.
func OpenTunnel(ctx context.Context, dial func(context.Context) (*ssh.Client, error), localPort int, remoteHost string, remotePort int,
	notice func(string),
) (*Tunnel, error) {
	switch {
	case localPort < 0 || localPort > 65535:
		return nil, fault.Invalidf("invalid local port %d (0 to 65535; 0 chooses a free one)", localPort)
	case remotePort < 1 || remotePort > 65535:
		return nil, fault.Invalidf("invalid remote port %d (1 to 65535)", remotePort)
	}
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(localPort)))
	if err != nil {
		return nil, fault.Conflictf("cannot listen on local port %d: %w", localPort, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	t := &Tunnel{
		dial: dial, listener: listener, remote: net.JoinHostPort(remoteHost, strconv.Itoa(remotePort)),
		ctx: ctx, cancel: cancel, notice: notice,
	}
	if _, err := t.connect(); err != nil {
		cancel()
		listener.Close()
		return nil, err
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	t.wg.Go(t.accept)
	return t, nil
}

// Port is the local port.
func (t *Tunnel) Port() int { return t.listener.Addr().(*net.TCPAddr).Port }

// Close ends the tunnel with all its connections.
func (t *Tunnel) Close() {
	t.cancel()
	t.listener.Close()
	t.mu.Lock()
	if t.client != nil {
		t.client.Close()
	}
	t.mu.Unlock()
	t.wg.Wait()
}

// connect gives the SSH connection, a new one if there is none. Dial closes it when the tunnel's context ends.
func (t *Tunnel) connect() (*ssh.Client, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.client != nil {
		return t.client, nil
	}
	client, err := t.dial(t.ctx)
	if err != nil {
		return nil, err
	}
	t.client = client
	t.wg.Go(func() {
		_ = client.Wait()
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.client == client {
			t.client = nil
		}
	})
	return client, nil
}

func (t *Tunnel) accept() {
	for {
		conn, err := t.listener.Accept()
		if err != nil {
			return // closed
		}
		t.wg.Go(func() {
			defer conn.Close()
			if err := t.forward(conn); err != nil && t.ctx.Err() == nil {
				t.notice(fmt.Sprintf("tunnel from port %d: %v", t.Port(), err))
			}
		})
	}
}

// forward copies both ways until both sides have ended, or the tunnel.
func (t *Tunnel) forward(local net.Conn) error {
	stop := context.AfterFunc(t.ctx, func() { local.Close() })
	defer stop()
	client, err := t.connect()
	if err != nil {
		return err
	}
	remote, err := client.DialContext(t.ctx, "tcp", t.remote)
	var refused *ssh.OpenChannelError
	switch {
	case errors.As(err, &refused):
		return fmt.Errorf("the VM cannot connect to %s: %s", t.remote, refused.Message)
	case err != nil:
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	defer remote.Close()
	var both sync.WaitGroup
	copyOne := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		if half, ok := to.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}
	both.Go(func() { copyOne(remote, local) })
	copyOne(local, remote)
	both.Wait()
	return nil
}
