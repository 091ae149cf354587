package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"vers/internal/fault"
)

func openFiles(t testing.TB) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// Close leaves no goroutine, descriptor or file, whatever is going on at that moment.
func TestCloseLeavesNothing(t *testing.T) {
	served := serveTCP(t, ownAddress+":0", echoTCP)
	udpServed := serveUDPEcho(t, ownAddress+":0")
	resolver := startResolver(t, answerWith("example.test. 60 IN A 93.184.216.34"))
	policy := mustPolicy(t, "", []string{ownAddress, "10.98.0.0/16"}, nil)
	dir := shortDir(t)
	round := func() {
		n, err := New(t.Context(), Config{Dir: dir, Egress: policy, Resolvers: []string{resolver}})
		if err != nil {
			t.Fatal(err)
		}
		guest := newTestGuest(t, dir)
		guest.listen(mainNIC, 80, echo)
		conn, err := n.DialGuest(soon(t), 80)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte("x"))
		out, err := guest.dial(soon(t), served)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = out.Write(make([]byte, 1<<20)) // half of it is on its way when it ends
		checkUDPEcho(t, guest.dialUDP(udpServed), 10)
		if _, err := guest.ask("udp", "example.test.", 1); err != nil {
			t.Fatal(err)
		}
		if _, err := guest.ask("tcp", "example.test.", 1); err != nil {
			t.Fatal(err)
		}
		idle, err := guest.dial(soon(t), mainHost+":53") // a DNS client that asks nothing
		if err != nil {
			t.Fatal(err)
		}
		// A handshake that the guest never finishes: it opens a connection and takes no answer.
		guest.main().send(packet{protocol: 6, destination: strings.Split(served, ":")[0],
			payload: tcpSegment(4444, uint16(mustPort(t, served)), 2)}.frame(mainSide()))
		reading := make(chan error, 1)
		go func() {
			buf := make([]byte, 100)
			for {
				if _, err := conn.Read(buf); err != nil {
					reading <- err
					return
				}
			}
		}()
		_ = n.Close()
		_ = n.Close()
		if err := <-reading; err == nil {
			t.Error("a read went on")
		}
		if stats := n.Stats(); stats.TCPFlows != 0 || stats.UDPFlows != 0 {
			t.Errorf("flows are left: %+v", stats)
		}
		_, _ = conn.Close(), idle.Close()
		_ = out.Close()
		guest.close()
	}
	round() // fills pools and what else is kept for good
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	for range 5 {
		round()
	}
	eventually(t, "as many goroutines as before", func() bool { return runtime.NumGoroutine() <= goroutines })
	eventually(t, "as many descriptors as before", func() bool { return openFiles(t) <= files })
	for _, name := range []string{"net0.host", "net1.host"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left", name)
		}
	}
}

func mustPort(t *testing.T, address string) int {
	resolved, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return resolved.Port
}

func TestLongDirectory(t *testing.T) {
	dir := shortDir(t)
	for range 5 {
		dir = filepath.Join(dir, strings.Repeat("d", 60))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	n := newTestNetwork(t, Config{Dir: dir})
	// QEMU runs inside its directory; the guest of the test uses a short way to the same place.
	short := filepath.Join(shortDir(t), "vm")
	if err := os.Symlink(dir, short); err != nil {
		t.Fatal(err)
	}
	guest := newTestGuest(t, short)
	guest.listen(mainNIC, 80, echo)
	conn, err := n.DialGuest(soon(t), 80)
	if err != nil {
		t.Fatal(err)
	}
	checkEcho(t, conn, 100)
	_ = conn.Close()
}

func TestNewErrors(t *testing.T) {
	if _, err := New(t.Context(), Config{Dir: "/nonexistent/vm"}); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/nonexistent/vm") {
		t.Errorf("no directory: %v", err)
	}
	dir := shortDir(t)
	if err := os.WriteFile(filepath.Join(dir, "net1.host"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), Config{Dir: dir}); !fault.Is(err, fault.Conflict) && !strings.Contains(fmt.Sprint(err), "no socket") {
		t.Errorf("a file in the way: %v", err)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 1 || entries[0].Name() != "net1.host" {
		t.Errorf("left behind: %v", entries)
	}
	if _, err := New(t.Context(), Config{Dir: shortDir(t), Resolvers: []string{"127.0.0.1"}}); !strings.Contains(fmt.Sprint(err), "host:port") {
		t.Errorf("resolver without a port: %v", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(cancelled, Config{Dir: shortDir(t)}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Only the QEMU process's user may send frames.
func TestSocketOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changing owners needs root")
	}
	const uid, gid = 64321, 64322
	dir := shortDir(t)
	n, err := New(t.Context(), Config{Dir: dir, UID: uid, GID: gid, ResolvConf: "/nonexistent"})
	if errors.Is(err, syscall.EINVAL) {
		t.Skip("this user namespace has no such user")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for _, name := range []string{"net0.host", "net1.host"} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		stat := info.Sys().(*syscall.Stat_t)
		if stat.Uid != uid || stat.Gid != gid || info.Mode() != os.ModeSocket|0o600 {
			t.Errorf("%s: %v of %d:%d", name, info.Mode(), stat.Uid, stat.Gid)
		}
	}

	// QEMU's end must be its own: not another user's, and no link to somewhere else.
	elsewhere, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "elsewhere"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	path := filepath.Join(dir, "net0.qemu")
	if err := os.Symlink("elsewhere", path); err != nil {
		t.Fatal(err)
	}
	if n.main.tx.send([]byte("frame")) {
		t.Error("a symbolic link was followed")
	}
	_ = os.Remove(path)
	qemu, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer qemu.Close()
	if n.main.tx.send([]byte("frame")) {
		t.Error("a socket of another user was taken for QEMU's")
	}
	if err := os.Chown(path, uid, gid); err != nil {
		t.Fatal(err)
	}
	if !n.main.tx.send([]byte("frame")) {
		t.Error("QEMU's own socket was not found")
	}
}

// QEMU may come late, go and come back.
func TestQEMUComesAndGoes(t *testing.T) {
	dir := shortDir(t)
	n := newTestNetwork(t, Config{Dir: dir})
	for range 3 {
		guest := newTestGuest(t, dir)
		guest.listen(mainNIC, 80, echo)
		conn, err := n.DialGuest(soon(t), 80)
		if err != nil {
			t.Fatal(err)
		}
		checkEcho(t, conn, 1000)
		_ = conn.Close()
		guest.close()
	}
}

// A paused VM takes no frames. Neither dialling it nor closing its network may hang on that.
func TestPausedGuest(t *testing.T) {
	dir := shortDir(t)
	qemu, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "net0.qemu"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer qemu.Close()
	n := newTestNetwork(t, Config{Dir: dir})
	for range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 100e6)
		if _, err := n.DialGuest(ctx, 80); !fault.Is(err, fault.Timeout) {
			t.Errorf("got %v", err)
		}
		cancel()
	}
	_ = n.Close()
}
