package cli

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"vers/internal/machine/machinetest"
	"vers/test/rig"
)

// The program itself on its standard streams: nothing but the protocol on stdout, the key masked on stderr, ends with its
// input and with SIGTERM.
func TestAgentProcess(t *testing.T) {
	server := rig.New(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "vers")
	if err := os.Symlink(self, program); err != nil { // testscript.Main runs the command that it is called as
		t.Fatal(err)
	}
	start := func() (*exec.Cmd, io.WriteCloser, *syncBuffer, *syncBuffer) {
		cmd := exec.Command(program, "mcp", "serve", "--verbose")
		cmd.Dir = t.TempDir()
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "VERS_URL="+server.URL, "VERS_API_KEY="+server.Key)
		stdout, stderr := &syncBuffer{}, &syncBuffer{}
		cmd.Stdout, cmd.Stderr = stdout, stderr
		stdin, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		return cmd, stdin, stdout, stderr
	}
	const hello = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}
{"jsonrpc":"2.0","method":"notifications/initialized"}
{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"vers_run","arguments":{}}}
`
	ended := func(cmd *exec.Cmd) {
		t.Helper()
		waited := make(chan error, 1)
		go func() { waited <- cmd.Wait() }()
		select {
		case err := <-waited:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			t.Error("it did not end")
		}
	}
	answered := func(stdout *syncBuffer) {
		t.Helper()
		machinetest.Await(t, "the answer", func() bool { return strings.Contains(stdout.String(), `"id":2`) })
	}
	cmd, stdin, stdout, stderr := start()
	_, _ = io.WriteString(stdin, hello)
	answered(stdout)
	// A command that runs does not keep the program when its client has gone.
	_, _ = io.WriteString(stdin, `{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"vers_execute","arguments":{"command":["sleep 60"]}}}`+"\n")
	machinetest.Await(t, "the command", func() bool {
		return slices.ContainsFunc(server.Requests(), func(r string) bool { return strings.Contains(r, "/exec/stream") })
	})
	stdin.Close()
	ended(cmd)
	for line := range strings.Lines(stdout.String()) {
		var message struct {
			Version string `json:"jsonrpc"`
		}
		if err := json.Unmarshal([]byte(line), &message); err != nil || message.Version != "2.0" {
			t.Errorf("not the protocol: %q", line)
		}
	}
	if text := stdout.String() + stderr.String(); strings.Contains(text, server.Key) || !strings.Contains(stderr.String(), "debug: ") {
		t.Errorf("the key is shown, or nothing is logged: %s", text)
	}
	cmd, stdin, stdout, _ = start()
	_, _ = io.WriteString(stdin, hello)
	answered(stdout)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended(cmd)
	stdin.Close()
}

// HTTP: the same tools with a token, for several clients.
func TestAgentHTTP(t *testing.T) {
	server := rig.New(t)
	app, stderr := agentApp(t, server)
	before := app.Env
	app.Env = func(name string) (string, bool) {
		if name == "VERS_MCP_HTTP_TOKEN" {
			return "a-long-token", true
		}
		return before(name)
	}
	ctx, stop := context.WithCancelCause(context.Background())
	ended := make(chan int, 1)
	go func() {
		ended <- app.Run(ctx, []string{"mcp", "serve", "--transport", "http", "--addr", "127.0.0.1:0"})
	}()
	defer func() {
		stop(&signalError{syscall.SIGTERM})
		if code := <-ended; code != 0 {
			t.Errorf("exit code %d: %s", code, stderr)
		}
	}()
	address := ""
	machinetest.Await(t, "the address", func() bool {
		_, rest, ok := strings.Cut(stderr.String(), "MCP server at ")
		address, _, _ = strings.Cut(rest, ",")
		return ok
	})
	for range 2 {
		a := &agent{t: t, server: server}
		a.connect(&sdk.StreamableClientTransport{Endpoint: address, HTTPClient: &http.Client{Transport: bearerTransport("a-long-token")}})
		call[statusOutput](a, "vers.status", nil)
		a.Close()
	}
	if answer, err := http.Get(address + "healthz"); err != nil || answer.StatusCode != 200 {
		t.Errorf("%v %v", answer, err)
	}
	client := sdk.NewClient(&sdk.Implementation{Name: "thief", Version: "1"}, nil)
	if _, err := client.Connect(t.Context(), &sdk.StreamableClientTransport{Endpoint: address, MaxRetries: -1}, nil); err == nil {
		t.Error("connected without the token")
	}
	if strings.Contains(stderr.String(), "a-long-token") {
		t.Error("the token is logged")
	}
}

type bearerTransport string

func (b bearerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+string(b))
	return http.DefaultTransport.RoundTrip(r)
}

func TestServeRefuses(t *testing.T) {
	server := rig.New(t)
	for _, args := range [][]string{
		{"--transport", "carrier-pigeon"}, {"--names", "camel"}, {"--transport", "http", "--addr", ":3920"},
		{"--transport", "http", "--addr", "0.0.0.0:0"}, {"--transport", "http", "--addr", "nonsense"},
	} {
		app, stderr := agentApp(t, server)
		if code := app.Run(t.Context(), append([]string{"mcp", "serve"}, args...)); code != exitInvalid {
			t.Errorf("%v: exit code %d: %s", args, code, stderr)
		}
	}
}
