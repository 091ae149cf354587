package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"vers/api"
	"vers/internal/fault"
	"vers/internal/guest"
	"vers/internal/ident"
)

// execOutputLimit bounds what the call that collects output holds in memory; streams have no limit.
const execOutputLimit = 64 << 20

func (s *Server) routeExec() {
	add(s, operation{method: http.MethodPost, path: "/vm/{id}/exec", id: "exec", creates: true,
		summary: "Run a command and wait for its end", tag: "Commands"}, s.exec)

	lines := map[string]*huma.Response{"200": {
		Description: "One JSON object per line until exit or error; a stream that ends otherwise was cut",
		Content: map[string]*huma.MediaType{"application/x-ndjson": {
			Schema: s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.StreamEvent](), true, ""),
		}},
	}}
	add(s, operation{method: http.MethodPost, path: "/vm/{id}/exec/stream", id: "exec-stream", creates: true, responses: lines,
		summary: "Run a command and follow its output; it goes on when the client leaves", tag: "Commands"}, s.execStream)
	attached := map[string]*huma.Response{"200": lines["200"]}
	add(s, operation{method: http.MethodPost, path: "/vm/{id}/exec/stream/attach", id: "exec-attach", responses: attached,
		summary: "Follow a running or finished command", tag: "Commands"}, s.attach)
	add(s, operation{method: http.MethodPost, path: "/vm/{id}/exec/signal", id: "exec-signal", status: http.StatusNoContent,
		summary: "[ours] Send a signal to a running command", tag: "Commands"}, s.signal)
}

type execInput struct {
	VMInput
	Body api.ExecRequest
}

// start opens the stream of a new command.
func (s *Server) start(ctx context.Context, in *execInput, command []string) (eventStream, error) {
	id, err := knownVMID(in.ID)
	if err != nil {
		return nil, err
	}
	b := in.Body
	if len(command) == 0 || command[0] == "" {
		return nil, fault.Invalidf("command is empty; give a program and its arguments")
	}
	req := guest.ExecRequest{Command: command, Env: b.Env}
	if b.ExecID != nil {
		if req.ID, err = execID(*b.ExecID); err != nil {
			return nil, err
		}
	}
	if b.WorkingDir != nil {
		req.WorkingDir = *b.WorkingDir
	}
	if b.User != nil {
		req.User = *b.User
	}
	if b.Stdin != nil {
		req.Stdin, req.Input = guest.StdinBytes, []byte(*b.Stdin)
	}
	if b.TimeoutSecs != nil {
		req.TimeoutSecs = *b.TimeoutSecs
	}
	access, err := s.guests(ctx, callerOf(ctx), id)
	if err != nil {
		return nil, err
	}
	return access.Exec(ctx, req)
}

func execID(text string) (string, error) {
	id, ok := ident.Parse(text)
	if !ok {
		return "", fault.Invalidf("exec_id %q is malformed: it must be a UUID", text)
	}
	return id, nil
}

// exec collects the output.
func (s *Server) exec(ctx context.Context, in *execInput) (*output[api.ExecResult], error) {
	stream, err := s.start(ctx, in, in.Body.Command)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var stdout, stderr bytes.Buffer
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			err = fault.Unavailablef("the VM's agent ended the command's output without its result")
		}
		if err != nil {
			return nil, err
		}
		switch event.Type {
		case guest.EventError:
			return nil, (&guest.WireError{Kind: event.Code, Message: event.Message}).Err()
		case guest.EventExit:
			return reply(api.ExecResult{ExitCode: event.ExitCode, ExecID: event.ExecID,
				Stdout: text(stdout.Bytes()), Stderr: text(stderr.Bytes())}), nil
		}
		if stdout.Len()+stderr.Len()+len(event.Data) > execOutputLimit {
			return nil, fault.Exhaustedf("the command %s wrote more than %d MiB; it goes on, follow it with exec/stream/attach",
				event.ExecID, execOutputLimit>>20)
		}
		if event.Stream == guest.Stderr {
			stderr.Write(event.Data)
		} else {
			stdout.Write(event.Data)
		}
	}
}

