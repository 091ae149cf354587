package cli

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"vers/test/rig"
)

// terminal is a pseudo-terminal with our program on one side and a user on the other.
type terminal struct {
	user, program *os.File
	fd            int // of program; asked once, before anybody reads

	mu     sync.Mutex
	screen bytes.Buffer
	more   chan struct{}
}

func newTerminal(t *testing.T, columns uint16) *terminal {
	t.Helper()
	user, program, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	x := &terminal{user: user, program: program, fd: int(program.Fd()), more: make(chan struct{}, 1)}
	x.resize(t, columns)
	t.Cleanup(func() { program.Close(); user.Close() })
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, err := user.Read(buffer)
			x.mu.Lock()
			x.screen.Write(buffer[:n])
			x.mu.Unlock()
			select {
			case x.more <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	return x
}

func (x *terminal) resize(t *testing.T, columns uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(x.fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: columns}); err != nil {
		t.Fatal(err)
	}
}

// expect waits until text has appeared, and forgets all up to it.
func (x *terminal) expect(t *testing.T, text string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		x.mu.Lock()
		_, rest, found := strings.Cut(x.screen.String(), text)
		if found {
			x.screen.Reset()
			x.screen.WriteString(rest)
		}
		seen := x.screen.String()
		x.mu.Unlock()
		if found {
			return
		}
		select {
		case <-x.more:
		case <-deadline:
			t.Fatalf("%q did not appear; the screen shows %q", text, seen)
		}
	}
}

func (x *terminal) typeLine(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(x.user, text+"\n"); err != nil {
		t.Fatal(err)
	}
}

// streams connects an App with the terminal.
func (x *terminal) streams() *Streams {
	return &Streams{
		In: x.program, Out: x.program, Err: x.program, InTTY: true, OutTTY: true, ErrTTY: true,
		Terminal: x.program, Width: func() int { return 0 },
	}
}

// canonical fails unless the terminal is as a user expects it: lines, echo, signals.
func (x *terminal) canonical(t *testing.T, before *term.State) {
	t.Helper()
	after, err := term.GetState(x.fd)
	if err != nil || *after != *before {
		t.Errorf("the terminal was not restored (%v)", err)
	}
}

// appFor gives an App in folders of its own, with HEAD on a VM of the server.
func appFor(t *testing.T, server *rig.Server, streams *Streams) *App {
	t.Helper()
	env := map[string]string{"VERS_URL": server.URL, "VERS_API_KEY": server.Key, "TERM": "vt220"}
	app := &App{
		Streams: streams, Dir: t.TempDir(), Home: t.TempDir(),
		Env:             func(name string) (string, bool) { v, ok := env[name]; return v, ok },
		reconnectDelays: []time.Duration{time.Millisecond, time.Millisecond},
	}
	vm := server.Run(t)
	server.Exec(t, server.Acme, vm.ID, `echo "PS1='$ '" > ~/.profile`)
	if err := app.folder().SetHead(vm.ID); err != nil {
		t.Fatal(err)
	}
	return app
}

// start runs the app in the background; the channel gets its exit code.
func start(ctx context.Context, app *App, args ...string) <-chan int {
	done := make(chan int, 1)
	go func() { done <- app.Run(ctx, args) }()
	return done
}

