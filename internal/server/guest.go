package server

import (
	"context"
	"io"
	"io/fs"
	"net"

	"vers/internal/guest"
	"vers/internal/machine"
)

// guestAccess is what the server needs of a VM's agent. Tests put a fake here.
type guestAccess interface {
	Exec(ctx context.Context, req guest.ExecRequest) (eventStream, error)
	Attach(ctx context.Context, req guest.AttachRequest) (eventStream, error)
	Logs(ctx context.Context, req guest.LogsRequest) (guest.Logs, error)
	ReadFile(ctx context.Context, path string) (io.ReadCloser, guest.FileInfo, error)
	WriteFile(ctx context.Context, path string, mode fs.FileMode, createDirs bool, r io.Reader) error
	SSH(ctx context.Context) (net.Conn, error)
}

// eventStream follows a command. Recv gives io.EOF after an exit or error event; every other end is an error.
type eventStream interface {
	Recv() (guest.Event, error)
	Close() error
}

// openGuest waits for a booting VM; a paused or dead one is fault.Conflict.
func (s *Server) openGuest(ctx context.Context, caller machine.Caller, vmID string) (guestAccess, error) {
	client, err := s.Machines.Guest(ctx, caller, vmID)
	if err != nil {
		return nil, err
	}
	return agent{client}, nil
}

// agent is the real guestAccess.
type agent struct{ *guest.Client }

func (a agent) Exec(ctx context.Context, req guest.ExecRequest) (eventStream, error) {
	stream, err := a.Client.Exec(ctx, req)
	if err != nil {
		return nil, err
	}
	return stream, nil
}

func (a agent) Attach(ctx context.Context, req guest.AttachRequest) (eventStream, error) {
	stream, err := a.Client.Attach(ctx, req)
	if err != nil {
		return nil, err
	}
	return stream, nil
}
