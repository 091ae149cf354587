package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"

	"vers/internal/fault"
	"vers/internal/ident"
)

// Dialer opens a fresh connection to the agent.
type Dialer func(ctx context.Context) (net.Conn, error)

// Client speaks to the agent of one VM. It holds no connection between calls and is safe for concurrent use.
type Client struct {
	dial Dialer
}

// New makes a client.
func New(dial Dialer) *Client { return &Client{dial: dial} }

// Hello asks the agent who it is.
func (c *Client) Hello(ctx context.Context) (Info, error) {
	var info Info
	return info, c.call(ctx, OpHello, nil, &info)
}

// TakeOver makes the agent drop all connections that are older than this call's. A versd that adopts a VM calls it, so
// that commands do not wait for a reader that died with the versd before. The commands go on.
func (c *Client) TakeOver(ctx context.Context) error { return c.call(ctx, OpTakeOver, nil, nil) }

// Wake is TakeOver for a guest that stood still while the world went on: its clock is set, its random generator reseeded.
func (c *Client) Wake(ctx context.Context, w Wake) error { return c.call(ctx, OpTakeOver, w, nil) }

// Renew gives the guest a new identity. It returns without error only if the agent confirmed every step and the
// confirmation is for this VM and this call. All older connections of the agent are dropped.
func (c *Client) Renew(ctx context.Context, id Identity) (Confirmation, error) {
	var conf Confirmation
	if err := c.call(ctx, OpRenew, id, &conf); err != nil {
		return conf, err
	}
	if conf.VMID != id.VMID || conf.Nonce != id.Nonce {
		return conf, fault.Unavailablef("the agent confirmed the identity of VM %q (nonce %q), expected VM %q (nonce %q): the guest must not be used",
			conf.VMID, conf.Nonce, id.VMID, id.Nonce)
	}
	return conf, nil
}

// Signal sends a signal ("TERM", "SIGTERM" or "15") to the process group of a command.
func (c *Client) Signal(ctx context.Context, execID, signal string) error {
	return c.call(ctx, OpSignal, SignalRequest{ExecID: execID, Signal: signal}, nil)
}

// Logs reads a page of the output of all commands in time order.
func (c *Client) Logs(ctx context.Context, req LogsRequest) (Logs, error) {
	var logs Logs
	return logs, c.call(ctx, OpLogs, req, &logs)
}

// Sync writes everything the guest has cached to its disk.
func (c *Client) Sync(ctx context.Context) error { return c.call(ctx, OpSync, nil, nil) }

// GrowRoot grows the root file system to the disk as the guest sees it now.
func (c *Client) GrowRoot(ctx context.Context) error { return c.GrowRootTo(ctx, 0) }

// GrowRootTo waits until the guest sees a disk of at least size bytes and grows the root file system to it.
func (c *Client) GrowRootTo(ctx context.Context, size int64) error {
	return c.call(ctx, OpGrow, GrowRequest{MinBytes: size}, nil)
}

// PowerOff ends all processes, makes the disk clean and powers the guest off. It returns when the agent has begun.
func (c *Client) PowerOff(ctx context.Context) error { return c.call(ctx, OpPowerOff, nil, nil) }

// SSH gives the raw bytes of a connection with the agent's own SSH server. ctx bounds the set-up only.
func (c *Client) SSH(ctx context.Context) (net.Conn, error) { return c.raw(ctx, OpSSH, nil) }

// Dial connects to an address from inside the guest's main network, where localhost is the guest. ctx bounds the
// set-up only.
func (c *Client) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return c.raw(ctx, OpDial, DialRequest{Network: network, Address: address})
}

// Exec starts a command and follows it. ctx bounds the stream, not the command: a command goes on without its stream.
func (c *Client) Exec(ctx context.Context, req ExecRequest) (*Stream, error) {
	if req.ID == "" {
		req.ID = ident.New()
	}
	if req.Stdin == "" {
		req.Stdin = StdinNone
	}
	var reply ExecReply
	conn, err := c.open(ctx, OpExec, req, &reply)
	if err != nil {
		return nil, err
	}
	s := newStream(ctx, conn, reply.ExecID)
	if req.Stdin == StdinBytes {
		// Beside the reader: a command may fill its output before it has read all of its input.
		go func() {
			if _, err := s.Write(req.Input); err == nil {
				_ = s.CloseWrite() // a command that ended meanwhile needs no input
			}
		}()
	}
	return s, nil
}

// Attach follows a running or finished command. Unknown commands are fault.NotFound. ctx bounds the stream.
func (c *Client) Attach(ctx context.Context, req AttachRequest) (*Stream, error) {
	var reply ExecReply
	conn, err := c.open(ctx, OpAttach, req, &reply)
	if err != nil {
		return nil, err
	}
	return newStream(ctx, conn, reply.ExecID), nil
}

