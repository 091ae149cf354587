package agent

import (
	"errors"
	"io"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"vers/internal/guest"
)

// Limits of what a client may send before its command.
const maxSSHVars = 256

// session is one SSH session channel: at most one command, shell or subsystem.
type session struct {
	server  *Server
	conn    *sshConn
	channel ssh.Channel
	env     map[string]string
	agent   string // socket of the client's SSH agent
	tty     *guest.Size
	term    string

	mu   sync.Mutex
	proc *process
	busy bool

	endAgent func()

	begin func() // to be run once the request is answered: the end of a quick command must not overtake the answer
}

// session serves a session channel until it is closed.
func (c *sshConn) session(request ssh.NewChannel) {
	channel, requests, err := request.Accept()
	if err != nil {
		return
	}
	sess := &session{server: c.server, conn: c, channel: channel, env: map[string]string{}}
	defer func() { sess.endAgent() }()
	sess.endAgent = func() {}
	for req := range requests {
		ok := sess.request(req)
		if req.WantReply {
			_ = req.Reply(ok, nil)
		}
		if begin := sess.begin; begin != nil {
			sess.begin = nil
			c.server.background.Go(begin)
		}
	}
	// The client has gone. As with sshd, a terminal hangs up and a command without one loses its input.
	sess.mu.Lock()
	p := sess.proc
	sess.mu.Unlock()
	if p == nil {
		return
	}
	if p.pty != nil {
		_ = p.pty.Close()
		return
	}
	p.close()
}

// request handles one request and reports success.
func (sess *session) request(req *ssh.Request) bool {
	switch req.Type {
	case "env":
		var msg struct{ Name, Value string }
		if ssh.Unmarshal(req.Payload, &msg) != nil || !validName(msg.Name) || len(sess.env) >= maxSSHVars ||
			strings.ContainsRune(msg.Value, 0) {
			return false
		}
		sess.env[msg.Name] = msg.Value
		return true
	case "pty-req":
		var msg struct {
			Term                      string
			Cols, Rows, Width, Height uint32
			Modes                     string
		}
		if ssh.Unmarshal(req.Payload, &msg) != nil || sess.busy {
			return false
		}
		sess.tty, sess.term = size(msg.Cols, msg.Rows), msg.Term
		return true
	case "window-change":
		var msg struct{ Cols, Rows, Width, Height uint32 }
		if ssh.Unmarshal(req.Payload, &msg) != nil {
			return false
		}
		if p := sess.current(); p != nil {
			p.resize(*size(msg.Cols, msg.Rows))
		}
		return true
	case "signal":
		var msg struct{ Name string }
		if ssh.Unmarshal(req.Payload, &msg) != nil {
			return false
		}
		sig, err := parseSignal(msg.Name)
		p := sess.current()
		if err != nil || p == nil {
			return false
		}
		alive, err := p.signal(sig)
		return alive && err == nil
	case "auth-agent-req@openssh.com":
		return sess.forwardAgent()
	case "shell":
		return sess.run("")
	case "exec":
		var msg struct{ Command string }
		return ssh.Unmarshal(req.Payload, &msg) == nil && sess.run(msg.Command)
	case "subsystem":
		var msg struct{ Name string }
		return ssh.Unmarshal(req.Payload, &msg) == nil && sess.subsystem(msg.Name)
	}
	return false
}

// forwardAgent lets the command reach the client's SSH agent.
func (sess *session) forwardAgent() bool {
	if sess.agent != "" || sess.busy {
		return false
	}
	path, end, err := sess.conn.forwardAgent()
	if err != nil {
		sess.server.log.Info("cannot forward an SSH agent", "error", err)
		return false
	}
	sess.agent, sess.endAgent = path, end
	return true
}

func size(cols, rows uint32) *guest.Size {
	return &guest.Size{Rows: uint16(min(rows, 1<<15)), Cols: uint16(min(cols, 1<<15))}
}

func (sess *session) current() *process {
	sess.mu.Lock()
	defer sess.mu.Unlock()
	return sess.proc
}

