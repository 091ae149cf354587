package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
	"vers/internal/guest"
)

// maxTimeout keeps a limit within what a time.Duration holds.
const maxTimeout = 10 * 365 * 24 * 3600

// exec starts a command and follows it on the connection.
func (s *Server) exec(conn net.Conn, body json.RawMessage) error {
	var req guest.ExecRequest
	if err := decode(body, &req); err != nil {
		return err
	}
	if err := checkExec(req); err != nil {
		return err
	}
	e, err := s.table.create(req.ID)
	if err != nil {
		return err
	}
	reader := e.attach(0)
	defer e.detach(reader)
	p := s.run(e, req)
	if err := accept(conn, guest.ExecReply{ExecID: req.ID}); err != nil {
		closeInput(p)
		return nil // the command goes on without its client
	}
	s.stream(conn, e, reader, p)
	return nil
}

func checkExec(req guest.ExecRequest) error {
	switch {
	case req.ID == "" || len(req.ID) > 128:
		return fault.Invalidf("exec id %q is not 1 to 128 characters", req.ID)
	case len(req.Command) == 0:
		return fault.Invalidf("the command is empty: give the program and its arguments")
	case req.TimeoutSecs < 0 || req.TimeoutSecs > maxTimeout:
		return fault.Invalidf("time limit of %d s is not 0 (none) to %d", req.TimeoutSecs, maxTimeout)
	}
	switch req.Stdin {
	case "", guest.StdinNone, guest.StdinBytes, guest.StdinStream:
	default:
		return fault.Invalidf("unknown mode of standard input %q", req.Stdin)
	}
	for _, arg := range req.Command {
		if strings.ContainsRune(arg, 0) {
			return fault.Invalidf("the command has a zero byte in argument %q", arg)
		}
	}
	if strings.ContainsRune(req.WorkingDir, 0) {
		return fault.Invalidf("working directory %q has a zero byte", req.WorkingDir)
	}
	return checkVars(req.Env)
}

// run starts a command and looks after it until its end, in the background. It gives nil if it could not be started;
// then the record has its end already.
func (s *Server) run(e *execution, req guest.ExecRequest) *process {
	l, bad := s.prepare(req)
	var p *process
	if bad == nil {
		var err error
		if p, err = start(l); err != nil {
			bad = refusalOf(l, err)
		}
	}
	if bad != nil {
		e.append(guest.Stderr, []byte(bad.line))
		e.finish(bad.code)
		return nil
	}
	s.exposeToOOM(p)
	e.mu.Lock()
	e.proc = p
	e.changed()
	e.mu.Unlock()

	s.background.Go(func() {
		var expired atomic.Bool
		if req.TimeoutSecs > 0 {
			timer := time.AfterFunc(time.Duration(req.TimeoutSecs)*time.Second, func() {
				if alive, _ := p.signal(syscall.SIGKILL); alive {
					expired.Store(true)
				}
			})
			defer timer.Stop()
		}
		code := p.follow(e.append)
		if expired.Load() {
			e.append(guest.Stderr, fmt.Appendf(nil, "vers: killed: the command reached its time limit of %d s\n", req.TimeoutSecs))
			code = exitTimeout
		}
		e.finish(code)
	})
	return p
}

// exposeToOOM makes a child as killable as any other process, where the agent itself is protected.
func (s *Server) exposeToOOM(p *process) {
	if s.config.OOMProtected {
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.proc.Pid), []byte("0"), 0) // gone already: fine
	}
}

// attach follows a command that was started on another connection.
func (s *Server) attach(conn net.Conn, body json.RawMessage) error {
	var req guest.AttachRequest
	if err := decode(body, &req); err != nil {
		return err
	}
	e, err := s.table.find(req.ExecID)
	if err != nil {
		return err
	}
	var cursor int64
	if req.Cursor != nil {
		cursor = *req.Cursor
	}
	if req.FromLatest {
		cursor = e.latest()
	}
	reader := e.attach(cursor)
	defer e.detach(reader)
	if err := accept(conn, guest.ExecReply{ExecID: e.id}); err != nil {
		return nil
	}
	s.stream(conn, e, reader, nil)
	return nil
}

// stream sends a command's output until its exit, or until the client is gone. With p it takes input for it.
func (s *Server) stream(conn net.Conn, e *execution, r *reader, p *process) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		feed(conn, p)
	}()
	out := guest.NewFrameWriter(conn)
	for {
		c, exit, ok := e.read(gone, r)
		if !ok {
			return
		}
		if exit != nil {
			if out.WriteJSON(guest.FrameExit, exit) == nil {
				finish(conn, gone)
			}
			return
		}
		if out.WriteChunk(c) != nil {
			return
		}
	}
}

// feed passes input frames to a command until the connection ends. A client that goes without having ended the input
// ends it by that.
func feed(conn net.Conn, p *process) {
	defer closeInput(p)
	frames := guest.NewFrameReader(bufio.NewReader(conn))
	for {
		frame, err := frames.Next()
		if err != nil {
			return
		}
		if p == nil {
			continue
		}
		switch frame.Type {
		case guest.FrameData:
			if p.stdin != nil {
				_, _ = p.stdin.Write(frame.Payload) // a command may close its input; the rest is dropped
			}
		case guest.FrameEOF:
			p.close()
		case guest.FrameResize:
			var size guest.Size
			if json.Unmarshal(frame.Payload, &size) == nil {
				p.resize(size)
			}
		}
	}
}

func closeInput(p *process) {
	if p != nil && p.pty == nil {
		p.close()
	}
}

// signal sends a signal to a command's process group.
func (s *Server) signal(ctx context.Context, body json.RawMessage) (any, error) {
	var req guest.SignalRequest
	if err := decode(body, &req); err != nil {
		return nil, err
	}
	sig, err := parseSignal(req.Signal)
	if err != nil {
		return nil, err
	}
	e, err := s.table.find(req.ExecID)
	if err != nil {
		return nil, err
	}
	ended := fault.Conflictf("command %s has ended: there is nothing to send %s to", req.ExecID, req.Signal)
	p, err := e.begun(ctx)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return nil, ended
	}
	alive, err := p.signal(sig)
	if err == nil && !alive {
		err = ended
	}
	return nil, err
}

// parseSignal reads "TERM", "SIGTERM" or "15".
func parseSignal(name string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(name); err == nil && n >= 1 && n <= 64 {
		return syscall.Signal(n), nil
	}
	upper := strings.ToUpper(name)
	if !strings.HasPrefix(upper, "SIG") {
		upper = "SIG" + upper
	}
	if sig := unix.SignalNum(upper); sig != 0 {
		return sig, nil
	}
	return 0, fault.Invalidf("unknown signal %q: use a name such as TERM or a number from 1 to 64", name)
}

// logs reads output of all commands.
func (s *Server) logs(body json.RawMessage) (any, error) {
	var req guest.LogsRequest
	if err := decode(body, &req); err != nil {
		return nil, err
	}
	if req.Offset < 0 || req.MaxEntries < 0 {
		return nil, fault.Invalidf("offset %d and max_entries %d must not be negative", req.Offset, req.MaxEntries)
	}
	if req.Stream != "" && req.Stream != guest.Stdout && req.Stream != guest.Stderr {
		return nil, fault.Invalidf("unknown stream %q: use stdout or stderr", req.Stream)
	}
	return s.table.logs(req), nil
}
