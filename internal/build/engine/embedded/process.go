package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"vers/internal/build/engine/embedded/wire"
	"vers/internal/fault"
)

const (
	programName = "vers-builder"
	// endPatience is how long a builder may take to clean up before it is killed itself. What it left then is swept
	// at the next start.
	endPatience = 30 * time.Second
)

// FindProgram returns vers-builder's path: the given one, or beside this program, or in PATH.
func FindProgram(program string) (string, error) {
	if program != "" {
		return program, nil
	}
	self, err := os.Executable()
	if err == nil {
		if self, err = filepath.EvalSymlinks(self); err == nil {
			beside := filepath.Join(filepath.Dir(self), programName)
			if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
				return beside, nil
			}
		}
	}
	path, err := exec.LookPath(programName)
	if err != nil {
		return "", fault.Unavailablef("the program %s, which builds images, is neither beside %s nor in PATH: make install puts it there", programName, self)
	}
	return filepath.Abs(path)
}

// process is one running vers-builder.
type process struct {
	cmd     *exec.Cmd
	conn    *wire.Conn
	in, out *os.File
	verdict *os.File
	errors  tail

	controlOnce sync.Once
	control     *os.File
}

// launch starts one and says what it shall do. The caller calls wait.
func (e *Engine) launch(start wire.Start) (_ *process, err error) {
	p := &process{cmd: exec.Command(e.o.Program, "supervisor")}
	var theirs [4]*os.File
	pipe := func(i int, write bool) *os.File {
		r, w, pipeErr := os.Pipe()
		if pipeErr != nil {
			err = pipeErr
			return nil
		}
		if write {
			theirs[i] = r
			return w
		}
		theirs[i] = w
		return r
	}
	p.in, p.out, p.control, p.verdict = pipe(0, true), pipe(1, false), pipe(2, true), pipe(3, false)
	defer func() {
		for _, file := range theirs {
			_ = file.Close()
		}
		if err != nil {
			p.closeFiles()
			err = fault.Unavailablef("start the container engine: %w", err)
		}
	}()
	if err != nil {
		return nil, err
	}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = theirs[0], theirs[1], &p.errors
	p.cmd.ExtraFiles = []*os.File{theirs[2], theirs[3]}
	p.cmd.WaitDelay = time.Second
	p.conn = wire.NewConn(p.out, p.in)
	line, err := json.Marshal(start)
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	// A builder that ended at once says why in its verdict.
	_, _ = p.control.Write(append(line, '\n'))
	return p, nil
}

func (p *process) closeFiles() {
	p.end()
	for _, file := range []*os.File{p.in, p.out, p.verdict} {
		_ = file.Close()
	}
}

// end tells the builder to kill everything. Idempotent.
func (p *process) end() { p.controlOnce.Do(func() { _ = p.control.Close() }) }

// sink takes what precedes a reply. Nil writers drop it.
type sink struct {
	data, output, errors io.Writer
}

func (s sink) take(kind wire.Kind, content []byte) error {
	w := map[wire.Kind]io.Writer{wire.Data: s.data, wire.Output: s.output, wire.Errors: s.errors}[kind]
	if w == nil {
		return nil
	}
	_, err := w.Write(content)
	return err
}

// ask makes a request and passes its output on. When ctx ends the builder is told to kill everything, and the answer is
// the end of the pipe, or what was under way.
func (p *process) ask(ctx context.Context, request wire.Request, body io.Reader, out sink) (wire.Reply, error) {
	stop := context.AfterFunc(ctx, p.end)
	defer stop()
	return p.exchange(ctx, request, body, out)
}

func (p *process) exchange(ctx context.Context, request wire.Request, body io.Reader, out sink) (wire.Reply, error) {
	var reply wire.Reply
	if err := p.conn.Send(request); err != nil {
		return reply, err
	}
	sent := make(chan error, 1)
	go func() {
		var err error
		if body != nil {
			if err = p.conn.SendData(body); err != nil {
				p.end() // it would wait for the rest
			}
		}
		sent <- err
	}()
	reply, err := p.reply(out)
	if err != nil {
		p.end()
		_ = p.in.Close() // whoever still sends
	}
	select {
	case sendErr := <-sent:
		// That the builder went is no cause but a consequence.
		if sendErr != nil && !errors.Is(sendErr, os.ErrClosed) && !isBrokenPipe(sendErr) {
			return reply, sendErr
		}
	case <-ctx.Done(): // the body may block for ever
	}
	return reply, err
}

// reply reads frames up to the reply.
func (p *process) reply(out sink) (wire.Reply, error) {
	var reply wire.Reply
	for {
		kind, content, err := p.conn.Next()
		if err != nil {
			return reply, err
		}
		if kind == wire.Message {
			return reply, json.Unmarshal(content, &reply)
		}
		if err := out.take(kind, content); err != nil {
			return reply, fmt.Errorf("pass on what the container engine writes: %w", err)
		}
	}
}

// wait returns how the builder ended, after it did.
func (p *process) wait(ctx context.Context, ended bool) wire.Verdict {
	stop := context.AfterFunc(ctx, p.end)
	defer stop()
	if ended {
		p.end()
	}
	_ = p.in.Close()
	killer := time.AfterFunc(endPatience, func() { _ = p.cmd.Process.Kill() })
	defer killer.Stop()
	var verdict wire.Verdict
	data, _ := io.ReadAll(p.verdict)
	_ = json.Unmarshal(data, &verdict)
	_ = p.cmd.Wait()
	p.closeFiles()
	return verdict
}

// explain finds out why there was no answer.
func (p *process) explain(ctx context.Context, verdict wire.Verdict, err error) error {
	switch cause := ctx.Err(); {
	case errors.Is(cause, context.DeadlineExceeded):
		return fault.New(fault.Timeout, "the time limit ran out, and everything that was started has been ended: %w", cause)
	case cause != nil:
		return cause
	case verdict.Err != nil && verdict.Err.Kind == fault.Internal:
		return fault.New(fault.Internal, "%s%s", verdict.Err.Message, p.errors.said())
	case verdict.Err != nil:
		return verdict.Err.Unpack()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), isBrokenPipe(err):
		return fault.Unavailablef("the container engine ended without an answer%s", p.errors.said())
	}
	return err
}

// control starts a builder that does something without a worker.
func (e *Engine) control(ctx context.Context, start wire.Start) (wire.Verdict, error) {
	p, err := e.launch(start)
	if err != nil {
		return wire.Verdict{}, err
	}
	verdict := p.wait(ctx, false)
	if err := ctx.Err(); err != nil {
		return verdict, err
	}
	if verdict.Err == nil && !p.cmd.ProcessState.Success() {
		return verdict, fault.Unavailablef("the container engine ended without an answer%s", p.errors.said())
	}
	return verdict, verdict.Err.Unpack()
}

// tail keeps the end of what a program says.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if excess := len(t.text) - 4096; excess > 0 {
		t.text = t.text[excess:]
	}
	return len(p), nil
}

func (t *tail) said() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if text := strings.TrimSpace(string(t.text)); text != "" {
		return ": " + text
	}
	return ""
}