// run starts the login shell, with a command or interactive.
func (sess *session) run(command string) bool {
	if sess.busy {
		return false
	}
	sess.busy = true
	acc, err := lookupAccount(sess.server.config.Root, "")
	if err != nil {
		return false
	}
	shell := usableShell(acc.shell)
	env := sess.server.login(acc)
	env["SHELL"] = shell
	env["SSH_CONNECTION"] = "169.254.77.1 0 169.254.77.2 22" // programs look for it to know that they are remote
	env.add(sess.env)
	if sess.agent != "" {
		env["SSH_AUTH_SOCK"] = sess.agent
	}
	if sess.tty != nil {
		env["TERM"] = sess.term
		if sess.term == "" {
			env["TERM"] = defaultTerm
		}
	}
	l := launch{path: shell, dir: acc.home, env: env.list(), tty: sess.tty, stdin: true}
	if !isDir(l.dir) {
		l.dir = "/"
	}
	name := shell[strings.LastIndexByte(shell, '/')+1:]
	if command == "" {
		l.argv = []string{"-" + name} // the hyphen makes it a login shell
	} else {
		l.argv = []string{name, "-c", command}
	}
	p, err := start(l)
	if err != nil {
		message := "vers: start " + shell + ": " + err.Error() + "\n"
		sess.begin = func() {
			_, _ = io.WriteString(sess.channel.Stderr(), message)
			sess.exit(exitCannotRun, "")
		}
		return true
	}
	sess.server.exposeToOOM(p)
	sess.mu.Lock()
	sess.proc = p
	sess.mu.Unlock()
	sess.begin = func() { sess.follow(p) }
	return true
}

// usableShell falls back to what there is.
func usableShell(shell string) string {
	for _, s := range []string{shell, "/bin/bash", "/bin/sh"} {
		if s != "" && !strings.HasSuffix(s, "/nologin") && !strings.HasSuffix(s, "/false") && unix.Access(s, unix.X_OK) == nil {
			return s
		}
	}
	return "/bin/sh"
}

// follow passes input and output until the command has ended, then its status.
func (sess *session) follow(p *process) {
	go func() {
		_, err := io.Copy(p.stdin, sess.channel)
		if err == nil || !errors.Is(err, syscall.EPIPE) {
			p.close()
			return
		}
		_, _ = io.Copy(io.Discard, sess.channel) // the command wants no more; keep the channel's window open
	}()
	code := p.follow(func(stream string, data []byte) {
		w := io.Writer(sess.channel)
		if stream == guest.Stderr {
			w = sess.channel.Stderr()
		}
		_, _ = w.Write(data) // a client that is gone; the command must not notice
	})
	name := ""
	if p.signaled {
		name = signalName(code - 128)
	}
	sess.exit(code, name)
}

// exit sends the status, or the signal that was the end, and closes the channel. The end of the output comes after the
// status: with both directions at their end a client may close the channel, and hear nothing more.
func (sess *session) exit(code int, name string) {
	if name != "" {
		payload := struct {
			Signal  string
			Core    bool
			Message string
			Lang    string
		}{Signal: name}
		_, _ = sess.channel.SendRequest("exit-signal", false, ssh.Marshal(&payload))
	} else {
		_, _ = sess.channel.SendRequest("exit-status", false, ssh.Marshal(&struct{ Status uint32 }{uint32(code)}))
	}
	_ = sess.channel.Close()
}

// signalName gives the SSH name of the signals that RFC 4254 section 6.10 knows.
func signalName(number int) string {
	switch sig := syscall.Signal(number); sig {
	case syscall.SIGABRT, syscall.SIGALRM, syscall.SIGFPE, syscall.SIGHUP, syscall.SIGILL, syscall.SIGINT, syscall.SIGKILL,
		syscall.SIGPIPE, syscall.SIGQUIT, syscall.SIGSEGV, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2:
		return strings.TrimPrefix(unix.SignalName(sig), "SIG")
	}
	return ""
}
