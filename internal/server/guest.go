package server

import (
	"context"
	"io"
	"net"

	"vers/internal/deploy"
	"vers/internal/fault"
	"vers/internal/guest"
	"vers/internal/machine"
)

// guestAccess is what the server needs of a VM's agent. Tests put a fake here.
type guestAccess interface {
	Exec(ctx context.Context, req guest.ExecRequest) (eventStream, error)
	Attach(ctx context.Context, req guest.AttachRequest) (eventStream, error)
	Signal(ctx context.Context, execID, signal string) error
	Logs(ctx context.Context, req guest.LogsRequest) (guest.Logs, error)
	ReadFile(ctx context.Context, req guest.FileRequest) (io.ReadCloser, guest.FileInfo, error)
	WriteFile(ctx context.Context, req guest.FileRequest, r io.Reader) error
	SSH(ctx context.Context) (net.Conn, error)
	Unpack(ctx context.Context, req guest.UnpackRequest, archive io.Reader) error
	Pack(ctx context.Context, req guest.PackRequest) (io.ReadCloser, error)
}

// eventStream follows a command.
type eventStream = deploy.Stream

// openGuest waits for a booting VM and wakes a sleeping one; a paused or dead one is fault.Conflict.
func (s *Server) openGuest(ctx context.Context, caller machine.Caller, vmID string) (guestAccess, error) {
	client, err := s.Machines.Guest(ctx, caller, vmID)
	if err != nil {
		return nil, err
	}
	return agent{client: client, lookAgain: func() error {
		return s.Machines.Reachable(ctx, caller, vmID)
	}}, nil
}

// agent is the real guestAccess.
type agent struct {
	client    *guest.Client
	lookAgain func() error
}

// explain tells a VM that was deleted, paused or died meanwhile from an agent that does not answer.
func (a agent) explain(err error) error {
	if !fault.Is(err, fault.Unavailable) {
		return err
	}
	if gone := a.lookAgain(); gone != nil {
		return gone
	}
	return err
}

func (a agent) Exec(ctx context.Context, req guest.ExecRequest) (eventStream, error) {
	stream, err := a.client.Exec(ctx, req)
	if err != nil {
		return nil, a.explain(err)
	}
	return explained{stream, a}, nil
}

func (a agent) Attach(ctx context.Context, req guest.AttachRequest) (eventStream, error) {
	stream, err := a.client.Attach(ctx, req)
	if err != nil {
		return nil, a.explain(err)
	}
	return explained{stream, a}, nil
}

func (a agent) Signal(ctx context.Context, execID, signal string) error {
	return a.explain(a.client.Signal(ctx, execID, signal))
}

func (a agent) Logs(ctx context.Context, req guest.LogsRequest) (guest.Logs, error) {
	logs, err := a.client.Logs(ctx, req)
	return logs, a.explain(err)
}

func (a agent) ReadFile(ctx context.Context, req guest.FileRequest) (io.ReadCloser, guest.FileInfo, error) {
	content, info, err := a.client.ReadFile(ctx, req)
	return content, info, a.explain(err)
}

func (a agent) WriteFile(ctx context.Context, req guest.FileRequest, r io.Reader) error {
	return a.explain(a.client.WriteFile(ctx, req, r))
}

func (a agent) SSH(ctx context.Context) (net.Conn, error) {
	conn, err := a.client.SSH(ctx)
	return conn, a.explain(err)
}

func (a agent) Unpack(ctx context.Context, req guest.UnpackRequest, archive io.Reader) error {
	return a.explain(a.client.Unpack(ctx, req, archive))
}

func (a agent) Pack(ctx context.Context, req guest.PackRequest) (io.ReadCloser, error) {
	archive, err := a.client.Pack(ctx, req)
	return archive, a.explain(err)
}

// explained is a stream whose end is explained.
type explained struct {
	eventStream
	agent agent
}

func (e explained) Recv() (guest.Event, error) {
	event, err := e.eventStream.Recv()
	return event, e.agent.explain(err)
}
