package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"sync"
	"time"

	"vers/internal/fault"
)

// Kinds of Event.
const (
	EventChunk = "chunk"
	EventExit  = "exit"
	EventError = "error"
)

// Event is something that happened to a command.
type Event struct {
	Type     string
	ExecID   string
	Cursor   int64
	Time     time.Time
	Stream   string // chunk: Stdout or Stderr
	Data     []byte // chunk: the caller's to keep
	ExitCode int    // exit
	Code     string // error: a fault kind
	Message  string // error
}

// Stream is a followed command. Recv is for one goroutine; Write, Resize, CloseWrite and Close are safe beside it.
type Stream struct {
	ExecID string

	ctx    context.Context
	conn   net.Conn
	stop   func() bool
	frames *FrameReader
	ended  bool

	mu sync.Mutex
	fw *FrameWriter
}

func newStream(ctx context.Context, conn net.Conn, execID string) *Stream {
	return &Stream{
		ExecID: execID, ctx: ctx, conn: conn,
		stop:   context.AfterFunc(ctx, func() { _ = conn.Close() }),
		frames: NewFrameReader(bufio.NewReaderSize(conn, MaxChunk)),
		fw:     NewFrameWriter(conn),
	}
}

// Recv waits for the next event. After an exit or error event it gives io.EOF. Any other end is an error: the
// command's fate is unknown, attach again with the last cursor.
func (s *Stream) Recv() (Event, error) {
	if s.ended {
		return Event{}, io.EOF
	}
	frame, err := s.frames.Next()
	if err != nil {
		if s.ctx.Err() != nil {
			return Event{}, s.ctx.Err()
		}
		return Event{}, fault.Unavailablef("lost the connection to the VM's agent while command %s ran: %w", s.ExecID, noEOF(err))
	}
	event := Event{ExecID: s.ExecID}
	switch frame.Type {
	case FrameChunk:
		c, err := ParseChunk(frame.Payload)
		if err != nil {
			return Event{}, fault.New(fault.Internal, "%w", err)
		}
		event.Type, event.Stream, event.Cursor, event.Time = EventChunk, c.Stream, c.Cursor, c.Time
		event.Data = append([]byte(nil), c.Data...)
	case FrameExit:
		var exit Exit
		if err := json.Unmarshal(frame.Payload, &exit); err != nil {
			return Event{}, fault.New(fault.Internal, "%w: %w", ErrProtocol, err)
		}
		event.Type, event.ExitCode, event.Cursor, event.Time = EventExit, exit.Code, exit.Cursor, exit.Time
		s.ended = true
	case FrameError:
		var e WireError
		if err := json.Unmarshal(frame.Payload, &e); err != nil {
			return Event{}, fault.New(fault.Internal, "%w: %w", ErrProtocol, err)
		}
		event.Type, event.Code, event.Message = EventError, e.Kind, e.Message
		s.ended = true
	default:
		return Event{}, fault.New(fault.Internal, "%w: frame %q in a command's output", ErrProtocol, frame.Type)
	}
	return event, nil
}

// Write sends standard input (StdinStream).
func (s *Stream) Write(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		n := min(len(p)-sent, MaxChunk)
		if err := s.send(FrameData, p[sent:sent+n]); err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

// CloseWrite ends standard input.
func (s *Stream) CloseWrite() error { return s.send(FrameEOF) }

// Resize tells a command with a terminal its new size.
func (s *Stream) Resize(size Size) error {
	payload, err := json.Marshal(size)
	if err != nil {
		return err
	}
	return s.send(FrameResize, payload)
}

func (s *Stream) send(t FrameType, parts ...[]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fw.Write(t, parts...)
}

// Close ends the stream. The command goes on.
func (s *Stream) Close() error {
	s.stop()
	return s.conn.Close()
}