// text decodes UTF-8; bad bytes become the replacement character.
func text(b []byte) string { return strings.ToValidUTF8(string(b), "\uFFFD") }

func (s *Server) execStream(ctx context.Context, in *execInput) (*huma.StreamResponse, error) {
	command := in.Body.Command
	if !s.KeepQuotes {
		command = unquoteScript(command)
	}
	stream, err := s.start(ctx, in, command)
	if err != nil {
		return nil, err
	}
	return s.follow(stream), nil
}

type signalInput struct {
	VMInput
	Body api.SignalRequest
}

func (s *Server) signal(ctx context.Context, in *signalInput) (*struct{}, error) {
	id, err := knownVMID(in.ID)
	if err != nil {
		return nil, err
	}
	command, err := execID(in.Body.ExecID)
	if err != nil {
		return nil, err
	}
	access, err := s.guests(ctx, callerOf(ctx), id)
	if err != nil {
		return nil, err
	}
	return nil, access.Signal(ctx, command, in.Body.Signal)
}

type attachInput struct {
	VMInput
	Body api.AttachRequest
}

func (s *Server) attach(ctx context.Context, in *attachInput) (*huma.StreamResponse, error) {
	id, err := knownVMID(in.ID)
	if err != nil {
		return nil, err
	}
	req := guest.AttachRequest{Cursor: in.Body.Cursor}
	if req.ExecID, err = execID(in.Body.ExecID); err != nil {
		return nil, err
	}
	if in.Body.FromLatest != nil && *in.Body.FromLatest {
		req.FromLatest, req.Cursor = true, nil
	}
	access, err := s.guests(ctx, callerOf(ctx), id)
	if err != nil {
		return nil, err
	}
	stream, err := access.Attach(ctx, req)
	if err != nil {
		return nil, err
	}
	return s.follow(stream), nil
}

// follow writes events as lines, each flushed. It always ends with an exit or error event, since clients take a stream
// that just ends for success.
func (s *Server) follow(stream eventStream) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		defer stream.Close()
		r, w := humago.Unwrap(hc)
		control := http.NewResponseController(w)
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.Header().Set("X-Accel-Buffering", "no") // a proxy in front must not hold lines back
		w.WriteHeader(http.StatusOK)
		_ = control.Flush() // the client sees at once that the command runs
		encoder := json.NewEncoder(w)
		for {
			event, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				err = fault.Unavailablef("the VM's agent ended the command's output without its result")
			}
			line := showEvent(event)
			if err != nil {
				if r.Context().Err() != nil {
					return // the client left; the command goes on
				}
				line = s.streamError(r.Context(), err)
			}
			if encoder.Encode(line) != nil || control.Flush() != nil || line.Type != api.EventChunk {
				return
			}
		}
	}}
}

func showEvent(e guest.Event) api.StreamEvent {
	line := api.StreamEvent{Type: e.Type, ExecID: e.ExecID, Cursor: e.Cursor}
	if !e.Time.IsZero() {
		at := e.Time.UTC()
		line.Timestamp = &at
	}
	switch e.Type {
	case guest.EventChunk:
		line.Stream, line.Data = e.Stream, e.Data
	case guest.EventExit:
		line.ExitCode = &e.ExitCode
	case guest.EventError:
		line.Code, line.Message = codeOf(e.Code), e.Message
	}
	return line
}

// streamError is the last line of a stream that broke.
func (s *Server) streamError(ctx context.Context, err error) api.StreamEvent {
	p := s.failure(ctx, operation{}, err)
	return api.StreamEvent{Type: api.EventError, Code: codeOf(fault.KindOf(err).String()), Message: p.body.Error}
}

// codeOf makes one word of a kind of fault.
func codeOf(kind string) string { return strings.ReplaceAll(kind, " ", "_") }
