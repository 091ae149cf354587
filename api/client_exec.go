package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/google/uuid"
)

// MaxEventLine is the longest line of an exec stream, in bytes (spec/api.md 3.4).
const MaxEventLine = 16 << 20

// ErrStreamCut says that an exec stream ended without an exit or error event, so the result is unknown.
var ErrStreamCut = errors.New("the output stream ended before the command did")

// ExecStream reads the events of a running or finished command. Close it when done; the command goes on.
type ExecStream struct {
	body    io.ReadCloser
	scanner *bufio.Scanner
}

// ExecStream starts a command and follows its output.
func (c *Client) ExecStream(ctx context.Context, vmID string, req ExecRequest) (*ExecStream, error) {
	return c.stream(ctx, req, "vm", vmID, "exec", "stream")
}

// Attach follows the output of a command that was started earlier, running or finished.
func (c *Client) Attach(ctx context.Context, vmID string, req AttachRequest) (*ExecStream, error) {
	return c.stream(ctx, req, "vm", vmID, "exec", "stream", "attach")
}

// SignalExec sends a signal, such as "INT", to a running command and its children. It is a conflict if the command has
// ended.
func (c *Client) SignalExec(ctx context.Context, vmID string, req SignalRequest) error {
	return c.do(ctx, call{method: http.MethodPost, path: []string{"vm", vmID, "exec", "signal"}, body: req}, nil)
}

func (c *Client) stream(ctx context.Context, body any, path ...string) (*ExecStream, error) {
	resp, err := c.send(ctx, call{method: http.MethodPost, path: path, body: body, accept: "application/x-ndjson"}) //nolint:bodyclose // ExecStream.Close does
	if err != nil {
		return nil, err
	}
	return newExecStream(resp.Body), nil
}

func newExecStream(body io.ReadCloser) *ExecStream {
	scanner := bufio.NewScanner(body)
	scanner.Buffer(make([]byte, 0, 64<<10), MaxEventLine)
	scanner.Split(wholeLines)
	return &ExecStream{body: body, scanner: scanner}
}

// wholeLines is a bufio.SplitFunc like ScanLines, except that a last line without an end is an error: it was cut.
func wholeLines(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return 0, nil, io.ErrUnexpectedEOF
	}
	return 0, nil, nil
}

// Next returns the next event. When the connection breaks or ends before an exit or error event the error wraps
// ErrStreamCut; a line that is not an event is another error.
func (s *ExecStream) Next() (StreamEvent, error) {
	for s.scanner.Scan() {
		line := bytes.TrimSpace(s.scanner.Bytes())
		if len(line) == 0 {
			continue
		}
		var event StreamEvent
		if err := json.Unmarshal(line, &event); err != nil {
			return StreamEvent{}, fmt.Errorf("the output stream holds a line that is no event: %w", err)
		}
		if event.Type == "" && event.Stream != "" {
			event.Type = EventChunk // some servers leave the type of chunks out
		}
		return event, nil
	}
	err := s.scanner.Err()
	switch {
	case err == nil:
		return StreamEvent{}, ErrStreamCut
	case errors.Is(err, bufio.ErrTooLong):
		return StreamEvent{}, fmt.Errorf("the output stream holds a line of more than %d MiB", MaxEventLine>>20)
	default:
		return StreamEvent{}, fmt.Errorf("%w: %w", ErrStreamCut, err)
	}
}

// Close ends reading.
func (s *ExecStream) Close() error { return s.body.Close() }

// Exec runs a command and waits for its end. Output is text; use Run for bytes and for commands that take long.
func (c *Client) Exec(ctx context.Context, vmID string, req ExecRequest) (ExecResult, error) {
	var out ExecResult
	return out, c.do(ctx, call{method: http.MethodPost, path: []string{"vm", vmID, "exec"}, body: req}, &out)
}

// RunError is an error event: the server lost the command or could not start it.
type RunError struct{ Code, Message string }

func (e *RunError) Error() string {
	if e.Code == "" {
		return e.Message
	}
	return fmt.Sprintf("%s (%s)", e.Message, e.Code)
}

// Pauses before attaching again after a broken stream. A server that restarts is back within a few seconds.
var attachDelays = []time.Duration{
	0, 200 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 8 * time.Second,
}

