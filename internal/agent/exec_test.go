package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"vers/internal/fault"
	"vers/internal/guest"
)

func TestExecResults(t *testing.T) {
	r := newRig(t)
	plain := filepath.Join(r.root, "plain")
	must(t, os.WriteFile(plain, []byte("x"), 0o644))
	script := filepath.Join(r.root, "script")
	must(t, os.WriteFile(script, []byte("echo from sh $1"), 0o755))
	lost := filepath.Join(r.root, "lost")
	must(t, os.WriteFile(lost, []byte("#!/no/such/interpreter\n"), 0o755))

	for name, c := range map[string]struct {
		req            guest.ExecRequest
		code           int
		stdout, stderr string // stderr is a part
	}{
		"streams":            {guest.ExecRequest{Command: []string{"sh", "-c", "echo out; echo err >&2; exit 7"}}, 7, "out\n", "err\n"},
		"no shell":           {guest.ExecRequest{Command: []string{"echo", "$HOME", "a b"}}, 0, "$HOME a b\n", ""},
		"stdin none":         {guest.ExecRequest{Command: []string{"cat"}}, 0, "", ""},
		"stdin bytes":        {guest.ExecRequest{Command: []string{"cat"}, Stdin: guest.StdinBytes, Input: []byte("in\x00put")}, 0, "in\x00put", ""},
		"environment":        {guest.ExecRequest{Command: []string{"sh", "-c", "echo $A $USER $PWD"}, Env: map[string]string{"A": "1 2"}, WorkingDir: "/usr"}, 0, "1 2 root /usr\n", ""},
		"home":               {guest.ExecRequest{Command: []string{"pwd"}}, 0, filepath.Join(r.root, "home") + "\n", ""},
		"own PATH":           {guest.ExecRequest{Command: []string{"script", "x"}, Env: map[string]string{"PATH": r.root}}, 0, "from sh x\n", ""},
		"missing":            {guest.ExecRequest{Command: []string{"no-such-program"}}, 127, "", "no-such-program: command not found"},
		"missing path":       {guest.ExecRequest{Command: []string{"/no/such"}}, 127, "", "no such file"},
		"empty name":         {guest.ExecRequest{Command: []string{""}}, 127, "", "not found"},
		"missing loader":     {guest.ExecRequest{Command: []string{lost}}, 127, "", "interpreter or loader is missing"},
		"not executable":     {guest.ExecRequest{Command: []string{plain}}, 126, "", "not executable (mode 0644)"},
		"directory":          {guest.ExecRequest{Command: []string{"/usr"}}, 126, "", "is a directory"},
		"no working dir":     {guest.ExecRequest{Command: []string{"true"}, WorkingDir: "/no/dir"}, 126, "", "/no/dir does not exist"},
		"no user":            {guest.ExecRequest{Command: []string{"true"}, User: "nobody-here"}, 126, "", "no user"},
		"killed by a signal": {guest.ExecRequest{Command: []string{"sh", "-c", "kill -TERM $$"}}, 143, "", ""},
		"time limit":         {guest.ExecRequest{Command: []string{"sh", "-c", "echo before; sleep 60 & wait"}, TimeoutSecs: 1}, 124, "before\n", "time limit of 1 s"},
		"terminal":           {guest.ExecRequest{Command: []string{"sh", "-c", "stty size; echo $TERM; test -t 0 && test -t 2 && echo tty"}, TTY: &guest.Size{Rows: 33, Cols: 111}}, 0, "33 111\r\nxterm-256color\r\ntty\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			sub := *r
			sub.t = t
			res := sub.exec(c.req)
			if res.code != c.code || res.stdout.String() != c.stdout || !strings.Contains(res.stderr.String(), c.stderr) {
				t.Errorf("code %d, stdout %q, stderr %q", res.code, res.stdout.String(), res.stderr.String())
			}
			if c.stderr == "" && res.stderr.Len() > 0 {
				t.Errorf("unexpected stderr %q", res.stderr.String())
			}
			for i, cursor := range append(res.cursors, res.exit.Cursor) {
				if cursor != int64(i+1) {
					t.Errorf("cursor %d at place %d", cursor, i+1)
				}
			}
		})
	}
}

