package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vers/internal/cli/session"
	"vers/test/rig"
)

// service listens and serves every connection.
func service(t *testing.T, serve func(net.Conn)) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func echoes(conn net.Conn) {
	_, _ = io.Copy(conn, conn)
	_ = conn.(*net.TCPConn).CloseWrite()
}

// lines is a stream whose reader waits for what was written.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func newLines() *lines { return &lines{more: make(chan struct{}, 1)} }

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	select {
	case l.more <- struct{}{}:
	default:
	}
	return len(p), nil
}

// expect waits until text was written, and forgets all up to it.
func (l *lines) expect(t *testing.T, text string) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		l.mu.Lock()
		_, rest, found := strings.Cut(l.text.String(), text)
		if found {
			l.text.Reset()
			l.text.WriteString(rest)
		}
		all := l.text.String()
		l.mu.Unlock()
		if found {
			return
		}
		select {
		case <-l.more:
		case <-deadline:
			t.Fatalf("%q did not appear; there is %q", text, all)
		}
	}
}

// running is a tunnel command under way.
type running struct {
	server *rig.Server
	app    *App
	vm     string
	notes  *lines
	list   []forwarded
	done   <-chan int
	cancel context.CancelCauseFunc
}

// tunnelFor starts a tunnel command.
func tunnelFor(t *testing.T, args ...string) *running {
	t.Helper()
	r := &running{server: rig.New(t), notes: newLines()}
	out := newLines()
	r.app = appFor(t, r.server, &Streams{In: strings.NewReader(""), Out: out, Err: r.notes})
	r.vm, _, _ = r.app.folder().Head()
	ctx, cancel := context.WithCancelCause(context.Background())
	r.cancel = cancel
	t.Cleanup(func() { cancel(nil) })
	r.done = start(ctx, r.app, append([]string{"tunnel", "--json"}, args...)...)
	for end := time.Now().Add(20 * time.Second); ; {
		out.mu.Lock()
		err := json.Unmarshal(out.text.Bytes(), &r.list)
		out.mu.Unlock()
		if err == nil {
			return r
		}
		select {
		case <-out.more:
		case code := <-r.done:
			t.Fatalf("the tunnel ended with %d: %s", code, &r.notes.text)
		case <-time.After(time.Until(end)):
			t.Fatal("no tunnel")
		}
	}
}

// stop presses Ctrl-C.
func (r *running) stop(t *testing.T) {
	t.Helper()
	r.cancel(&signalError{syscall.SIGINT})
	wantExit(t, r.done, 0)
}

// roundTrip sends data through a connection to an echo.
func roundTrip(port int, data []byte) error {
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(60 * time.Second))
	go func() {
		_, _ = conn.Write(data)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	back, err := io.ReadAll(conn)
	if err == nil && !bytes.Equal(back, data) {
		err = fmt.Errorf("%d of %d bytes came back, or others", len(back), len(data))
	}
	return err
}

// A hundred connections at the same time, over both of two specs, forwards and back.
func TestTunnelCrowd(t *testing.T) {
	port := service(t, echoes)
	r := tunnelFor(t, fmt.Sprintf("0:%d", port), fmt.Sprintf("0:127.0.0.1:%d", port), "-R", fmt.Sprintf("0:%d", port))
	if len(r.list) != 3 || !r.list[2].Reverse || r.list[0].LocalHost != "127.0.0.1" || r.list[0].RemotePort != port {
		t.Fatalf("%+v", r.list)
	}
	ports := []int{r.list[0].LocalPort, r.list[1].LocalPort, r.list[2].RemotePort} // the fake's guests have this machine's ports
	data := make([]byte, 100_000)
	_, _ = rand.Read(data)
	var all, open sync.WaitGroup
	open.Add(100)
	for i := range 100 {
		all.Go(func() {
			conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[i%3]))
			if err != nil {
				t.Error(err)
				open.Done()
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(60 * time.Second))
			_, err = conn.Write([]byte("x"))
			if err == nil {
				_, err = io.ReadFull(conn, make([]byte, 1))
			}
			open.Done()
			open.Wait() // all are through at the same time
			if err != nil {
				t.Error(err)
				return
			}
			go func() {
				_, _ = conn.Write(data)
				_ = conn.(*net.TCPConn).CloseWrite()
			}()
			if back, err := io.ReadAll(conn); err != nil || !bytes.Equal(back, data) {
				t.Errorf("connection %d: %d bytes, %v", i, len(back), err)
			}
		})
	}
	all.Wait()
	r.stop(t)
	if _, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0])); err == nil {
		t.Error("the port is still open")
	}
}

