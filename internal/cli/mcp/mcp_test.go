package mcp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

type none struct{}

// connected gives a client of the server, on pipes.
func connected(t *testing.T, s *Server) *sdk.ClientSession {
	t.Helper()
	fromClient, toServer := io.Pipe()
	fromServer, toClient := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- s.ServeStreams(context.Background(), fromClient, toClient) }()
	client := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, nil)
	session, err := client.Connect(t.Context(), &sdk.IOTransport{Reader: fromServer, Writer: toServer}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		session.Close()
		toServer.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return session
}

func callText(t *testing.T, session *sdk.ClientSession, tool string) (text string, failed bool) {
	t.Helper()
	result, err := session.CallTool(t.Context(), &sdk.CallToolParams{Name: tool})
	if err != nil {
		t.Fatal(err)
	}
	return result.Content[0].(*sdk.TextContent).Text, result.IsError
}

// Both names of a tool share one limit, which lets calls through again after a minute of the injected clock.
func TestLimit(t *testing.T) {
	now := time.Unix(1000, 0)
	s := New(Options{Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }})
	done := 0
	Add(s, Tool{Name: "x.run", PerMinute: 2}, func(context.Context, *Call, none) (none, error) { done++; return none{}, nil })
	session := connected(t, s)
	for i, step := range []struct {
		after time.Duration
		tool  string
		ok    bool
	}{
		{0, "x.run", true}, {10 * time.Second, "x_run", true}, {0, "x.run", false}, {49 * time.Second, "x_run", false},
		{time.Second, "x.run", true}, {0, "x.run", false}, {time.Hour, "x.run", true}, {0, "x_run", true}, {0, "x_run", false},
	} {
		now = now.Add(step.after)
		text, failed := callText(t, session, step.tool)
		if failed == step.ok || failed && !strings.HasPrefix(text, Conflict+": "+step.tool+" may be called 2 times per minute; try again in ") {
			t.Errorf("step %d: %q", i, text)
		}
	}
	if m := s.Metrics(); done != 5 || m.Tools["x.run"] != (ToolMetrics{Calls: 5, Limited: 4}) || m.UptimeSeconds != 3660 {
		t.Errorf("%d done, %+v", done, m)
	}
}

// A refused call must say when the next one is possible, not a moment before.
func TestLimitWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limit{perMinute: 3}
		for range 3 {
			l.take(time.Now())
			time.Sleep(7 * time.Second)
		}
		wait, ok := l.take(time.Now())
		if ok || wait != 39*time.Second {
			t.Fatal(wait, ok)
		}
		time.Sleep(wait)
		if _, ok := l.take(time.Now()); !ok {
			t.Error("refused after the wait")
		}
	})
}

// Secrets get out neither in results nor in failures nor in logs.
func TestMasking(t *testing.T) {
	const secret = `se"cret-key`
	mask := &Mask{}
	mask.Hide(secret)
	mask.Hide("a") // would make text unreadable
	var log bytes.Buffer
	s := New(Options{Mask: mask, Log: slog.New(slog.NewTextHandler(mask.Writer(&log), nil)), Names: DotNames})
	type value struct{ V string }
	Add(s, Tool{Name: "ok"}, func(_ context.Context, c *Call, _ none) (value, error) {
		c.Note("note " + secret)
		s.options.Log.Info("log " + secret)
		return value{"is " + secret}, nil
	})
	Add(s, Tool{Name: "bad"}, func(context.Context, *Call, none) (value, error) { return value{}, errors.New("bad " + secret) })
	s.AddResource("x://y", "y", "", func(context.Context) (string, error) { return secret, nil })
	session := connected(t, s)
	result, err := session.CallTool(t.Context(), &sdk.CallToolParams{Name: "ok"})
	if err != nil || len(result.Content) != 2 || result.Content[1].(*sdk.TextContent).Text != "note [masked]" ||
		result.Content[0].(*sdk.TextContent).Text != `{"V":"is [masked]"}` || result.StructuredContent.(map[string]any)["V"] != "is [masked]" {
		t.Errorf("%+v %v", result, err)
	}
	if text, failed := callText(t, session, "bad"); !failed || text != "E_INTERNAL: bad [masked]" {
		t.Errorf("%q", text)
	}
	resource, err := session.ReadResource(t.Context(), &sdk.ReadResourceParams{URI: "x://y"})
	if err != nil || resource.Contents[0].Text != masked {
		t.Errorf("%+v %v", resource, err)
	}
	if !strings.Contains(log.String(), "log [masked]") || strings.Contains(log.String(), secret) {
		t.Errorf("%s", &log)
	}
}

