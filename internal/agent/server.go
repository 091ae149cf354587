// Package agent is the guest's side of docs/guest-protocol.md: it runs commands, moves files, serves SSH and renews the
// guest's identity. Starting as the first process is the subpackage boot.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"vers/internal/fault"
	"vers/internal/guest"
)

// System is what the agent asks of the guest's kernel. Tests have their own.
type System interface {
	// AddEntropy MUST credit the bytes to the kernel's generator and force a reseed.
	AddEntropy(entropy []byte) error
	SetClock(now time.Time) error
	SetHostname(name string) error
	// SetBootID MUST make every process see id as the kernel's boot id, replacing an earlier one.
	SetBootID(id string) error
	Sync()
	// GrowRoot grows the root file system to its disk, once that has at least minBytes.
	GrowRoot(ctx context.Context, minBytes int64) error
	// PowerOff does not return if it succeeds.
	PowerOff() error
}

// Config is what a Server needs.
type Config struct {
	Version      string
	Root         string // directory that holds the guest's /etc and /run; "" is /
	System       System
	Logger       *slog.Logger
	Status       func() (ready bool, mainKind, initPath string) // nil: ready, reaper
	OOMProtected bool                                           // the agent is exempt from the OOM killer, its children must not be
	Budget       int64                                          // bytes of command output to keep in all; 0: 32 MiB
}

const defaultBudget = 32 << 20

// requestLimit is how long a client may take for its first message.
const requestLimit = 30 * time.Second

// Server answers requests.
type Server struct {
	config     Config
	log        *slog.Logger
	table      *table
	identity   identity
	conns      connections
	logins     logins
	background sync.WaitGroup // commands and other work that outlives its connection
}

// New makes a server.
func New(config Config) *Server {
	if config.Budget == 0 {
		config.Budget = defaultBudget
	}
	if config.Root == "" {
		config.Root = "/"
	}
	if config.Status == nil {
		config.Status = func() (bool, string, string) { return true, guest.MainReaper, "" }
	}
	s := &Server{config: config, log: config.Logger, table: newTable(config.Budget)}
	s.identity.load(config.Root)
	return s
}

// Serve answers requests on l until ctx is done or l fails. It closes l and all connections; commands go on.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	defer func() { _ = l.Close() }()
	var handlers sync.WaitGroup
	defer handlers.Wait()
	defer s.conns.dropAll()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		var temporary net.Error
		if errors.As(err, &temporary) && !errors.Is(err, net.ErrClosed) {
			s.log.Warn("cannot accept a connection", "error", err)
			select { // out of descriptors: let some be closed
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("accept connections: %w", err)
		}
		number := s.conns.add(conn)
		handlers.Go(func() {
			defer s.conns.remove(number)
			defer func() { _ = conn.Close() }()
			s.handle(ctx, conn, number)
		})
	}
}

