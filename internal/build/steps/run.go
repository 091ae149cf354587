package steps

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"

	"vers/internal/build/dockerfile"
	"vers/internal/fault"
	"vers/internal/guest"
)

// run carries out RUN.
func (s *stage) run(ctx context.Context, i dockerfile.Instruction) error {
	work := struct {
		Script string
		Words  []string
		Shell  []string
	}{i.Script, i.Words, s.shell}
	_, err := s.cached(ctx, []string{s.key(i.Name, work)}, func(ctx context.Context, g Guest) error {
		command, err := s.commandOf(ctx, g, i)
		if err != nil {
			return err
		}
		code, _, err := s.exec(ctx, g, command)
		if err == nil && code != 0 {
			err = &StepError{Code: &code, Err: fault.New(fault.Internal, "the command ended with %d", code)}
		}
		return err
	})
	return err
}

// runFile gives a script that names its own interpreter to it.
const runFile = `f=$(mktemp) && printf %s "$1" > "$f" && chmod 700 "$f" || exit 126
"$f"; c=$?; rm -f "$f"; exit $c`

// commandOf is what RUN starts.
func (s *stage) commandOf(ctx context.Context, g Guest, i dockerfile.Instruction) ([]string, error) {
	switch {
	case i.JSON:
		return i.Words, nil
	case strings.HasPrefix(i.Script, "#!"):
		return []string{"sh", "-c", runFile, "sh", i.Script}, nil
	}
	shell, err := s.shellOf(ctx, g)
	return append(slices.Clone(shell), i.Script), err
}

// shellOf is what scripts are given to: that of SHELL, bash if there is one, else sh.
func (s *stage) shellOf(ctx context.Context, g Guest) ([]string, error) {
	if s.shell != nil {
		return s.shell, nil
	}
	if s.bash == nil {
		stream, err := g.Exec(ctx, guest.ExecRequest{Command: []string{"bash", "-c", ":"}, WorkingDir: "/", User: "0"})
		if err != nil {
			return nil, err
		}
		code, err := follow(stream, func(string, []byte) {})
		if err != nil {
			return nil, err
		}
		has := code == 0
		s.bash = &has
	}
	if *s.bash {
		return []string{"bash", "-c"}, nil
	}
	return []string{"sh", "-c"}, nil
}

// request is a command in the surroundings that the Dockerfile gives it.
func (s *stage) request(command []string) guest.ExecRequest {
	env := map[string]string{}
	for _, name := range proxies {
		if value, ok := s.b.req.Args[name]; ok {
			env[name] = value
		}
	}
	maps.Copy(env, s.args)
	maps.Copy(env, s.env)
	req := guest.ExecRequest{Command: command, Env: env, WorkingDir: s.image.WorkingDir, User: s.image.User}
	if req.WorkingDir == "" {
		req.WorkingDir = "/"
	}
	if req.User == "" {
		req.User = "0"
	}
	return req
}

// exec runs a command and shows what it writes. It gives the last of that too.
func (s *stage) exec(ctx context.Context, g Guest, command []string) (code int, tail string, err error) {
	stream, err := g.Exec(ctx, s.request(command))
	if err != nil {
		return 0, "", err
	}
	var last []byte
	code, err = follow(stream, func(name string, data []byte) {
		last = append(last, data...)
		last = last[max(0, len(last)-tailLimit):]
		s.b.tell(EventLog, func(e *Event) { e.Stream, e.Data = name, data })
	})
	return code, lastLine(last), err
}

const (
	tailLimit = 2048 // bytes kept
	lineLimit = 300  // bytes shown
)

func lastLine(tail []byte) string {
	lines := bytes.Split(bytes.TrimSpace(tail), []byte("\n"))
	line := bytes.TrimSpace(lines[len(lines)-1])
	return strings.ToValidUTF8(string(line[:min(len(line), lineLimit)]), "\uFFFD")
}

// follow reads a command's output to its end.
func follow(stream Stream, output func(name string, data []byte)) (code int, err error) {
	defer stream.Close()
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			err = fault.Unavailablef("the VM's agent ended the command's output without its result")
		}
		if err != nil {
			return 0, err
		}
		switch event.Type {
		case guest.EventExit:
			return event.ExitCode, nil
		case guest.EventError:
			return 0, (&guest.WireError{Kind: event.Code, Message: event.Message}).Err()
		}
		output(event.Stream, event.Data)
	}
}
