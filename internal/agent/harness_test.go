package agent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"vers/internal/guest"
)

// fakeSystem records what a kernel would have been asked.
type fakeSystem struct {
	mu       sync.Mutex
	calls    []string
	fail     string // the call that fails
	hostname string
	bootID   string
	clock    time.Time
}

func (f *fakeSystem) call(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, name)
	if f.fail == name {
		return errors.New("this kernel refuses " + name)
	}
	return nil
}

func (f *fakeSystem) AddEntropy([]byte) error      { return f.call("entropy") }
func (f *fakeSystem) SetClock(now time.Time) error { f.clock = now; return f.call("clock") }
func (f *fakeSystem) SetHostname(n string) error   { f.hostname = n; return f.call("hostname") }
func (f *fakeSystem) SetBootID(id string) error    { f.bootID = id; return f.call("boot-id") }
func (f *fakeSystem) Sync()                        { _ = f.call("sync") }
func (f *fakeSystem) PowerOff() error              { return f.call("power-off") }
func (f *fakeSystem) GrowRoot(context.Context, int64) error {
	return f.call("grow")
}

// rig is an agent on loopback TCP with a client.
type rig struct {
	t      *testing.T
	server *Server
	system *fakeSystem
	root   string
	client *guest.Client
	dial   guest.Dialer
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, system: &fakeSystem{}, root: t.TempDir()}
	must(t, os.MkdirAll(filepath.Join(r.root, "etc"), 0o755))
	home := filepath.Join(r.root, "home")
	must(t, os.MkdirAll(home, 0o755))
	must(t, os.WriteFile(filepath.Join(r.root, "etc/passwd"), []byte("root:x:0:0:root:"+home+":/bin/bash\n"), 0o644))
	r.server = New(Config{Version: "test", Root: r.root, System: r.system, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
		r.server.background.Wait()
	})
	r.dial = func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}
	r.client = guest.New(r.dial)
	return r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for something that happens by itself.
func (r *rig) eventually(what string, happened func() bool) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); !happened(); runtime.Gosched() {
		if time.Now().After(end) {
			r.t.Fatalf("in vain waited until %s", what)
		}
	}
}

// result is a whole command.
type result struct {
	stdout, stderr bytes.Buffer
	code           int
	cursors        []int64
	exit           guest.Event
}

// collect reads a stream to its exit.
func collect(t *testing.T, s *guest.Stream) *result {
	t.Helper()
	defer func() { _ = s.Close() }()
	res := &result{}
	for {
		ev, err := s.Recv()
		if err != nil {
			t.Fatalf("stream broke: %v", err)
		}
		switch ev.Type {
		case guest.EventChunk:
			if len(ev.Data) == 0 || len(ev.Data) > guest.MaxChunk {
				t.Fatalf("chunk of %d bytes", len(ev.Data))
			}
			res.cursors = append(res.cursors, ev.Cursor)
			if ev.Stream == guest.Stderr {
				res.stderr.Write(ev.Data)
			} else {
				res.stdout.Write(ev.Data)
			}
		case guest.EventExit:
			res.code, res.exit = ev.ExitCode, ev
			if _, err := s.Recv(); !errors.Is(err, io.EOF) {
				t.Fatalf("after the exit: %v", err)
			}
			return res
		default:
			t.Fatalf("unexpected event %+v", ev)
		}
	}
}

func (r *rig) exec(req guest.ExecRequest) *result {
	r.t.Helper()
	s, err := r.client.Exec(r.t.Context(), req)
	must(r.t, err)
	return collect(r.t, s)
}

func (r *rig) sh(script string) *result {
	r.t.Helper()
	return r.exec(guest.ExecRequest{Command: []string{"sh", "-c", script}})
}

// keyPair makes an SSH key as PEM and as a line for authorized keys.
func keyPair(t *testing.T) (private, public string) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	block, err := ssh.MarshalPrivateKey(key, "test")
	must(t, err)
	sshPub, err := ssh.NewPublicKey(pub)
	must(t, err)
	return string(pem.EncodeToMemory(block)), string(ssh.MarshalAuthorizedKey(sshPub))
}

// newIdentity makes a good identity and the private key that may log in.
func newIdentity(t *testing.T, vmID string) (id guest.Identity, loginKey string) {
	t.Helper()
	hostKey, _ := keyPair(t)
	loginKey, public := keyPair(t)
	return guest.Identity{
		VMID: vmID, Hostname: "vm-" + vmID, MachineID: "0123456789abcdef0123456789abcdef",
		Entropy: bytes.Repeat([]byte{7}, 64), Time: time.Now(), Env: map[string]string{"GREETING": "hello world"},
		AuthorizedKeys: []string{public}, SSHHostKey: hostKey, Reason: guest.ReasonBranch, Nonce: "nonce-" + vmID,
	}, loginKey
}
