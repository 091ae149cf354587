package clitest

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"vers/api"
	"vers/internal/ident"
)

// execution is a command that runs or ran, with all its events.
type execution struct {
	id     string
	mu     sync.Mutex
	events []api.StreamEvent
	more   chan struct{} // closed and replaced when there is a new event
	done   bool
	kill   func()
}

func (e *execution) add(event api.StreamEvent) {
	e.mu.Lock()
	defer e.mu.Unlock()
	event.ExecID, event.Cursor = e.id, int64(len(e.events)+1)
	e.events = append(e.events, event)
	e.done = event.Type != api.EventChunk
	close(e.more)
	e.more = make(chan struct{})
}

// output is the io.Writer of one of the streams.
type output struct {
	to     *execution
	stream string
}

func (o output) Write(p []byte) (int, error) {
	o.to.add(api.StreamEvent{Type: api.EventChunk, Stream: o.stream, Data: slices.Clone(p)})
	return len(p), nil
}

func (s *Server) execRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /api/v1/vm/{id}/exec/stream", func(w http.ResponseWriter, r *http.Request) {
		var req api.ExecRequest
		e, err := s.start(r, &req)
		if err != nil {
			fail(w, err)
			return
		}
		s.follow(w, r, e, 0)
	})
	mux.HandleFunc("POST /api/v1/vm/{id}/exec/stream/attach", func(w http.ResponseWriter, r *http.Request) {
		var req api.AttachRequest
		if err := decode(r, &req); err != nil {
			fail(w, err)
			return
		}
		s.mu.Lock()
		e := s.execs[req.ExecID]
		s.mu.Unlock()
		if e == nil {
			fail(w, notFound("exec", req.ExecID))
			return
		}
		cursor := int64(0)
		if req.Cursor != nil {
			cursor = *req.Cursor
		}
		s.follow(w, r, e, int(cursor))
	})
}

// environment is what commands in a VM see.
func (s *Server) environment(dir string, more map[string]string) []string {
	env := map[string]string{"PATH": os.Getenv("PATH"), "HOME": dir, "LANG": "C.UTF-8"}
	maps.Copy(env, s.env)
	maps.Copy(env, more)
	var list []string
	for key, value := range env {
		list = append(list, key+"="+value)
	}
	return list
}

// start runs the command of the request.
func (s *Server) start(r *http.Request, req *api.ExecRequest) (*execution, error) {
	if err := decode(r, req); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.vm(r)
	switch {
	case err != nil:
		return nil, err
	case v.State == api.StatePaused:
		return nil, failf(409, "VM '%s' is paused; resume it first", v.VMID)
	case len(req.Command) == 0:
		return nil, failf(400, "command is empty")
	}
	e := &execution{id: ident.New(), more: make(chan struct{})}
	if req.ExecID != nil {
		e.id = *req.ExecID
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.kill = cancel
	if req.TimeoutSecs != nil && *req.TimeoutSecs > 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*req.TimeoutSecs)*time.Second)
	}
	cmd := exec.CommandContext(ctx, req.Command[0], req.Command[1:]...)
	cmd.Dir = s.vmDir(v.VMID)
	if req.WorkingDir != nil {
		cmd.Dir = filepath.Join(cmd.Dir, *req.WorkingDir)
	}
	cmd.Env = s.environment(s.vmDir(v.VMID), req.Env)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if req.Stdin != nil {
		cmd.Stdin = strings.NewReader(*req.Stdin)
	}
	cmd.Stdout, cmd.Stderr = output{e, api.Stdout}, output{e, api.Stderr}
	s.execs[e.id] = e
	go func() {
		defer cancel()
		e.add(api.StreamEvent{Type: api.EventExit, ExitCode: exitCode(ctx, e, cmd.Run())})
	}()
	return e, nil
}

// exitCode gives the code the way spec/api.md 3.4 has it.
func exitCode(ctx context.Context, e *execution, err error) *int {
	code := 0
	var exit *exec.ExitError
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		e.add(api.StreamEvent{Type: api.EventChunk, Stream: api.Stderr, Data: []byte("time limit reached\n")})
		code = 124
	case errors.As(err, &exit):
		code = exit.ExitCode()
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			code = 128 + int(status.Signal())
		}
	case err != nil:
		e.add(api.StreamEvent{Type: api.EventChunk, Stream: api.Stderr, Data: []byte(err.Error() + "\n")})
		code = 127
	}
	return &code
}

// follow streams the events after cursor.
func (s *Server) follow(w http.ResponseWriter, r *http.Request, e *execution, cursor int) {
	s.mu.Lock()
	cutAfterChunk := s.CutStreams > 0
	if cutAfterChunk {
		s.CutStreams--
	}
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	encoder := json.NewEncoder(w)
	for {
		e.mu.Lock()
		events, done, more := e.events[min(cursor, len(e.events)):], e.done, e.more
		e.mu.Unlock()
		for _, event := range events {
			if cutAfterChunk && event.Cursor > int64(cursor) && event.Type != api.EventChunk {
				panic(http.ErrAbortHandler)
			}
			_ = encoder.Encode(event)
			_ = http.NewResponseController(w).Flush()
			cursor = int(event.Cursor)
			if cutAfterChunk {
				panic(http.ErrAbortHandler) // breaks the connection
			}
		}
		if done {
			return
		}
		select {
		case <-more:
		case <-r.Context().Done():
			return
		}
	}
}

// endProcesses kills what still runs.
func (s *Server) endProcesses() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.execs {
		e.kill()
	}
}