// Output keeps beginning and end and counts what is between, however it is cut into writes.
func TestOutputKeeps(t *testing.T) {
	for _, size := range []int{1, 3, 100, 1 << 20} {
		call := &Call{request: &sdk.CallToolRequest{Params: &sdk.CallToolParamsRaw{}}, mask: &Mask{}}
		o, _ := call.Outputs(t.Context(), 10)
		o.shown = streamLimit + 1 // nobody listens
		data := []byte(strings.Repeat("a", 50_000) + "bcdef")
		for rest := data; len(rest) > 0; {
			n := min(size, len(rest))
			_, _ = o.Write(rest[:n])
			rest = rest[n:]
		}
		text, total, cut := o.Result()
		if text != "aaaaa\n[… 49995 of 50005 bytes cut here …]\nbcdef" || total != 50005 || cut != 49995 {
			t.Errorf("pieces of %d: %q, %d, %d", size, text, total, cut)
		}
		if len(o.tail) > 3*pieceSize+size {
			t.Errorf("%d bytes are held", len(o.tail))
		}
	}
}

// What comes from a browser's page of somebody else, or without the token, does not reach the tools.
func TestHTTPGuards(t *testing.T) {
	s := New(Options{Log: slog.New(slog.DiscardHandler)})
	open, closed, public := s.Handler("", true), s.Handler("right-token", true), s.Handler("right-token", false)
	const hello = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`
	for _, c := range []struct {
		handler             http.Handler
		method, path        string
		host, origin, token string
		want                int
	}{
		{open, "POST", "/", "127.0.0.1:3920", "", "", 200},
		{open, "POST", "/", "localhost:3920", "", "", 200},
		{open, "POST", "/", "[::1]:3920", "http://localhost:6274", "", 200},
		{open, "POST", "/", "evil.example:3920", "", "", 403},
		{open, "POST", "/", "127.0.0.1.evil.example", "", "", 403},
		{open, "POST", "/", "127.0.0.1:3920", "http://evil.example", "", 403},
		{open, "POST", "/", "127.0.0.1:3920", "http://localhost.evil.example", "", 403},
		{open, "POST", "/", "127.0.0.1:3920", "null", "", 403},
		{open, "POST", "/mcp", "127.0.0.1:3920", "", "", 404},
		{closed, "POST", "/", "127.0.0.1:3920", "", "", 401},
		{closed, "POST", "/", "127.0.0.1:3920", "", "Bearer wrong-token", 401},
		{closed, "POST", "/", "127.0.0.1:3920", "", "right-token", 401},
		{closed, "POST", "/", "127.0.0.1:3920", "", "Bearer right-token", 200},
		{closed, "GET", "/", "127.0.0.1:3920", "", "", 401},
		{closed, "GET", "/healthz", "127.0.0.1:3920", "", "", 200},
		{public, "POST", "/", "mcp.example:3920", "", "bearer right-token", 200},
		{public, "POST", "/", "mcp.example:3920", "http://mcp.example:3920", "Bearer right-token", 200},
		{public, "POST", "/", "mcp.example:3920", "http://evil.example", "Bearer right-token", 403},
		{public, "POST", "/", "mcp.example:3920", "http://localhost:1", "Bearer right-token", 403},
		{public, "POST", "/", "mcp.example:3920", "", "", 401},
		{public, "GET", "/healthz", "mcp.example:3920", "", "", 200},
	} {
		r := httptest.NewRequestWithContext(t.Context(), c.method, "http://"+c.host+c.path, strings.NewReader(hello))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Accept", "application/json, text/event-stream")
		for name, value := range map[string]string{"Origin": c.origin, "Authorization": c.token} {
			if value != "" {
				r.Header.Set(name, value)
			}
		}
		w := httptest.NewRecorder()
		c.handler.ServeHTTP(w, r)
		if w.Code != c.want || c.path == "/healthz" && w.Body.String() != "ok\n" {
			t.Errorf("%s %s at %s from %q with %q: %d %s, want %d", c.method, c.path, c.host, c.origin, c.token, w.Code, w.Body, c.want)
		}
	}
}
