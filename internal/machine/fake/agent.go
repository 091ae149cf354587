package fake

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vers/internal/agent"
	"vers/internal/fault"
	"vers/internal/machine"
)

// rootDir is the agent's root, in the machine's directory: it goes with it.
const rootDir = "guest"

func (g *guest) root() string { return filepath.Join(g.spec.Dir, rootDir) }

// Root is the directory that the guest's agent has as its root. Its commands see the host's; they start in the home
// directory, which is below Root.
func (i Instance) Root() string { return i.root() }

// agentProcess is the agent in one guest.
type agentProcess struct {
	server   *agent.Server
	incoming *pipeListener
	served   chan struct{}
	once     sync.Once
}

// ready waits until the guest runs and gives its agent. Like a real one, a guest that stands still does not answer.
func (g *guest) ready(ctx context.Context, closed <-chan struct{}) (*agentProcess, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		if g.status == machine.StatusEnded {
			return nil, fault.Unavailablef("connect to the guest of VM %s: it has ended", g.spec.ID)
		}
		if g.status == machine.StatusRunning {
			break
		}
		changed := g.changed
		g.mu.Unlock()
		err := error(nil)
		select {
		case <-changed:
		case <-closed:
			err = errClosed()
		case <-ctx.Done():
			err = errSilent(ctx, g)
		}
		g.mu.Lock()
		if err != nil {
			return nil, err
		}
	}
	if g.agent == nil {
		if err := g.startAgent(); err != nil {
			return nil, fmt.Errorf("start the agent of VM %s: %w", g.spec.ID, err)
		}
	}
	return g.agent, nil
}

// startAgent makes the guest's root and serves. The caller holds mu.
func (g *guest) startAgent() error {
	home := filepath.Join(g.root(), "root")
	for _, dir := range []string{filepath.Join(g.root(), "etc"), home} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := unpackFiles(g.root(), g.files); err != nil {
		return err
	}
	// Every machine has its root elsewhere.
	passwd := "root:x:0:0:root:" + home + ":/bin/sh\n"
	if err := os.WriteFile(filepath.Join(g.root(), "etc/passwd"), []byte(passwd), 0o600); err != nil {
		return err
	}
	g.files = nil
	a := &agentProcess{incoming: newPipeListener(), served: make(chan struct{})}
	a.server = agent.New(agent.Config{
		Version: "fake", Root: g.root(), System: system{g}, Logger: slog.New(slog.DiscardHandler),
		Status: func() (bool, string, string) { return g.driver.at(OpReady, g.spec) == nil, "reaper", "" },
	})
	go func() {
		defer close(a.served)
		_ = a.server.Serve(g.life, a.incoming) // ends with the guest
	}()
	g.agent = a
	return nil
}

// end waits until the agent of a guest that has ended is gone, and ends its commands.
func (a *agentProcess) end() {
	a.once.Do(func() {
		<-a.served
		a.server.EndCommands()
	})
}

// system is the kernel of a guest.
type system struct{ g *guest }

// AddEntropy implements agent.System. It is the first step of every renewal.
func (s system) AddEntropy([]byte) error { return s.g.driver.at(OpRenew, s.g.spec) }

// SetClock implements agent.System.
func (system) SetClock(time.Time) error { return nil }

// SetHostname implements agent.System.
func (system) SetHostname(string) error { return nil }

// SetBootID implements agent.System.
func (system) SetBootID(string) error { return nil }

// Sync implements agent.System.
func (s system) Sync() { _ = s.g.driver.at(OpSync, s.g.spec) }

// GrowRoot implements agent.System.
func (s system) GrowRoot(_ context.Context, minBytes int64) error {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	if s.g.size < minBytes {
		return fault.Unavailablef("the guest sees a disk of %d bytes, not %d", s.g.size, minBytes)
	}
	return nil
}

// PowerOff implements agent.System.
func (s system) PowerOff() error {
	s.g.PowerOff()
	return nil
}

// pipeListener is a listener whose connections are socket pairs of this process.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }

// dial gives the client's end of a new connection.
func (l *pipeListener) dial(ctx context.Context) (*net.UnixConn, error) {
	client, server, err := connPair()
	if err != nil {
		return nil, err
	}
	select {
	case l.conns <- server:
		return client, nil
	case <-l.closed:
		err = fault.Unavailablef("connect to the guest: connection refused")
	case <-ctx.Done():
		err = fault.New(fault.Timeout, "connect to the guest: no answer: %w", ctx.Err())
	}
	return nil, errors.Join(err, client.Close(), server.Close())
}

// connPair gives both ends of a connection, which know half-close and deadlines as those of a guest do.
func connPair() (a, b *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a connection: %w", err)
	}
	ends := [2]*net.UnixConn{}
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "guest connection")
		conn, cerr := net.FileConn(file) // a copy
		err = errors.Join(err, cerr, file.Close())
		if cerr == nil {
			ends[i] = conn.(*net.UnixConn)
		}
	}
	if err != nil {
		for _, end := range ends {
			if end != nil {
				end.Close()
			}
		}
		return nil, nil, err
	}
	return ends[0], ends[1], nil
}
