package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vers/api"
	"vers/internal/fault"
	"vers/internal/guest"
	"vers/internal/ident"
	"vers/internal/machine"
)

var at = time.Date(2026, 4, 14, 10, 0, 0, 0, time.UTC)

// script is what a command does that writes to both streams and ends with code 3.
var script = []guest.Event{
	{Type: guest.EventChunk, Cursor: 1, Time: at, Stream: guest.Stdout, Data: []byte("out\xff\x00")},
	{Type: guest.EventChunk, Cursor: 2, Time: at, Stream: guest.Stderr, Data: []byte("err")},
	{Type: guest.EventExit, Cursor: 3, Time: at, ExitCode: 3},
}

func (h *harness) guest(vm string) *fakeGuest {
	h.machines.mu.Lock()
	defer h.machines.mu.Unlock()
	return h.machines.guests[vm]
}

func TestExec(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	g := h.guest(vm)
	g.script = script
	id := ident.New()
	got := read[api.ExecResult](h.call("POST", "/vm/"+vm+"/exec", `{"command":["sh","-c","x"],"env":{"A":"1"},"working_dir":"/tmp",
		"stdin":"in","timeout_secs":7,"exec_id":"`+id+`"}`).want(200))
	if want := (api.ExecResult{ExitCode: 3, Stdout: "out\uFFFD\x00", Stderr: "err", ExecID: id}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	asked := guest.ExecRequest{ID: id, Command: []string{"sh", "-c", "x"}, Env: map[string]string{"A": "1"}, WorkingDir: "/tmp",
		Stdin: guest.StdinBytes, Input: []byte("in"), TimeoutSecs: 7}
	if diff := cmp.Diff(asked, g.asked); diff != "" {
		t.Error(diff)
	}
	h.call("POST", "/vm/"+vm+"/exec", `{"command":["id"],"env":null,"working_dir":null,"stdin":null,"timeout_secs":null,"exec_id":null}`).want(200)
	if g.asked.ID == "" || g.asked.Stdin != "" || g.asked.TimeoutSecs != 0 {
		t.Errorf("%+v", g.asked)
	}
	h.call("POST", "/vm/"+vm+"/exec", `{"command":["bash","-c","'a b'"]}`).want(200)
	if g.asked.Command[2] != "'a b'" {
		t.Errorf("the quotes of a call that needs no repair were changed: %q", g.asked.Command)
	}
	for _, body := range []string{"", `{}`, `{"command":[]}`, `{"command":null}`, `{"command":"id"}`, `{"command":[""]}`, `{"command":["id"],"timeout_secs":-1}`} {
		h.call("POST", "/vm/"+vm+"/exec", body).want(400)
		h.call("POST", "/vm/"+vm+"/exec/stream", body).want(400)
	}
	g.script = []guest.Event{{Type: guest.EventError, Code: "unavailable", Message: "the disk is gone"}}
	h.call("POST", "/vm/"+vm+"/exec", `{"command":["id"]}`).want(503).says("the disk is gone")
	g.script, g.broken = script[:1], fault.Unavailablef("lost the connection to the agent")
	h.call("POST", "/vm/"+vm+"/exec", `{"command":["id"]}`).want(503).says("lost")
	g.broken = nil
	h.call("POST", "/vm/"+vm+"/exec", `{"command":["id"]}`).want(503).says("without its result")
	g.script = nil
	for range execOutputLimit>>24 + 1 {
		g.script = append(g.script, guest.Event{Type: guest.EventChunk, Stream: guest.Stdout, Data: make([]byte, 1<<24)})
	}
	h.call("POST", "/vm/"+vm+"/exec", `{"command":["id"]}`).want(507).says("attach")

	for _, path := range []string{"exec", "exec/stream", "exec/stream/attach"} {
		body := `{"command":["id"],"exec_id":"` + id + `"}`
		h.call("POST", "/vm/"+ident.New()+"/"+path, body).want(404)
		h.setVM(vm, func(vm *machine.VM) { vm.State = "paused" })
		h.call("POST", "/vm/"+vm+"/"+path, body).want(409).says("paused")
		h.setVM(vm, func(vm *machine.VM) { vm.State = "running" })
	}
}

// stream makes a call and reads its lines.
func (h *harness) stream(path, body string) []api.StreamEvent {
	h.t.Helper()
	a := h.call("POST", path, body)
	if a.status != 200 || a.header.Get("Content-Type") != "application/x-ndjson" {
		h.t.Fatalf("status %d, Content-Type %q: %s", a.status, a.header.Get("Content-Type"), a.body)
	}
	var events []api.StreamEvent
	for line := range strings.SplitSeq(strings.TrimSuffix(a.body, "\n"), "\n") {
		var event api.StreamEvent
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			h.t.Fatalf("line %q: %v", line, err)
		}
		events = append(events, event)
	}
	return events
}