func wantExit(t *testing.T, done <-chan int, want int) {
	t.Helper()
	select {
	case got := <-done:
		if got != want {
			t.Errorf("exit code %d, want %d", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the program does not end")
	}
}

func state(t *testing.T, x *terminal) *term.State {
	t.Helper()
	s, err := term.GetState(x.fd)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConnectTerminal(t *testing.T) {
	server := rig.New(t)
	x := newTerminal(t, 91)
	before := state(t, x)
	done := start(context.Background(), appFor(t, server, x.streams()), "connect")
	x.expect(t, "$ ")
	if *state(t, x) == *before {
		t.Error("the terminal is not in raw mode")
	}
	x.typeLine(t, "stty size; echo type=$TERM")
	x.expect(t, "33 91")
	x.expect(t, "type=vt220")

	// The size follows, without a signal lost: ask until it has arrived.
	x.resize(t, 120)
	if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	x.typeLine(t, "until stty size | grep -q 120; do :; done; echo grown")
	x.expect(t, "grown\r\n")

	// Ctrl-C belongs to the remote program.
	x.typeLine(t, `sh -c 'trap "echo caught; exit" INT; echo ready; while :; do sleep 0.05; done'`)
	x.expect(t, "ready\r\n")
	if _, err := io.WriteString(x.user, "\x03"); err != nil {
		t.Fatal(err)
	}
	x.expect(t, "caught\r\n")
	x.typeLine(t, "exit 3")
	wantExit(t, done, 0)
	x.canonical(t, before)
}

func TestConnectReconnects(t *testing.T) {
	server := rig.New(t)
	x := newTerminal(t, 80)
	before := state(t, x)
	app := appFor(t, server, x.streams())
	id, _, _ := app.folder().Head()
	done := start(context.Background(), app, "connect")
	x.expect(t, "$ ")
	for range 3 {
		server.DropConnections()
		x.expect(t, "connection to the VM was lost; connecting again")
		x.expect(t, "connected again")
		x.expect(t, "$ ")
		x.typeLine(t, "echo still-$((40+2))")
		x.expect(t, "still-42\r\n")
	}
	// A VM that is gone for good ends the attempts.
	if err := server.Manager.Pause(context.Background(), server.Acme, id, false); err != nil {
		t.Fatal(err)
	}
	server.DropConnections()
	x.expect(t, "is paused")
	wantExit(t, done, 4)
	x.canonical(t, before)
}

func TestConnectSignal(t *testing.T) {
	server := rig.New(t)
	x := newTerminal(t, 80)
	before := state(t, x)
	ctx, cancel := context.WithCancelCause(context.Background())
	done := start(ctx, appFor(t, server, x.streams()), "connect")
	x.expect(t, "$ ")
	cancel(&signalError{syscall.SIGTERM})
	wantExit(t, done, 128+int(syscall.SIGTERM))
	x.canonical(t, before)
}

func TestConnectWaitsForBoot(t *testing.T) {
	server := rig.New(t)
	x := newTerminal(t, 80)
	app := appFor(t, server, x.streams())
	server.SlowBoots(2)
	if code := app.Run(context.Background(), []string{"run", "--cold"}); code != 0 {
		t.Fatal("exit code", code)
	}
	done := start(context.Background(), app, "connect")
	x.expect(t, "is booting, waiting for it")
	x.expect(t, "# ")
	x.typeLine(t, "exit")
	wantExit(t, done, 0)
}

func TestConnectRefusesImpostor(t *testing.T) {
	server := rig.New(t)
	server.Impostor()
	x := newTerminal(t, 80)
	before := state(t, x)
	done := start(context.Background(), appFor(t, server, x.streams()), "connect")
	x.expect(t, "the VM shows the host key SHA256:")
	wantExit(t, done, 1)
	x.canonical(t, before)
}

func TestKillAsks(t *testing.T) {
	for answer, code := range map[string]int{"n": 7, "": 7, "y": 0} {
		server := rig.New(t)
		x := newTerminal(t, 80)
		app := appFor(t, server, x.streams())
		id, _, _ := app.folder().Head()
		done := start(context.Background(), app, "kill")
		x.expect(t, "Warning: VM '"+id+"' will be deleted")
		x.expect(t, "Proceed [y/N]: ")
		x.typeLine(t, answer)
		wantExit(t, done, code)
		_, err := server.Manager.Get(context.Background(), server.Acme, id)
		if (err != nil) != (code == 0) {
			t.Errorf("answer %q: %v", answer, err)
		}
	}
}