// Run starts a command, copies its output to stdout and stderr as it comes, and returns its exit code. When the
// connection breaks it attaches again and goes on where it stopped, without losing or repeating a byte. notice, if not
// nil, is told about that in words for the user.
//
// When ctx ends, Run returns its cause; the command goes on in the VM under req.ExecID (chosen here if nil).
func (c *Client) Run(ctx context.Context, vmID string, req ExecRequest, stdout, stderr io.Writer, notice func(string)) (int, error) {
	if req.ExecID == nil {
		id := uuid.NewString()
		req.ExecID = &id
	}
	if notice == nil {
		notice = func(string) {}
	}
	follow := &follower{stdout: stdout, stderr: stderr}
	stream, err := c.ExecStream(ctx, vmID, req)
	var connect *ConnectError
	if err != nil && (!errors.As(err, &connect) || connect.Refused) {
		return 0, err
	}
	if err == nil {
		var code int
		if code, err = follow.read(stream); !errors.Is(err, ErrStreamCut) {
			return code, err
		}
	}
	return c.reattach(ctx, vmID, *req.ExecID, follow, notice, err)
}

// Follow copies the output of a command that was started earlier, from the oldest that is kept, and returns its exit code.
// Broken connections are made again as by Run.
func (c *Client) Follow(ctx context.Context, vmID, execID string, stdout, stderr io.Writer, notice func(string)) (int, error) {
	stream, err := c.Attach(ctx, vmID, AttachRequest{ExecID: execID})
	if err != nil {
		return 0, err
	}
	follow := &follower{stdout: stdout, stderr: stderr}
	code, err := follow.read(stream)
	if !errors.Is(err, ErrStreamCut) {
		return code, err
	}
	return c.reattach(ctx, vmID, execID, follow, notice, err)
}

// reattach follows a command whose stream broke with err.
func (c *Client) reattach(ctx context.Context, vmID, execID string, follow *follower, notice func(string), err error) (int, error) {
	for attempt := 0; attempt < len(attachDelays); attempt++ {
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-time.After(attachDelays[attempt]):
		}
		if attempt > 0 {
			notice(fmt.Sprintf("connection lost (%v), attaching to the command again (attempt %d of %d)", err, attempt, len(attachDelays)-1))
		}
		before := follow.cursor
		cursor := before
		var stream *ExecStream
		stream, attachErr := c.Attach(ctx, vmID, AttachRequest{ExecID: execID, Cursor: &cursor})
		var code int
		if attachErr == nil {
			code, attachErr = follow.read(stream)
		}
		var connect *ConnectError
		switch {
		case attachErr == nil:
			return code, nil
		case ctx.Err() != nil:
			return 0, context.Cause(ctx)
		case IsNotFound(attachErr) && before == 0:
			return 0, fmt.Errorf("the connection broke before the command started, and the server does not know it: %w", err)
		case errors.Is(attachErr, ErrStreamCut), errors.As(attachErr, &connect), StatusOf(attachErr) >= 500:
			err = attachErr
		default:
			return 0, attachErr
		}
		if follow.cursor > before {
			attempt = 0 // it went on for a while: a new break, not the old one
		}
	}
	return 0, fmt.Errorf("lost command %s in VM %s, its result is unknown: %w", execID, vmID, err)
}

// follower copies the chunks of a stream and remembers how far it came.
type follower struct {
	stdout, stderr io.Writer
	cursor         int64
}

func (f *follower) read(stream *ExecStream) (int, error) {
	defer stream.Close()
	for {
		event, err := stream.Next()
		if err != nil {
			return 0, err
		}
		if event.Cursor != 0 {
			if event.Type == EventChunk && event.Cursor <= f.cursor {
				continue // replayed
			}
			f.cursor = event.Cursor
		}
		switch event.Type {
		case EventChunk:
			out := f.stdout
			if event.Stream == Stderr {
				out = f.stderr
			}
			if _, err := out.Write(event.Data); err != nil {
				return 0, fmt.Errorf("write the command's output: %w", err)
			}
		case EventExit:
			if event.ExitCode == nil {
				return 0, errors.New("the server reported the end of the command without an exit code")
			}
			return *event.ExitCode, nil
		case EventError:
			return 0, &RunError{Code: event.Code, Message: event.Message}
		}
	}
}