func TestExecStream(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	g := h.guest(vm)
	g.script = script
	id, code := ident.New(), 3
	body := `{"command":["id"],"exec_id":"` + id + `"}`
	want := []api.StreamEvent{
		{Type: "chunk", Stream: "stdout", Data: []byte("out\xff\x00"), Cursor: 1, ExecID: id, Timestamp: &at},
		{Type: "chunk", Stream: "stderr", Data: []byte("err"), Cursor: 2, ExecID: id, Timestamp: &at},
		{Type: "exit", ExitCode: &code, Cursor: 3, ExecID: id, Timestamp: &at},
	}
	if diff := cmp.Diff(want, h.stream("/vm/"+vm+"/exec/stream", body)); diff != "" {
		t.Error(diff)
	}
	for request, from := range map[string]int{
		`{"exec_id":"` + id + `"}`: 0, `{"exec_id":"` + id + `","cursor":0}`: 0, `{"exec_id":"` + id + `","cursor":1}`: 1,
		`{"exec_id":"` + id + `","cursor":null,"from_latest":null}`: 0, `{"exec_id":"` + id + `","cursor":0,"from_latest":true}`: 2,
	} {
		if diff := cmp.Diff(want[from:], h.stream("/vm/"+vm+"/exec/stream/attach", request)); diff != "" {
			t.Errorf("%s: %s", request, diff)
		}
	}
	h.call("POST", "/vm/"+vm+"/exec/stream/attach", `{"exec_id":"`+ident.New()+`"}`).want(404)
	h.call("POST", "/vm/"+vm+"/exec/stream/attach", `{}`).want(400)

	// An exit code of zero is there too.
	g.script = []guest.Event{{Type: guest.EventExit, Cursor: 1}}
	if events := h.stream("/vm/"+vm+"/exec/stream", `{"command":["true"]}`); events[0].ExitCode == nil || *events[0].ExitCode != 0 {
		t.Errorf("%+v", events)
	}
}

// A stream never just ends: clients would take that for success.
func TestBrokenStream(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	g := h.guest(vm)
	for _, c := range []struct {
		script        []guest.Event
		broken        error
		code, message string
	}{
		{script[:1], fault.Unavailablef("lost the agent"), "unavailable", "lost the agent"},
		{script[:1], nil, "unavailable", "without its result"},
		{script[:1], errors.New("s3cret"), "internal", "internal error"},
		{[]guest.Event{{Type: guest.EventError, Code: "not found", Message: "gone"}}, nil, "not_found", "gone"},
	} {
		g.script, g.broken = c.script, c.broken
		events := h.stream("/vm/"+vm+"/exec/stream", `{"command":["id"]}`)
		last := events[len(events)-1]
		if last.Type != "error" || last.Code != c.code || !strings.Contains(last.Message, c.message) {
			t.Errorf("last event %+v, want code %s and %q", last, c.code, c.message)
		}
	}
}

// Each event reaches the client when it happens, and a client that leaves ends the stream, not the command.
func TestStreamIsFlushed(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	g := h.guest(vm)
	g.script, g.hold, g.closed = script[:2], make(chan struct{}), make(chan struct{}, 1)
	ctx, leave := context.WithCancel(t.Context())
	req := h.request(h.key, "POST", "/vm/"+vm+"/exec/stream", `{"command":["sleep","inf"]}`).WithContext(ctx)
	resp, err := http.DefaultClient.Do(req)
	h.must(err)
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for i, want := range []string{`"stdout"`, `"stderr"`} {
		if !lines.Scan() || !strings.Contains(lines.Text(), want) {
			t.Fatalf("line %d: %q %v", i, lines.Text(), lines.Err())
		}
	}
	leave()
	select {
	case <-g.closed:
	case <-time.After(10 * time.Second):
		t.Fatal("the stream to the agent is still open")
	}
}

func TestUnquoteScript(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`'cd /a && make'`, `cd /a && make`},
		{`-- ls -l`, `ls -l`},
		{`-- 'cd /a && make'`, `cd /a && make`},
		{`'echo '\''hi'\'''`, `echo 'hi'`},
		{`ls -l`, `ls -l`},
		{`echo 'a b'`, `echo 'a b'`},
		{`'a' 'b'`, `'a' 'b'`},
		{`'a b' c`, `'a b' c`},
		{`''`, `''`},
		{`'`, `'`},
		{``, ``},
		{`--`, `--`},
		{`-- `, ``},
		{`'''`, `'''`},
		{`'it'\''s`, `'it'\''s`},
	} {
		got := unquoteScript([]string{"bash", "-c", c.in})
		if diff := cmp.Diff([]string{"bash", "-c", c.want}, got); diff != "" {
			t.Errorf("%q: %s", c.in, diff)
		}
	}
	for _, command := range [][]string{nil, {"bash"}, {"sh", "-c", "'a b'"}, {"bash", "-c", "'a b'", "x"}, {"bash", "-lc", "'a b'"}} {
		if diff := cmp.Diff(command, unquoteScript(command)); diff != "" {
			t.Error(diff)
		}
	}
}

