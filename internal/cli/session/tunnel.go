package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"vers/internal/fault"
)

// patience is how long a connection to a tunnel waits for a link that is being made again.
const patience = 30 * time.Second

// Forwarding says what a tunnel does: it listens on one side and connects on the other one.
type Forwarding struct {
	Reverse    bool   // listens in the VM and connects here
	ListenHost string // "": 127.0.0.1
	ListenPort int    // 0: any free one
	Host       string // as the other side sees it; "": localhost
	Port       int
}

func (f Forwarding) check() error {
	listen, connect := "local", "remote"
	if f.Reverse {
		listen, connect = connect, listen
	}
	switch {
	case f.ListenPort < 0 || f.ListenPort > 65535:
		return fault.Invalidf("invalid %s port %d (0 to 65535; 0 chooses a free one)", listen, f.ListenPort)
	case f.Port < 1 || f.Port > 65535:
		return fault.Invalidf("invalid %s port %d (1 to 65535)", connect, f.Port)
	}
	return nil
}

// Tunnel forwards connections over a link. Close it.
type Tunnel struct {
	Forwarding // with the port that was chosen

	link   *Link
	own    bool // the link ends with the tunnel
	notice func(string)
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// OpenTunnel logs in to the VM with dial and forwards a local port at 127.0.0.1. The tunnel ends with ctx or Close. notice
// is told, in words for the user, about connections that could not be forwarded.
func OpenTunnel(ctx context.Context, dial func(context.Context) (*ssh.Client, error), localPort int, remoteHost string, remotePort int,
	notice func(string),
) (*Tunnel, error) {
	f := Forwarding{ListenPort: localPort, Host: remoteHost, Port: remotePort}
	if err := f.check(); err != nil {
		return nil, err
	}
	link, err := OpenLink(ctx, dial, func(string) {})
	if err != nil {
		return nil, err
	}
	t, err := link.Forward(ctx, f, notice)
	if err != nil {
		link.Close()
		return nil, err
	}
	t.own = true
	return t, nil
}

// Forward opens a tunnel over the link. It listens when Forward returns.
func (l *Link) Forward(ctx context.Context, f Forwarding, notice func(string)) (*Tunnel, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	if f.ListenHost == "" {
		f.ListenHost = "127.0.0.1"
	}
	if f.Host == "" {
		f.Host = "localhost"
	}
	t := &Tunnel{Forwarding: f, link: l, notice: notice}
	t.ctx, t.cancel = context.WithCancel(ctx)
	context.AfterFunc(l.ctx, t.cancel)
	var err error
	if f.Reverse {
		err = t.listenRemote()
	} else {
		err = t.listenLocal()
	}
	if err != nil {
		t.cancel()
		return nil, err
	}
	return t, nil
}

// Port is where the tunnel listens.
func (t *Tunnel) Port() int { return t.ListenPort }

// Close ends the tunnel with all its connections.
func (t *Tunnel) Close() {
	t.cancel()
	if t.own {
		t.link.Close()
	}
	t.wg.Wait()
}

func (t *Tunnel) listenLocal() error {
	listener, err := net.Listen("tcp", net.JoinHostPort(t.ListenHost, strconv.Itoa(t.ListenPort)))
	if err != nil {
		return fault.Conflictf("cannot listen on local port %d: %w", t.ListenPort, err)
	}
	t.ListenPort = listener.Addr().(*net.TCPAddr).Port
	context.AfterFunc(t.ctx, func() { listener.Close() })
	t.wg.Go(func() { t.accept(listener, t.dialRemote) })
	return nil
}

// listenRemote listens in the VM, again after every loss of the link.
func (t *Tunnel) listenRemote() error {
	client, err := t.link.Client(t.ctx)
	if err != nil {
		return err
	}
	listener, err := client.Listen("tcp", net.JoinHostPort(t.ListenHost, strconv.Itoa(t.ListenPort)))
	if err != nil {
		return fault.Conflictf("cannot listen on port %d in the VM: the port is taken, or the VM's agent cannot forward: %w", t.ListenPort, err)
	}
	t.ListenPort = listener.Addr().(*net.TCPAddr).Port // the next time it is to be the same
	t.wg.Go(func() {
		for {
			stop := context.AfterFunc(t.ctx, func() { listener.Close() })
			t.accept(listener, t.dialLocal)
			stop()
			if listener = t.listenAgain(); listener == nil {
				return
			}
		}
	})
	return nil
}

// listenAgain waits for the link and listens in the VM; nil: the tunnel has ended.
func (t *Tunnel) listenAgain() net.Listener {
	for attempt := 0; ; attempt++ {
		client, err := t.link.Client(t.ctx)
		if err != nil {
			return nil
		}
		listener, err := client.Listen("tcp", net.JoinHostPort(t.ListenHost, strconv.Itoa(t.ListenPort)))
		if err == nil {
			return listener
		}
		if attempt == 5 { // before, the VM may not have noticed yet that the old connection is gone
			t.notice(fmt.Sprintf("cannot listen on port %d in the VM any more, and go on trying: %v", t.ListenPort, err))
		}
		select {
		case <-t.ctx.Done():
			return nil
		case <-time.After(linkDelays[min(attempt, 3)+1]):
		}
	}
}

// accept forwards connections until the listener is closed.
func (t *Tunnel) accept(listener net.Listener, dial func(context.Context) (net.Conn, error)) {
	for {
		conn, err := listener.Accept()
		var temporary net.Error
		if errors.As(err, &temporary) && !errors.Is(err, net.ErrClosed) && t.ctx.Err() == nil && !t.Reverse {
			select { // out of descriptors: let some be closed
			case <-time.After(50 * time.Millisecond):
			case <-t.ctx.Done():
			}
			continue
		}
		if err != nil {
			return
		}
		t.wg.Go(func() {
			defer conn.Close()
			if err := t.forward(conn, dial); err != nil && t.ctx.Err() == nil {
				t.notice(fmt.Sprintf("tunnel from port %d: %v", t.ListenPort, err))
			}
		})
	}
}

// dialRemote connects in the VM.
func (t *Tunnel) dialRemote(ctx context.Context) (net.Conn, error) {
	client, err := t.link.Client(ctx)
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort(t.Host, strconv.Itoa(t.Forwarding.Port))
	conn, err := client.DialContext(ctx, "tcp", address)
	var refused *ssh.OpenChannelError
	switch {
	case errors.As(err, &refused):
		return nil, fmt.Errorf("the VM cannot connect to %s: %s", address, refused.Message)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrLost, err)
	}
	return conn, nil
}

// dialLocal connects on this machine.
func (t *Tunnel) dialLocal(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(t.Host, strconv.Itoa(t.Forwarding.Port)))
}

// forward copies both ways until both sides have ended, or the tunnel.
func (t *Tunnel) forward(from net.Conn, dial func(context.Context) (net.Conn, error)) error {
	ctx, cancel := context.WithTimeoutCause(t.ctx, patience, fmt.Errorf("no connection within %v", patience))
	to, err := dial(ctx)
	cancel()
	if err != nil {
		return err
	}
	defer to.Close()
	stop := context.AfterFunc(t.ctx, func() {
		from.Close()
		to.Close()
	})
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { copyOne(to, from) })
	copyOne(from, to)
	both.Wait()
	return nil
}

// copyOne copies one direction and ends it. Where nobody takes the data any more, both directions end.
func copyOne(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
		_ = half.CloseWrite()
		return
	}
	_ = to.Close()
	_ = from.Close()
}
