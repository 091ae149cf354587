package rig

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"vers/internal/agent"
	"vers/internal/guest"
	"vers/internal/machine"
)

// kernel refuses nothing and changes nothing: the agent's own machine is not to be touched.
type kernel struct{}

func (kernel) AddEntropy([]byte) error               { return nil }
func (kernel) SetClock(time.Time) error              { return nil }
func (kernel) SetHostname(string) error              { return nil }
func (kernel) SetBootID(string) error                { return nil }
func (kernel) Sync()                                 {}
func (kernel) GrowRoot(context.Context, int64) error { return nil }
func (kernel) PowerOff() error                       { return nil }

// agentOf is the agent of one VM, reached over loopback TCP.
type agentOf struct {
	listener net.Listener
	stop     context.CancelFunc
	ended    chan struct{}

	mu    sync.Mutex
	conns map[net.Conn]bool
}

// startAgent serves the folder dir and gives the guest its identity.
func startAgent(dir string, vm machine.VM, hostKey string, env map[string]string) (*agentOf, error) {
	home := filepath.Join(dir, "root")
	for name, content := range map[string]string{
		"etc/passwd":    "root:x:0:0:root:" + home + ":/bin/sh\n",
		"root/.profile": "PS1='$ '\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return nil, err
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	a := &agentOf{listener: listener, stop: cancel, ended: make(chan struct{}), conns: map[net.Conn]bool{}}
	s := agent.New(agent.Config{Version: "test", Root: dir, System: kernel{}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	go func() {
		defer close(a.ended)
		_ = s.Serve(ctx, listener)
	}()
	login, err := ssh.ParsePrivateKey([]byte(vm.SSHKey))
	if err != nil {
		return nil, err
	}
	reason := guest.ReasonRun
	if vm.ParentCommit != "" {
		reason = guest.ReasonRestore
	}
	_, err = a.client().Renew(ctx, guest.Identity{
		VMID: vm.ID, Hostname: "vers-" + vm.ID[:8], MachineID: hex.EncodeToString(random(16)), Entropy: random(256), Env: env,
		AuthorizedKeys: []string{string(ssh.MarshalAuthorizedKey(login.PublicKey()))}, SSHHostKey: hostKey, Reason: reason,
		Nonce: hex.EncodeToString(random(16)), Time: time.Now(),
	})
	if err != nil {
		a.end()
		return nil, fmt.Errorf("renew the identity: %w", err)
	}
	return a, nil
}

func (a *agentOf) client() *guest.Client {
	return guest.New(func(ctx context.Context) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", a.listener.Addr().String())
		if err != nil {
			return nil, err
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.conns[conn] = true
		return conn, nil
	})
}

// drop cuts all connections.
func (a *agentOf) drop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for conn := range a.conns {
		conn.Close()
		delete(a.conns, conn)
	}
}

func (a *agentOf) end() {
	a.stop()
	a.drop()
	<-a.ended
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// newKey makes a private key in OpenSSH's format.
func newKey() (string, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(block)), nil
}

// killProcesses ends what commands left behind: the processes whose home is below dir.
func killProcesses(dir string) {
	environments, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environments {
		environment, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(append([]byte{0}, environment...), []byte("\x00HOME="+dir+"/vms/")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