// Whatever an older client quotes as one word comes back as it was.
func FuzzUnquoteScript(f *testing.F) {
	for _, seed := range []string{"cd /a && make", "it's", "'", "''", `'\''`, "-- x", "a\nb"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, script string) {
		if script == "" {
			return // '' stays what it is
		}
		quoted := "'" + strings.ReplaceAll(script, "'", `'\''`) + "'"
		for _, sent := range []string{quoted, "-- " + quoted} {
			if got := unquoteScript([]string{"bash", "-c", sent})[2]; got != script {
				t.Fatalf("%q became %q", script, got)
			}
		}
	})
}

func TestStreamUnquotes(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	g := h.guest(vm)
	g.script = script
	for _, keep := range []bool{false, true} {
		h.server.KeepQuotes = keep
		h.stream("/vm/"+vm+"/exec/stream", `{"command":["bash","-c","'cd /a && make'"]}`)
		if got := g.asked.Command[2]; (got == "cd /a && make") == keep {
			t.Errorf("with KeepQuotes %v: %q", keep, got)
		}
	}
}

func TestLogs(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	g := h.guest(vm)
	id := ident.New()
	g.logs = guest.Logs{Entries: []guest.LogEntry{{Time: at, Stream: "stdout", Data: []byte("x"), ExecID: id}}, NextOffset: 1}
	got := read[api.LogList](h.call("GET", "/vm/"+vm+"/logs?max_entries=10&stream=stdout", "").want(200))
	want := api.LogList{Entries: []api.LogEntry{{Timestamp: at, Stream: "stdout", Data: []byte("x"), ExecID: id}}, NextOffset: 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got = read[api.LogList](h.call("GET", "/vm/"+vm+"/logs?offset=1", "").want(200)); !got.EOF || got.NextOffset != 1 {
		t.Errorf("%+v", got)
	}
	for _, query := range []string{"offset=-1", "max_entries=-1", "stream=both", "offset=x"} {
		h.call("GET", "/vm/"+vm+"/logs?"+query, "").want(400)
	}
}

func TestFiles(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	g := h.guest(vm)
	if got := read[api.FileContent](h.call("GET", "/vm/"+vm+"/files?path=/etc/motd", "").want(200)); string(got.Content) != "hello\n" {
		t.Errorf("%q", got.Content)
	}
	h.call("GET", "/vm/"+vm+"/files?path=/etc/nothing", "").want(404)
	h.call("GET", "/vm/"+vm+"/files?path=etc/motd", "").want(400).says("absolute")
	h.call("GET", "/vm/"+vm+"/files", "").want(400)
	g.files["/etc/large"] = make([]byte, fileLimit+1)
	h.call("GET", "/vm/"+vm+"/files?path=/etc/large", "").want(413)

	path := "/vm/" + vm + "/files"
	h.call("PUT", path, `{"path":"/etc/x","content_b64":"aGk=","mode":493}`).want(200).empty()
	if string(g.files["/etc/x"]) != "hi" || g.mode != 0o755 {
		t.Errorf("%q mode %o", g.files["/etc/x"], g.mode)
	}
	h.call("PUT", path, `{"path":"/etc/x","content_b64":"","mode":null,"create_dirs":null}`).want(200)
	if len(g.files["/etc/x"]) != 0 || g.mode != 0o644 {
		t.Errorf("%q mode %o", g.files["/etc/x"], g.mode)
	}
	h.call("PUT", path, `{"path":"/new/x","content_b64":"aGk="}`).want(404)
	h.call("PUT", path, `{"path":"/new/x","content_b64":"aGk=","create_dirs":true}`).want(200)
	for _, body := range []string{`{"path":"x","content_b64":""}`, `{"content_b64":""}`, `{"path":"/x"}`, `{"path":"/x","content_b64":"%"}`,
		`{"path":"/x","content_b64":"","mode":-1}`, `{"path":"/x","content_b64":"","mode":4096}`} {
		h.call("PUT", path, body).want(400)
	}
	// Larger than other bodies may be.
	large := strings.Repeat("QUJD", 6<<20)
	h.call("PUT", path, `{"path":"/etc/large","content_b64":"`+large+`"}`).want(200)
	if len(g.files["/etc/large"]) != 18<<20 {
		t.Errorf("%d bytes", len(g.files["/etc/large"]))
	}
}