// handle answers the one request of a connection. A fault in a handler costs its connection, not the agent.
func (s *Server) handle(ctx context.Context, conn net.Conn, number int64) {
	defer func() {
		if r := recover(); r != nil {
			s.log.Error("a request handler panicked", "panic", r, "stack", string(debug.Stack()))
		}
	}()
	_ = conn.SetReadDeadline(time.Now().Add(requestLimit))
	var req guest.Request
	if err := guest.ReadMessage(conn, &req); err != nil {
		if !errors.Is(err, io.EOF) {
			_ = guest.WriteMessage(conn, guest.Reply{Error: guest.ToWire(fault.New(fault.Invalid, "%w", err))})
		}
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	if err := s.dispatch(ctx, conn, number, req); err != nil {
		_ = guest.WriteMessage(conn, guest.Reply{Error: guest.ToWire(err)})
	}
}

// dispatch answers a request. The error is for the reply: a handler that has replied returns nil.
func (s *Server) dispatch(ctx context.Context, conn net.Conn, number int64, req guest.Request) error {
	switch req.Op {
	case guest.OpExec:
		return s.exec(conn, req.Body)
	case guest.OpAttach:
		return s.attach(conn, req.Body)
	case guest.OpRead:
		return s.readFile(conn, req.Body)
	case guest.OpWrite:
		return s.writeFile(conn, req.Body)
	case guest.OpUnpack:
		return s.unpack(conn, req.Body)
	case guest.OpPack:
		return s.pack(conn, req.Body)
	case guest.OpSSH:
		return s.serveSSH(ctx, conn)
	case guest.OpDial:
		return s.dial(ctx, conn, req.Body)
	case guest.OpPowerOff:
		return s.powerOff(conn)
	case guest.OpRenew:
		// Older connections come from the host's side of another life of this guest. Nobody answers on them.
		s.conns.dropOlder(number)
		return s.renew(conn, req.Body)
	}
	result, err := s.answer(ctx, number, req)
	if err != nil {
		return err
	}
	_ = accept(conn, result) // a client that is gone by now has no use for it
	return nil
}

// answer does the operations that are one message each way.
func (s *Server) answer(ctx context.Context, number int64, req guest.Request) (any, error) {
	switch req.Op {
	case guest.OpHello:
		return s.hello(), nil
	case guest.OpTakeOver:
		s.conns.dropOlder(number)
		return nil, s.wake(req.Body)
	case guest.OpSignal:
		return s.signal(ctx, req.Body)
	case guest.OpLogs:
		return s.logs(req.Body)
	case guest.OpSync:
		s.config.System.Sync()
		return nil, nil
	case guest.OpGrow:
		var grow guest.GrowRequest
		if err := decode(req.Body, &grow); err != nil {
			return nil, err
		}
		return nil, s.config.System.GrowRoot(ctx, grow.MinBytes)
	}
	return nil, fault.Invalidf("unknown operation %q: versd and agent are of different versions", req.Op)
}

// EndCommands ends all commands and waits for them. An agent ends with its guest; one that serves in somebody else's
// process, as in tests, needs this after Serve.
func (s *Server) EndCommands() {
	for _, p := range s.table.running() {
		_, _ = p.signal(syscall.SIGKILL)
	}
	s.background.Wait()
}

func (s *Server) hello() guest.Info {
	ready, kind, path := s.config.Status()
	info := guest.Info{Version: s.config.Version, Ready: ready, Main: kind, InitPath: path}
	info.VMID, info.Generation = s.identity.current()
	return info
}

// powerOff confirms first: afterwards there is nobody to do it.
func (s *Server) powerOff(conn net.Conn) error {
	if err := accept(conn, nil); err != nil {
		return nil
	}
	finish(conn, nil)
	if err := s.config.System.PowerOff(); err != nil {
		s.log.Error("cannot power off", "error", err)
	}
	return nil
}

func decode(body json.RawMessage, v any) error {
	if len(body) == 0 {
		return nil
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fault.Invalidf("read the request: %w", err)
	}
	return nil
}

// accept sends a good reply.
func accept(conn net.Conn, result any) error {
	var reply guest.Reply
	if result != nil {
		raw, err := json.Marshal(result)
		if err != nil {
			return fmt.Errorf("encode reply: %w", err)
		}
		reply.Body = raw
	}
	return guest.WriteMessage(conn, reply)
}

// closing is how long a client may take to notice the end.
const closing = 2 * time.Second

// finish ends our direction and waits for the client to close. Closing with input unread would reset the connection,
// and the reset could overtake what was sent. gone is closed by whoever reads conn; nil: nobody does.
func finish(conn net.Conn, gone <-chan struct{}) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	} else {
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(closing))
	if gone != nil {
		select {
		case <-gone:
		case <-time.After(closing):
		}
		return
	}
	_, _ = io.Copy(io.Discard, conn)
}

// connections knows all open connections by the order in which they came.
type connections struct {
	mu   sync.Mutex
	next int64
	open map[int64]net.Conn
}

func (c *connections) add(conn net.Conn) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[int64]net.Conn{}
	}
	c.next++
	c.open[c.next] = conn
	return c.next
}

func (c *connections) remove(number int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, number)
}

func (c *connections) dropAll() { c.dropOlder(1<<63 - 1) }

// dropOlder resets all connections that came before one.
func (c *connections) dropOlder(number int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n, conn := range c.open {
		if n >= number {
			continue
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // nothing is left to be delivered, and no state to be kept
		}
		_ = conn.Close()
		delete(c.open, n)
	}
}