// ReadFile opens a file of the guest. ctx bounds the reading. The content ends with io.EOF only if it is complete.
func (c *Client) ReadFile(ctx context.Context, req FileRequest) (io.ReadCloser, FileInfo, error) {
	var info FileInfo
	r, err := c.download(ctx, OpRead, req, &info)
	return r, info, err
}

// Pack reads files and folders of the guest as a tar archive, with names from the root on. Symbolic links on the way to
// them are in it too, so that the paths lead to them in the archive as well. ctx bounds the reading, as with ReadFile.
func (c *Client) Pack(ctx context.Context, req PackRequest) (io.ReadCloser, error) {
	return c.download(ctx, OpPack, req, nil)
}

func (c *Client) download(ctx context.Context, op string, body, result any) (io.ReadCloser, error) {
	conn, err := c.open(ctx, op, body, result)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	return &fileReader{conn: conn, stop: stop, frames: NewFrameReader(bufio.NewReaderSize(conn, MaxChunk))}, nil
}

// WriteFile writes a file of the guest: at once or not at all, or with InPlace as the bytes come. Mode 0 means 0644.
func (c *Client) WriteFile(ctx context.Context, req FileRequest, r io.Reader) error {
	req.Mode = req.Mode.Perm()
	return c.upload(ctx, OpWrite, req, r)
}

// Unpack writes the entries of a tar archive in the guest, with their modes, owners, times and extended attributes. Missing
// folders are made. What an archive that breaks off has brought stays.
func (c *Client) Unpack(ctx context.Context, req UnpackRequest, archive io.Reader) error {
	return c.upload(ctx, OpUnpack, req, archive)
}

func (c *Client) upload(ctx context.Context, op string, body any, r io.Reader) error {
	conn, err := c.open(ctx, op, body, nil)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	fw := NewFrameWriter(conn)
	buf := make([]byte, MaxChunk)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if werr := fw.WriteData(buf[:n]); werr != nil {
				return c.lost(ctx, werr)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err // without an EOF frame the agent drops what it has
		}
	}
	if err := fw.Write(FrameEOF); err != nil {
		return c.lost(ctx, err)
	}
	frame, err := NewFrameReader(conn).Next()
	if err != nil {
		return c.lost(ctx, err)
	}
	switch frame.Type {
	case FrameDone:
		return nil
	case FrameError:
		return parseError(frame.Payload)
	}
	return fault.New(fault.Internal, "%w: frame %q after %s", ErrProtocol, frame.Type, op)
}

func parseError(payload []byte) error {
	var e WireError
	if err := json.Unmarshal(payload, &e); err != nil {
		return fault.New(fault.Internal, "%w: %w", ErrProtocol, err)
	}
	return e.Err()
}

// lost explains a connection that broke in the middle.
func (c *Client) lost(ctx context.Context, err error) error {
	if cerr := ctx.Err(); cerr != nil {
		return cerr
	}
	return fault.Unavailablef("lost the connection to the VM's agent: %w", err)
}

// call does an operation that is one message each way.
func (c *Client) call(ctx context.Context, op string, body, result any) error {
	conn, err := c.open(ctx, op, body, result)
	if err != nil {
		return err
	}
	return conn.Close()
}

// open dials, sends the request and reads the reply into result (if not nil).
func (c *Client) open(ctx context.Context, op string, body, result any) (net.Conn, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fault.Unavailablef("reach the VM's agent: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	err = exchange(conn, op, body, result)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil {
		return conn, nil
	}
	_ = conn.Close()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	var e *fault.Error
	if errors.As(err, &e) {
		return nil, err
	}
	return nil, fault.Unavailablef("the VM's agent gave no answer to %s: %w", op, err)
}

func exchange(conn net.Conn, op string, body, result any) error {
	req := Request{Op: op}
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return fault.Invalidf("encode the request %s: %w", op, err)
		}
		if len(raw) > MaxMessage-1024 {
			return fault.Invalidf("the request %s has %d bytes, more than the %d an agent accepts: make command or environment smaller", op, len(raw), MaxMessage-1024)
		}
		req.Body = raw
	}
	if err := WriteMessage(conn, req); err != nil {
		return err
	}
	var reply Reply
	if err := ReadMessage(conn, &reply); err != nil {
		return err
	}
	if reply.Error != nil {
		return reply.Error.Err()
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(reply.Body, result)
}

// raw opens a connection that carries plain bytes after the reply.
func (c *Client) raw(ctx context.Context, op string, body any) (net.Conn, error) {
	return c.open(ctx, op, body, nil)
}
