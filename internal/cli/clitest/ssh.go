package clitest

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/creack/pty"
	gssh "github.com/gliderlabs/ssh"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"vers/api"
)

// keys are the SSH keys of all VMs of a server.
type keys struct {
	client, host string // as the API shows them
	signer       ssh.Signer
	authorized   ssh.PublicKey
}

func newKeys(t testing.TB) keys {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	authorized, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	_, hostPrivate, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(hostPrivate)
	if err != nil {
		t.Fatal(err)
	}
	return keys{
		client: string(pem.EncodeToMemory(block)), host: string(ssh.MarshalAuthorizedKey(signer.PublicKey())),
		signer: signer, authorized: authorized,
	}
}

// ChangeHostKey lets VMs show another host key than the API names, as an impostor would.
func (s *Server) ChangeHostKey(t testing.TB) {
	other := newKeys(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys.signer = other.signer
}

// sessions are the open SSH connections.
type sessions struct {
	mu    sync.Mutex
	conns map[net.Conn]bool
}

// DropSSH cuts all SSH connections.
func (s *Server) DropSSH() {
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	for conn := range s.sessions.conns {
		conn.Close()
	}
}

// serveSSH upgrades the connection and serves SSH on it.
func (s *Server) serveSSH(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	v, err := s.vm(r)
	if err == nil && v.State != api.StateRunning {
		err = failf(409, "VM '%s' is %s", v.VMID, v.State)
	}
	signer := s.keys.signer
	s.mu.Unlock()
	if err == nil && r.Header.Get("Upgrade") != api.UpgradeSSH {
		err = failf(400, "this address takes upgrades to %s only", api.UpgradeSSH)
	}
	if err != nil {
		fail(w, err)
		return
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		fail(w, err)
		return
	}
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", api.UpgradeSSH)
	s.sessions.mu.Lock()
	if s.sessions.conns == nil {
		s.sessions.conns = map[net.Conn]bool{}
	}
	s.sessions.conns[conn] = true
	s.sessions.mu.Unlock()
	defer func() {
		s.sessions.mu.Lock()
		delete(s.sessions.conns, conn)
		s.sessions.mu.Unlock()
	}()
	server := &gssh.Server{
		Handler:          func(session gssh.Session) { s.session(session, v.VMID) },
		PublicKeyHandler: func(_ gssh.Context, key gssh.PublicKey) bool { return gssh.KeysEqual(key, s.keys.authorized) },
	}
	server.ChannelHandlers, server.RequestHandlers = gssh.DefaultChannelHandlers, gssh.DefaultRequestHandlers
	server.AddHostKey(signer)
	server.HandleConn(conn)
}

// session runs a shell or a command.
func (s *Server) session(session gssh.Session, vmID string) {
	args := []string{}
	if command := session.RawCommand(); command != "" {
		args = []string{"-c", command}
	}
	cmd := exec.Command("sh", args...)
	s.mu.Lock()
	cmd.Dir = s.vmDir(vmID)
	cmd.Env = append(s.environment(cmd.Dir, nil), "PS1=$ ")
	s.mu.Unlock()
	request, sizes, isPTY := session.Pty()
	var err error
	if isPTY {
		cmd.Env = append(cmd.Env, "TERM="+request.Term)
		err = runInPTY(session, cmd, request, sizes)
	} else {
		err = runPiped(session, cmd)
	}
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		code = 255
	}
	_ = session.Exit(code)
}

func runPiped(session gssh.Session, cmd *exec.Cmd) error {
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = session, session.Stderr()
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(stdin, session)
		stdin.Close()
	}()
	go func() {
		<-session.Context().Done()
		_ = cmd.Process.Kill()
	}()
	return cmd.Wait()
}

func runInPTY(session gssh.Session, cmd *exec.Cmd, request gssh.Pty, sizes <-chan gssh.Window) error {
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: uint16(request.Window.Height), Cols: uint16(request.Window.Width)})
	if err != nil {
		return err
	}
	defer terminal.Close()
	control, err := terminal.SyscallConn() // unlike Fd it may be used while others read and write
	if err != nil {
		return err
	}
	go func() {
		for size := range sizes {
			_ = control.Control(func(fd uintptr) {
				_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(size.Height), Col: uint16(size.Width)})
			})
		}
	}()
	go func() { _, _ = io.Copy(terminal, session) }()
	go func() {
		<-session.Context().Done()
		_ = cmd.Process.Signal(os.Kill)
	}()
	_, _ = io.Copy(session, terminal)
	return cmd.Wait()
}
