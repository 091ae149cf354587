package netstack

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"vers/internal/fault"
)

func echo(conn net.Conn) { _, _ = io.Copy(conn, conn) }

// checkEcho sends something through and waits for it to come back, including the end of both directions.
func checkEcho(t *testing.T, conn net.Conn, size int) {
	t.Helper()
	sent := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
	go func() {
		_, _ = conn.Write(sent)
		_ = conn.(interface{ CloseWrite() error }).CloseWrite()
	}()
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("echo of %d bytes gave %d bytes, error %v", size, len(got), err)
	}
}

func TestDialGuest(t *testing.T) {
	n, guest := pair(t, Config{})
	guest.listen(mainNIC, 8080, echo)
	conn, err := n.DialGuest(soon(t), 8080)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.RemoteAddr().String(); got != "10.77.0.2:8080" {
		t.Errorf("remote address %s", got)
	}
	if got, _, _ := net.SplitHostPort(conn.LocalAddr().String()); got != "10.77.0.1" {
		t.Errorf("local address %s", got)
	}
	checkEcho(t, conn, 3<<20)
}

func TestDialAgent(t *testing.T) {
	n, guest := pair(t, Config{})
	guest.listen(controlNIC, agentPort, echo)
	conn, err := n.DialAgent(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	checkEcho(t, conn, 3<<20)
}

// An agent that has its address but does not listen yet is waited for.
func TestDialAgentBeforeItListens(t *testing.T) {
	n, guest := pair(t, Config{})
	result := make(chan error, 1)
	go func() {
		conn, err := n.DialAgent(soon(t))
		if err == nil {
			_ = conn.Close()
		}
		result <- err
	}()
	<-guest.control().seen // the first attempt
	guest.listen(controlNIC, agentPort, echo)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

func TestDialErrors(t *testing.T) {
	n, _ := pair(t, Config{})
	if _, err := n.DialGuest(soon(t), 81); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "nothing listens") {
		t.Errorf("closed port: %v", err)
	}
	if _, err := n.DialGuest(soon(t), 0); !fault.Is(err, fault.Invalid) {
		t.Errorf("port 0: %v", err)
	}

	alone := newTestNetwork(t, Config{})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := alone.DialGuest(ctx, 80); !fault.Is(err, fault.Timeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no guest: %v", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := alone.DialGuest(cancelled, 80); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	closing := make(chan error, 1)
	go func() {
		_, err := alone.DialGuest(context.Background(), 80)
		closing <- err
	}()
	_ = alone.Close()
	if err := <-closing; !errors.Is(err, net.ErrClosed) || !fault.Is(err, fault.Unavailable) {
		t.Errorf("closed while dialling: %v", err)
	}
	if _, err := alone.DialAgent(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// A guest that appears while the connection is being opened is found at once and not at TCP's own second attempt,
// and sees one connection only.
func TestDialFindsLateGuest(t *testing.T) {
	dir := shortDir(t)
	n := newTestNetwork(t, Config{Dir: dir})
	type result struct {
		conn net.Conn
		err  error
	}
	dialled := make(chan result, 1)
	go func() {
		conn, err := n.DialAgent(soon(t))
		dialled <- result{conn, err}
	}()
	// The guest comes when the dialler has noted its first segment, which is lost, and 50 ms have gone.
	eventually(t, "the first segment was sent", func() bool {
		n.control.syns.mu.Lock()
		defer n.control.syns.mu.Unlock()
		for _, frame := range n.control.syns.frames {
			return frame != nil
		}
		return false
	})
	<-time.After(50 * time.Millisecond)
	accepted := make(chan net.Conn, 8)
	start := time.Now()
	guest := newTestGuest(t, dir)
	guest.listen(controlNIC, agentPort, func(conn net.Conn) {
		accepted <- conn
		echo(conn)
	})
	got := <-dialled
	if got.err != nil {
		t.Fatal(got.err)
	}
	defer got.conn.Close()
	if took := time.Since(start); took > 500*time.Millisecond {
		t.Errorf("connected %v after the guest appeared", took)
	}
	checkEcho(t, got.conn, 100)
	if len(accepted) != 1 {
		t.Errorf("the guest saw %d connections", len(accepted))
	}
}

func TestSynPause(t *testing.T) {
	var elapsed, pause time.Duration
	var times []time.Duration
	for elapsed < 3*time.Second {
		pause = synPause(pause, elapsed)
		elapsed += pause
		times = append(times, elapsed)
	}
	if times[0] != 5*time.Millisecond || times[1] != 15*time.Millisecond || times[2] != 35*time.Millisecond {
		t.Errorf("first repetitions at %v", times[:3])
	}
	if len(times) > 80 {
		t.Errorf("%d repetitions in three seconds", len(times))
	}
}

// The connection behaves like one of package net.
func TestConn(t *testing.T) {
	n, guest := pair(t, Config{})
	accepted := make(chan net.Conn)
	guest.listen(mainNIC, 9000, func(conn net.Conn) {
		done := make(chan struct{})
		accepted <- &waitedConn{Conn: conn, done: done}
		<-done
	})
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		c1, err = n.DialGuest(soon(t), 9000)
		if err != nil {
			return nil, nil, nil, err
		}
		c2 = <-accepted
		return c1, c2, func() { _ = c1.Close(); _ = c2.Close() }, nil
	})
}

type waitedConn struct {
	net.Conn
	done   chan struct{}
	closed bool
}

func (c *waitedConn) Close() error {
	if !c.closed {
		c.closed = true
		close(c.done)
	}
	return c.Conn.Close()
}

func TestConnErrors(t *testing.T) {
	n, guest := pair(t, Config{})
	guest.listen(mainNIC, 9001, func(conn net.Conn) { _, _ = io.ReadFull(conn, make([]byte, 1)) })
	conn, err := n.DialGuest(soon(t), 9001)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("deadline: %v", err)
	}
	_ = conn.SetReadDeadline(time.Time{})
	reading := make(chan error, 1)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		reading <- err
	}()
	_ = conn.Close()
	if err := <-reading; !errors.Is(err, net.ErrClosed) {
		t.Errorf("read while closing: %v", err)
	}
	if _, err := conn.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
}