// Readers that do not read, on either side, hold up nobody else on the same connection.
func TestTunnelStalledReaders(t *testing.T) {
	flood := service(t, func(conn net.Conn) { _, _ = io.Copy(conn, zeros{}) })
	mute := service(t, func(conn net.Conn) { _, _ = conn.Read(make([]byte, 1)); select {} })
	port := service(t, echoes)
	r := tunnelFor(t, fmt.Sprintf("0:%d", flood), fmt.Sprintf("0:%d", mute), fmt.Sprintf("0:%d", port))
	dial := func(i int) *net.TCPConn {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", r.list[i].LocalPort))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn.(*net.TCPConn)
	}
	for range 4 {
		if _, err := io.ReadFull(dial(0), make([]byte, 1)); err != nil { // it flows, and then nobody reads
			t.Fatal(err)
		}
		stalled := dial(1)
		full := make(chan struct{})
		go func() { // until all buffers on the way are full
			defer close(full)
			for {
				_ = stalled.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
				if _, err := stalled.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		}()
		<-full
	}
	data := make([]byte, 16<<20)
	_, _ = rand.Read(data)
	if err := roundTrip(r.list[2].LocalPort, data); err != nil {
		t.Errorf("beside stalled readers: %v", err)
	}
	r.stop(t)
}

// zeros is an endless reader.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// The tunnel outlives its connection, a server that is away, and a pause of the VM; not the VM.
func TestTunnelReconnects(t *testing.T) {
	port := service(t, echoes)
	r := tunnelFor(t, fmt.Sprintf("0:%d", port), "-R", fmt.Sprintf("0:%d", port))
	check := func(what string) {
		t.Helper()
		if err := roundTrip(r.list[0].LocalPort, []byte("forwards")); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		var err error
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if err = roundTrip(r.list[1].RemotePort, []byte("back")); err == nil {
				return
			}
		}
		t.Errorf("%s: the VM's port: %v", what, err)
	}
	check("at first")
	for range 3 {
		r.server.DropConnections()
		r.notes.expect(t, "connecting again")
		r.notes.expect(t, "connected again")
		check("after a loss")
	}
	ctx := context.Background()
	if err := r.server.Manager.Pause(ctx, r.server.Acme, r.vm, false); err != nil {
		t.Fatal(err)
	}
	r.server.DropConnections()
	r.notes.expect(t, "go on trying")
	r.notes.expect(t, "paused")
	waited := make(chan error, 1)
	go func() { waited <- roundTrip(r.list[0].LocalPort, []byte("waits")) }()
	if err := r.server.Manager.Resume(ctx, r.server.Acme, r.vm, false); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Errorf("a connection that came while the VM was paused: %v", err)
	}
	check("after a pause")
	if err := r.server.Manager.Delete(ctx, r.server.Acme, r.vm, false); err != nil {
		t.Fatal(err)
	}
	r.server.DropConnections()
	wantExit(t, r.done, 3)
}

func TestForwardingSpecs(t *testing.T) {
	for text, want := range map[string]session.Forwarding{
		"8080:80":           {ListenPort: 8080, Port: 80},
		"0:db:5432":         {Host: "db", Port: 5432},
		"1:[fd00::1]:65535": {ListenPort: 1, Host: "fd00::1", Port: 65535},
		"65535:10.0.0.1:1":  {ListenPort: 65535, Host: "10.0.0.1", Port: 1},
	} {
		if got, err := parseForwarding(text, "local", "remote"); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for text, part := range map[string]string{
		"8080": "use local:remote", "x:80": `local port "x"`, "80:0": `remote port "0"`, "65536:1": "local port", "-1:1": "local port", ":80": "local port",
		"80:": "remote port", "80:65536": "remote port", "1::2": `host ""`, "1:a:b:2": `host "a:b"`, "1:fd00::1:2": "brackets", "1:[x]:2": "brackets", "1:[::1:2": "brackets",
	} {
		if got, err := parseForwarding(text, "local", "remote"); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}