func TestExecRefused(t *testing.T) {
	r := newRig(t)
	for name, req := range map[string]guest.ExecRequest{
		"empty command":  {},
		"negative limit": {Command: []string{"true"}, TimeoutSecs: -1},
		"zero byte":      {Command: []string{"a\x00b"}},
		"bad variable":   {Command: []string{"true"}, Env: map[string]string{"A=B": ""}},
		"bad stdin":      {Command: []string{"true"}, Stdin: "telepathy"},
	} {
		if _, err := r.client.Exec(t.Context(), req); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	first := guest.ExecRequest{ID: "same", Command: []string{"true"}}
	r.exec(first)
	if _, err := r.client.Exec(t.Context(), first); !fault.Is(err, fault.Conflict) {
		t.Errorf("second command with the same id: %v", err)
	}
	if _, err := r.client.Attach(t.Context(), guest.AttachRequest{ExecID: "unknown"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("attach to an unknown command: %v", err)
	}
}

func TestExecStreamedInput(t *testing.T) {
	r := newRig(t)
	s, err := r.client.Exec(t.Context(), guest.ExecRequest{Command: []string{"cat"}, Stdin: guest.StdinStream})
	must(t, err)
	for i := range 3 {
		line := fmt.Sprintf("line %d\n", i)
		_, err := s.Write([]byte(line))
		must(t, err)
		ev, err := s.Recv()
		must(t, err)
		if string(ev.Data) != line {
			t.Fatalf("got %q", ev.Data)
		}
	}
	must(t, s.CloseWrite())
	if res := collect(t, s); res.code != 0 {
		t.Errorf("exit code %d", res.code)
	}
}

func TestExecManyBytes(t *testing.T) {
	r := newRig(t)
	input := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // 16 MiB, far more than is kept
	res := r.exec(guest.ExecRequest{Command: []string{"sh", "-c", "tee /dev/stderr"}, Stdin: guest.StdinBytes, Input: input})
	if sha256.Sum256(res.stdout.Bytes()) != sha256.Sum256(input) || sha256.Sum256(res.stderr.Bytes()) != sha256.Sum256(input) {
		t.Errorf("%d bytes in, %d and %d out, or others", len(input), res.stdout.Len(), res.stderr.Len())
	}
}

// A command must not run ahead of a consumer by more than what is kept, and must lose nothing.
func TestSlowConsumer(t *testing.T) {
	r := newRig(t)
	const lines = 400_000 // 6 MB: more than all buffers on the way
	progress := filepath.Join(r.root, "progress")
	s, err := r.client.Exec(t.Context(), guest.ExecRequest{ID: "slow", Command: []string{"sh", "-c",
		fmt.Sprintf("seq -f '%%014.0f' %d; echo done > %s", lines, progress)}})
	must(t, err)
	e, err := r.server.table.find("slow")
	must(t, err)
	// Nothing is read: the agent fills the connection, then its store, then the command stands still.
	full := func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.size+guest.MaxChunk > keepBytes && e.waiting != nil && e.size < keepBytes+2*guest.MaxChunk
	}
	r.eventually("the store is full", full)
	if exists(progress) {
		t.Fatal("the command has ended although nobody took its output")
	}
	res := collect(t, s)
	if got := bytes.Count(res.stdout.Bytes(), []byte{'\n'}); got != lines || res.code != 0 {
		t.Errorf("%d of %d lines, code %d", got, lines, res.code)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Without a consumer a command runs on, and its newest output is kept.
func TestSurvivesItsClient(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	s, err := r.client.Exec(ctx, guest.ExecRequest{ID: "alone", Command: []string{"sh", "-c", "read line; seq 1 1000000; echo end"},
		Stdin: guest.StdinStream})
	must(t, err)
	_, err = s.Write([]byte("go\n"))
	must(t, err)
	_, err = s.Recv()
	must(t, err)
	cancel()
	if _, err := s.Recv(); err == nil {
		_, err = s.Recv()
		for err == nil {
			_, err = s.Recv()
		}
	}
	again, err := r.client.Attach(t.Context(), guest.AttachRequest{ExecID: "alone"})
	must(t, err)
	res := collect(t, again)
	if !strings.HasSuffix(res.stdout.String(), "1000000\nend\n") || res.stdout.Len() < keepBytes {
		t.Errorf("%d bytes kept, ending in %q", res.stdout.Len(), tail(res.stdout.String()))
	}
}

func tail(s string) string { return s[max(0, len(s)-40):] }

func TestAttachWithCursor(t *testing.T) {
	r := newRig(t)
	s, err := r.client.Exec(t.Context(), guest.ExecRequest{ID: "a", Stdin: guest.StdinStream, Command: []string{"cat"}})
	must(t, err)
	for _, word := range []string{"one ", "two ", "three "} {
		_, err := s.Write([]byte(word))
		must(t, err)
		_, err = s.Recv()
		must(t, err)
	}
	latest, err := r.client.Attach(t.Context(), guest.AttachRequest{ExecID: "a", FromLatest: true})
	must(t, err)
	_, err = s.Write([]byte("four"))
	must(t, err)
	must(t, s.CloseWrite())
	collect(t, s)
	if got := collect(t, latest).stdout.String(); got != "four" {
		t.Errorf("from latest: %q", got)
	}
	for cursor, want := range map[int64]string{0: "one two three four", 2: "three four", 4: "", 99: ""} {
		s, err := r.client.Attach(t.Context(), guest.AttachRequest{ExecID: "a", Cursor: &cursor})
		must(t, err)
		if got := collect(t, s).stdout.String(); got != want {
			t.Errorf("after cursor %d: %q, want %q", cursor, got, want)
		}
	}
}

// The exit is announced when the direct child has ended, with all it wrote; what its children write later is logged.
func TestGrandchildHoldsThePipes(t *testing.T) {
	r := newRig(t)
	fifo := filepath.Join(r.root, "fifo")
	res := r.sh("mkfifo " + fifo + "; (read x < " + fifo + "; echo late) & head -c 300000 /dev/zero; echo early; exit 3")
	if res.code != 3 || res.stdout.Len() != 300006 {
		t.Errorf("code %d, %d bytes", res.code, res.stdout.Len())
	}
	pipe, err := os.OpenFile(fifo, os.O_WRONLY, 0) // waits for the grandchild to read: it has not been killed
	must(t, err)
	_, err = pipe.WriteString("go\n")
	must(t, err)
	must(t, pipe.Close())
	var offset int64
	r.eventually("the grandchild's output is logged", func() bool {
		logs, err := r.client.Logs(t.Context(), guest.LogsRequest{Offset: offset})
		must(t, err)
		offset = logs.NextOffset
		n := len(logs.Entries)
		return n > 0 && string(logs.Entries[n-1].Data) == "late\n"
	})
}

func TestSignal(t *testing.T) {
	r := newRig(t)
	s, err := r.client.Exec(t.Context(), guest.ExecRequest{ID: "s", Command: []string{"sh", "-c", "trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.05; done"}})
	must(t, err)
	_, err = s.Recv()
	must(t, err)
	if err := r.client.Signal(t.Context(), "s", "NOSUCH"); !fault.Is(err, fault.Invalid) {
		t.Errorf("unknown signal: %v", err)
	}
	must(t, r.client.Signal(t.Context(), "s", "usr1"))
	res := collect(t, s)
	if res.code != 5 || res.stdout.String() != "caught\n" {
		t.Errorf("code %d, output %q", res.code, res.stdout.String())
	}
	if err := r.client.Signal(t.Context(), "s", "KILL"); !fault.Is(err, fault.Conflict) {
		t.Errorf("signal to an ended command: %v", err)
	}
	if err := r.client.Signal(t.Context(), "other", "KILL"); !fault.Is(err, fault.NotFound) {
		t.Errorf("signal to an unknown command: %v", err)
	}
}

func TestTakeOverFreesACommand(t *testing.T) {
	r := newRig(t)
	s, err := r.client.Exec(t.Context(), guest.ExecRequest{ID: "t", Command: []string{"sh", "-c", "seq 1 2000000; echo end"}})
	must(t, err)
	must(t, r.client.TakeOver(t.Context()))
	for err == nil {
		_, err = s.Recv()
	}
	if errors.Is(err, io.EOF) {
		t.Fatal("the old stream came to an exit")
	}
	again, err := r.client.Attach(t.Context(), guest.AttachRequest{ExecID: "t", FromLatest: true})
	must(t, err)
	if res := collect(t, again); res.code != 0 {
		t.Errorf("code %d", res.code)
	}
}

func TestLogs(t *testing.T) {
	r := newRig(t)
	r.exec(guest.ExecRequest{ID: "1", Command: []string{"sh", "-c", "echo first"}})
	r.exec(guest.ExecRequest{ID: "2", Command: []string{"sh", "-c", "echo second >&2"}})
	r.exec(guest.ExecRequest{ID: "3", Command: []string{"sh", "-c", "echo third"}})
	var got []string
	var offset int64
	for {
		logs, err := r.client.Logs(t.Context(), guest.LogsRequest{Offset: offset, MaxEntries: 1})
		must(t, err)
		for _, e := range logs.Entries {
			got = append(got, e.ExecID+e.Stream+string(e.Data))
		}
		offset = logs.NextOffset
		if logs.EOF {
			break
		}
	}
	if want := "1stdoutfirst\n2stderrsecond\n3stdoutthird\n"; strings.Join(got, "") != want {
		t.Errorf("got %q", got)
	}
	logs, err := r.client.Logs(t.Context(), guest.LogsRequest{Stream: guest.Stderr, Offset: 8})
	must(t, err)
	if len(logs.Entries) != 1 || string(logs.Entries[0].Data) != "cond\n" || !logs.EOF || logs.NextOffset != 19 {
		t.Errorf("stderr from the middle of an entry: %+v", logs)
	}
}

func TestThousandsOfCommands(t *testing.T) {
	count := 2000
	if testing.Short() {
		count = 200
	}
	r := newRig(t)
	r.server.table.budget = 1 << 20
	r.sh("true")
	files, routines := openFiles(t), runtime.NumGoroutine()
	for i := range count {
		if res := r.exec(guest.ExecRequest{Command: []string{"echo", "x"}}); res.code != 0 || res.stdout.String() != "x\n" {
			t.Fatalf("command %d: code %d, output %q", i, res.code, res.stdout.String())
		}
	}
	settled := func() bool { return openFiles(t) <= files+2 && runtime.NumGoroutine() <= routines+4 }
	r.eventually(fmt.Sprintf("descriptors are %d and goroutines %d again", files, routines), settled)
	if used := r.server.table.used.Load(); used > r.server.table.budget {
		t.Errorf("%d bytes of output kept, budget %d", used, r.server.table.budget)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

func TestRetention(t *testing.T) {
	table := newTable(1 << 30)
	e, err := table.create("x")
	must(t, err)
	piece := bytes.Repeat([]byte{'a'}, 10_000)
	for range 1000 {
		e.append(guest.Stdout, piece)
	}
	if e.size < keepBytes || e.size > keepBytes+guest.MaxChunk {
		t.Errorf("%d bytes kept", e.size)
	}
	e.finish(0)
	table.budget = 0
	table.sweep()
	if used := table.used.Load(); used != 0 {
		t.Errorf("%d bytes in use after the eviction of all", used)
	}
	if _, err := table.find("x"); !fault.Is(err, fault.NotFound) {
		t.Errorf("evicted command: %v", err)
	}
}
