package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/term"

	"vers/api"
)

// Shell is a login shell in a VM.
type Shell struct {
	Dial   func(ctx context.Context) (*ssh.Client, error)
	In     io.Reader
	Out    io.Writer
	Err    io.Writer
	Notice func(string) // tells the user about a lost connection

	// Terminal is the local terminal. With one, the shell gets a terminal of the same size and type, and a lost
	// connection is made again. nil: the shell just reads In to its end.
	Terminal *os.File
	Term     string // value of TERM

	// Delays before attempts to connect again; nil means 1 s doubling to 10 s, five times.
	Delays []time.Duration
}

// ReconnectDelays are the pauses before attempts to make a lost connection again.
var ReconnectDelays = []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 10 * time.Second}

// Run runs the shell until it ends; its status does not matter. The local terminal is as it was before when Run
// returns or panics, whatever happened.
func (s *Shell) Run(ctx context.Context) error {
	client, err := s.Dial(ctx)
	if err != nil {
		return err
	}
	if s.Terminal == nil {
		defer client.Close()
		return s.piped(ctx, client)
	}
	fd := int(s.Terminal.Fd()) // asked once, before anybody reads from the file
	input := newPump(s.In)
	delays := s.Delays
	if delays == nil {
		delays = ReconnectDelays
	}
	for {
		err := s.interactive(ctx, client, fd, input)
		client.Close()
		if !errors.Is(err, ErrLost) {
			return err
		}
		if client, err = s.again(ctx, delays, err); err != nil {
			return err
		}
	}
}

// again connects after a loss.
func (s *Shell) again(ctx context.Context, delays []time.Duration, lost error) (*ssh.Client, error) {
	for i, delay := range delays {
		s.Notice(fmt.Sprintf("%v; connecting again in %v (attempt %d of %d)", lost, delay, i+1, len(delays)))
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(delay):
		}
		client, err := s.Dial(ctx)
		if err == nil {
			s.Notice("connected again, with a new shell")
			return client, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if status := api.StatusOf(err); status >= 400 && status < 500 {
			return nil, err // it will say the same next time: deleted, paused, key revoked
		}
		lost = err
	}
	return nil, fmt.Errorf("gave up connecting again: %w", lost)
}

// piped runs a shell without a terminal.
func (s *Shell) piped(ctx context.Context, client *ssh.Client) error {
	session, err := client.NewSession()
	if err != nil {
		return fmt.Errorf("open an SSH session: %w", err)
	}
	defer session.Close()
	session.Stdout, session.Stderr = s.Out, s.Err
	stdin, err := session.StdinPipe()
	if err != nil {
		return fmt.Errorf("open an SSH session: %w", err)
	}
	if err := session.Shell(); err != nil {
		return fmt.Errorf("start the shell: %w", err)
	}
	go func() {
		_, _ = io.Copy(stdin, s.In)
		_ = stdin.Close()
	}()
	return s.wait(ctx, client, session)
}

// wait waits for the shell's end and tells it from the connection's end.
func (s *Shell) wait(ctx context.Context, client *ssh.Client, session *ssh.Session) error {
	err := session.Wait()
	var exit *ssh.ExitError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil, errors.As(err, &exit):
		return nil
	}
	// The channel ended without a status. Some servers do that on an orderly end; ask whether the other side lives.
	if _, _, ping := client.SendRequest("keepalive@openssh.com", true, nil); ping == nil {
		return nil
	}
	return ErrLost
}

// resetScreen undoes what a program in the VM may have done to the local terminal when it could not clean up:
// alternate screen, hidden cursor, mouse reports, bracketed paste, colours.
const resetScreen = "\x1b[?1049l\x1b[?1l\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[0m\r\n"

// interactive runs a shell with a terminal.
func (s *Shell) interactive(ctx context.Context, client *ssh.Client, fd int, input *pump) (err error) {
	session, err := client.NewSession()
	if err != nil {
		return fmt.Errorf("open an SSH session: %w", err)
	}
	defer session.Close()
	width, height, err := term.GetSize(fd)
	if err != nil {
		width, height = 80, 24
	}
	modes := ssh.TerminalModes{ssh.ECHO: 1, ssh.TTY_OP_ISPEED: 38400, ssh.TTY_OP_OSPEED: 38400}
	if err := session.RequestPty(s.Term, height, width, modes); err != nil {
		return fmt.Errorf("get a terminal in the VM: %w", err)
	}
	session.Stdout, session.Stderr = s.Out, s.Err
	stdin, err := session.StdinPipe()
	if err != nil {
		return fmt.Errorf("open an SSH session: %w", err)
	}
	raw, err := makeRaw(fd)
	if err != nil {
		return fmt.Errorf("set up the terminal: %w", err)
	}
	defer raw.restore()
	if err := session.Shell(); err != nil {
		return fmt.Errorf("start the shell: %w", err)
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer raw.guard()
		input.copyTo(inner, stdin)
	}()
	go func() {
		defer raw.guard()
		watchSize(inner, fd, width, height, func(width, height int) { _ = session.WindowChange(height, width) })
	}()
	err = s.wait(ctx, client, session)
	if err != nil {
		_, _ = io.WriteString(s.Out, resetScreen)
	}
	return err
}

// rawTerminal is a terminal in raw mode.
type rawTerminal struct {
	fd    int
	state *term.State
}

func makeRaw(fd int) (*rawTerminal, error) {
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	return &rawTerminal{fd, state}, nil
}

// restore may be called more than once.
func (r *rawTerminal) restore() { _ = term.Restore(r.fd, r.state) }

// guard is deferred in goroutines, whose panics end the program without running the deferred calls of others.
func (r *rawTerminal) guard() {
	if p := recover(); p != nil {
		r.restore()
		panic(p)
	}
}

// pump reads the local input all the time, so that a session that ends does not keep a read under way that would
// swallow the first key meant for the next one.
type pump struct{ chunks chan []byte }

func newPump(in io.Reader) *pump {
	p := &pump{chunks: make(chan []byte)}
	go func() {
		defer close(p.chunks)
		buffer := make([]byte, 32<<10)
		for {
			n, err := in.Read(buffer)
			if n > 0 {
				p.chunks <- append([]byte(nil), buffer[:n]...)
			}
			if err != nil {
				return
			}
		}
	}()
	return p
}

// copyTo forwards input until ctx ends, the input ends, or w fails.
func (p *pump) copyTo(ctx context.Context, w io.WriteCloser) {
	for {
		select {
		case <-ctx.Done():
			return
		case chunk, ok := <-p.chunks:
			if !ok {
				_ = w.Close()
				return
			}
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}
}