// A guest that does not read one connection does not hold up another, and a paused one does not hold up us.
func TestSlowReader(t *testing.T) {
	n, guest := pair(t, Config{})
	hold := make(chan struct{})
	defer close(hold)
	guest.listen(mainNIC, 1, func(net.Conn) { <-hold })
	guest.listen(mainNIC, 2, echo)
	slow, err := n.DialGuest(soon(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	// Fill everything there is to fill.
	_ = slow.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	if _, err := slow.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the guest took 64 MiB that nobody read: %v", err)
	}
	fast, err := n.DialGuest(soon(t), 2)
	if err != nil {
		t.Fatal(err)
	}
	defer fast.Close()
	checkEcho(t, fast, 1<<20)
}

// Restart: a new Network takes over while the guest goes on.
func TestRestart(t *testing.T) {
	dir := shortDir(t)
	first := newTestNetwork(t, Config{Dir: dir})
	guest := newTestGuest(t, dir)
	guest.listen(mainNIC, 80, echo)
	guest.listen(controlNIC, agentPort, echo)
	old, err := first.DialGuest(soon(t), 80)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()

	// The first is not closed before the second starts: as after a crash, its sockets are still there.
	second := newTestNetwork(t, Config{Dir: dir})
	for range 20 {
		start := time.Now()
		conn, err := second.DialGuest(soon(t), 80)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 500*time.Millisecond {
			t.Errorf("first connection after the restart took %v", took)
		}
		checkEcho(t, conn, 1000)
		_ = conn.Close()
	}
	agent, err := second.DialAgent(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	checkEcho(t, agent, 1000)
	_ = agent.Close()

	// Ending the first late must not take the second's sockets away.
	_ = first.Close()
	if _, err := os.Stat(filepath.Join(dir, "net0.host")); err != nil {
		t.Error(err)
	}
	conn, err := second.DialGuest(soon(t), 80)
	if err != nil {
		t.Fatal(err)
	}
	checkEcho(t, conn, 1000)
	_ = conn.Close()
	_ = second.Close()
	for _, name := range []string{"net0.host", "net1.host"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
}
