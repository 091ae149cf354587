package embedded

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"

	"vers/internal/build/engine"
	"vers/internal/build/engine/embedded/wire"
	"vers/internal/fault"
)

// session is a process whose worker has a container. Requests come one after the other.
type session struct {
	p      *process
	limits engine.Limits
	mu     sync.Mutex
	ended  error // why there is no container any more
}

// Start runs a container of an image.
func (e *Engine) Start(ctx context.Context, c engine.Container) (engine.Session, error) {
	start := e.start()
	if c.Network != "" {
		start.Network = c.Network
	}
	if c.Runtime != "" {
		start.Runtime = c.Runtime
	}
	start.Mounts = c.Mounts
	bound(&start, c.Limits)
	p, err := e.launch(start)
	if err != nil {
		return nil, err
	}
	reply, err := p.ask(ctx, wire.Request{Open: &wire.Open{
		Image: c.Image, Env: c.Env, Hostname: c.Hostname, Privileged: c.Privileged, CapAdd: c.CapAdd, CapDrop: c.CapDrop, Mounts: c.Mounts,
	}}, nil, sink{})
	switch {
	case err != nil:
		return nil, p.explain(ctx, p.wait(ctx, true), err)
	case reply.Err != nil:
		p.wait(ctx, false)
		return nil, reply.Err.Unpack()
	}
	return &session{p: p, limits: start.Limits}, nil
}

// CopyIn unpacks an archive in the container.
func (s *session) CopyIn(ctx context.Context, archive io.Reader) error {
	_, err := s.do(ctx, wire.Request{CopyIn: &wire.None{}}, archive, sink{})
	return err
}

// Export writes the container's root file system.
func (s *session) Export(ctx context.Context, w io.Writer) error {
	_, err := s.do(ctx, wire.Request{Snapshot: &wire.None{}}, nil, sink{data: w})
	return err
}

// do makes a request. If it is cancelled, the container goes with it: nobody can say in what state it is.
func (s *session) do(ctx context.Context, request wire.Request, body io.Reader, out sink) (wire.Reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return wire.Reply{}, err
	}
	reply, err := s.p.ask(ctx, request, body, out)
	if err != nil {
		return reply, s.lost(ctx, err)
	}
	return reply, reply.Err.Unpack()
}

func (s *session) usable(ctx context.Context) error {
	if s.ended != nil {
		return s.ended
	}
	return ctx.Err()
}

// lost ends the session after its process went.
func (s *session) lost(ctx context.Context, err error) error {
	err = s.p.explain(ctx, s.p.wait(ctx, true), err)
	s.ended = fault.New(fault.KindOf(err), "the container has ended: %w", err)
	return err
}

// Exec runs a command. If ctx ends, the command does, and the container stays.
func (s *session) Exec(ctx context.Context, c engine.Command) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.p.conn.Send(wire.Request{Interrupt: &wire.None{}}) })
	defer stop()
	reply, err := s.p.exchange(context.WithoutCancel(ctx), wire.Request{Exec: &wire.Exec{
		Args: c.Args, Env: c.Env, Dir: c.Dir, User: c.User, Privileged: c.Privileged, Timeout: c.Timeout,
	}}, nil, sink{output: c.Stdout, errors: c.Stderr})
	if err != nil {
		return 0, s.lost(context.WithoutCancel(ctx), err)
	}
	if cause := ctx.Err(); cause != nil && reply.Err != nil {
		if errors.Is(cause, context.DeadlineExceeded) {
			return 0, fault.New(fault.Timeout, "the time limit ran out, and the command was ended: %w", cause)
		}
		return 0, cause
	}
	return reply.Code, reply.Err.Unpack()
}

// Close ends and removes the container.
func (s *session) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != nil {
		return nil
	}
	s.ended = fault.Conflictf("the container has been closed")
	ctx := context.Background()
	reply, err := s.p.ask(ctx, wire.Request{Close: &wire.None{}}, nil, sink{})
	verdict := s.p.wait(ctx, err != nil)
	if err != nil {
		return s.p.explain(ctx, verdict, err)
	}
	return reply.Err.Unpack()
}

func isBrokenPipe(err error) bool { return errors.Is(err, syscall.EPIPE) }
