package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"vers/internal/cli/mcp"
	"vers/internal/machine/machinetest"
)

// Output comes while the command runs, in order; long output is cut in the middle, and says so; the key never gets out.
func TestAgentOutput(t *testing.T) {
	a := newAgent(t)
	if err := a.SetLoggingLevel(t.Context(), &sdk.SetLoggingLevelParams{Level: "info"}); err != nil { //nolint:staticcheck // what older clients do
		t.Log(err) // not in the newest protocol
	}
	call[runResult](a, "vers.run", nil)
	params := &sdk.CallToolParams{Name: "vers.execute", Arguments: toolArguments{
		"command": []string{"echo first; seq 1 50000; printf '%s' \"$KEY\"; echo; echo last >&2"}, "env": toolArguments{"KEY": a.server.Key}, "maxOutputBytes": 1000,
	}}
	params.SetProgressToken("t1")
	result, err := a.CallTool(t.Context(), params)
	if err != nil || result.IsError {
		t.Fatal(err, textOf(result))
	}
	done := structured[executeOutput](t, result)
	if done.StdoutCut == 0 || done.StdoutBytes < 250000 || !strings.Contains(done.Stdout, fmt.Sprintf("%d of %d bytes cut here", done.StdoutCut, done.StdoutBytes)) {
		t.Errorf("%d bytes, %d cut: %q", done.StdoutBytes, done.StdoutCut, done.Stdout)
	}
	if !strings.HasPrefix(done.Stdout, "first\n1\n") || !strings.HasSuffix(done.Stdout, "[masked]\n") || done.Stderr != "last\n" {
		t.Errorf("%q %q", done.Stdout, done.Stderr)
	}
	a.awaitProgress("last")
	a.awaitProgress("no more of stdout is streamed") // the streams keep no order between them
	a.mu.Lock()
	seen := strings.Join(a.progress, "\n")
	a.mu.Unlock()
	if !strings.HasPrefix(seen, "first\n1\n2\n") {
		t.Errorf("progress: %.200q … %.200q", seen, seen[max(0, len(seen)-200):])
	}
	for name, text := range map[string]string{"result": textOf(result) + done.Stdout, "progress": seen, "stderr": a.stderr.String()} {
		if strings.Contains(text, a.server.Key) {
			t.Errorf("%s holds the key", name)
		}
	}
	logs := call[logsOutput](a, "vers.logs", toolArguments{"maxEntries": 1})
	if len(logs.Entries) != 1 || !strings.HasPrefix(logs.Entries[0].Text, "first\n") || logs.Entries[0].ExecID != done.ExecID {
		t.Errorf("%+v", logs)
	}
	late := call[executeOutput](a, "vers.execute", toolArguments{"command": []string{"echo begun; sleep 60"}, "timeoutSeconds": 1})
	if !late.TimedOut || late.ExitCode != 124 || late.Stdout != "begun\n" {
		t.Errorf("%+v", late)
	}
}

// A call that the client gives up leaves the command running; its output is in the logs. The end of the input ends the
// server even so.
func TestAgentGivesUp(t *testing.T) {
	a := newAgent(t)
	call[runResult](a, "vers.run", nil)
	execute := func(ctx context.Context, script, token string) chan error {
		params := &sdk.CallToolParams{Name: "vers.execute", Arguments: toolArguments{"command": []string{script}}}
		params.SetProgressToken(token)
		ended := make(chan error, 1)
		go func() {
			_, err := a.CallTool(ctx, params)
			ended <- err
		}()
		return ended
	}
	ctx, giveUp := context.WithCancel(t.Context())
	ended := execute(ctx, "echo begun; while [ ! -e stop ]; do sleep 0.02; done; echo ended; touch stopped", "t1")
	a.awaitProgress("begun")
	giveUp()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	call[executeOutput](a, "vers.execute", toolArguments{"command": []string{"touch stop"}})
	call[executeOutput](a, "vers.execute", toolArguments{"command": []string{"while [ ! -e stopped ]; do sleep 0.02; done"}})
	logs := call[logsOutput](a, "vers.logs", nil)
	if !slices.ContainsFunc(logs.Entries, func(e logEntry) bool { return strings.Contains(e.Text, "ended") }) {
		t.Errorf("the command did not go on: %+v", logs)
	}
	execute(t.Context(), "echo waiting; sleep 60", "t2")
	a.awaitProgress("waiting")
} // newAgent's clean-up closes the input

// awaitProgress waits until a piece of output has arrived.
func (a *agent) awaitProgress(text string) {
	a.t.Helper()
	machinetest.Await(a.t, text, func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return slices.ContainsFunc(a.progress, func(piece string) bool { return strings.Contains(piece, text) })
	})
}

// A tunnel forwards both ways until it is closed.
func TestAgentTunnel(t *testing.T) {
	a := newAgent(t)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	defer web.Close()
	u, err := url.Parse(web.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, _ := strconv.Atoi(u.Port()) // of this machine, which is the VM's too: the rig's VMs have no network of their own
	call[runResult](a, "vers.run", nil)
	tunnel := call[tunnelInfo](a, "vers.tunnel", toolArguments{"remotePort": port})
	at := fmt.Sprintf("127.0.0.1:%d", tunnel.LocalPort)
	big := strings.Repeat("0123456789abcdef", 1<<16)
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	answer, err := http.Post("http://"+at, "text/plain", strings.NewReader(big))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(answer.Body)
	if err != nil || string(got) != big {
		t.Errorf("%d bytes came back of %d: %v", len(got), len(big), err)
	}
	a.server.DropConnections() // the next connection logs in again
	machinetest.Await(t, "an answer through the tunnel", func() bool {
		answer, err = http.Post("http://"+at, "text/plain", strings.NewReader("again"))
		return err == nil
	})
	if got, _ = io.ReadAll(answer.Body); string(got) != "again" {
		t.Errorf("%q", got)
	}
	a.fails(mcp.Conflict, "vers.tunnel", toolArguments{"remotePort": port, "localPort": tunnel.LocalPort})
	closed := call[tunnelCloseOutput](a, "vers.tunnel.close", nil)
	if len(closed.Closed) != 1 || closed.Closed[0] != tunnel {
		t.Errorf("%+v", closed)
	}
	if conn, err := net.DialTimeout("tcp", at, time.Second); err == nil {
		conn.Close()
		t.Error("the port is still open")
	}
}
