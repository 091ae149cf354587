package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"vers/api"
	"vers/internal/cli/mcp"
	"vers/test/rig"
)

// agent is an MCP client of our server, which speaks to a whole server without QEMU.
type agent struct {
	*sdk.ClientSession
	t      *testing.T
	app    *App
	server *rig.Server
	stderr *syncBuffer

	mu       sync.Mutex
	logged   strings.Builder // text of log messages
	progress []string
}

// syncBuffer is a buffer for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// agentApp is the program of the agent's user.
func agentApp(t *testing.T, server *rig.Server) (*App, *syncBuffer) {
	stderr := &syncBuffer{}
	env := map[string]string{"VERS_URL": server.URL, "VERS_API_KEY": server.Key}
	return &App{
		Dir: t.TempDir(), Home: t.TempDir(), Build: Build{Version: "1.2.3-test"},
		Env:     func(name string) (string, bool) { v, ok := env[name]; return v, ok },
		Streams: &Streams{In: strings.NewReader(""), Out: io.Discard, Err: stderr, Width: func() int { return 0 }},
	}, stderr
}

// newAgent connects a client over pipes, as standard streams are; args follow "mcp serve".
func newAgent(t *testing.T, args ...string) *agent {
	t.Helper()
	a := &agent{t: t, server: rig.New(t)}
	a.app, a.stderr = agentApp(t, a.server)
	fromClient, toServer := io.Pipe()
	fromServer, toClient := io.Pipe()
	a.app.Streams.In, a.app.Streams.Out = fromClient, toClient
	ended := make(chan int, 1)
	go func() {
		ended <- a.app.Run(context.Background(), append([]string{"mcp", "serve"}, args...))
		toClient.Close()
	}()
	a.connect(&sdk.IOTransport{Reader: fromServer, Writer: toServer})
	t.Cleanup(func() {
		a.Close()
		toServer.Close()
		select {
		case code := <-ended:
			if code != 0 {
				t.Errorf("the server ended with exit code %d: %s", code, a.stderr)
			}
		case <-time.After(20 * time.Second):
			t.Error("the server did not end with its input")
		}
	})
	return a
}

func (a *agent) connect(transport sdk.Transport) {
	a.t.Helper()
	client := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, &sdk.ClientOptions{
		LoggingMessageHandler: func(_ context.Context, r *sdk.LoggingMessageRequest) { //nolint:staticcheck // what older clients see
			data, _ := json.Marshal(r.Params.Data)
			var piece struct{ Stream, Text string }
			_ = json.Unmarshal(data, &piece)
			a.mu.Lock()
			defer a.mu.Unlock()
			a.logged.WriteString(piece.Text)
		},
		ProgressNotificationHandler: func(_ context.Context, r *sdk.ProgressNotificationClientRequest) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.progress = append(a.progress, r.Params.Message)
		},
	})
	var err error
	a.ClientSession, err = client.Connect(a.t.Context(), transport, nil)
	if err != nil {
		a.t.Fatal(err)
	}
}

// toolArguments are the arguments of a tool.
type toolArguments = map[string]any

// call calls a tool that must succeed and decodes its result.
func call[T any](a *agent, tool string, arguments toolArguments) T {
	a.t.Helper()
	result, err := a.CallTool(a.t.Context(), &sdk.CallToolParams{Name: tool, Arguments: arguments})
	if err != nil {
		a.t.Fatalf("%s: %v", tool, err)
	}
	if result.IsError {
		a.t.Fatalf("%s: %s", tool, textOf(result))
	}
	return structured[T](a.t, result)
}

func structured[T any](t *testing.T, result *sdk.CallToolResult) T {
	t.Helper()
	var out T
	data, err := json.Marshal(result.StructuredContent)
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	return out
}

func textOf(result *sdk.CallToolResult) string {
	var texts []string
	for _, content := range result.Content {
		if text, ok := content.(*sdk.TextContent); ok {
			texts = append(texts, text.Text)
		}
	}
	return strings.Join(texts, "\n")
}

// fails calls a tool that must fail with a code, and gives the message.
func (a *agent) fails(code, tool string, arguments toolArguments) string {
	a.t.Helper()
	result, err := a.CallTool(a.t.Context(), &sdk.CallToolParams{Name: tool, Arguments: arguments})
	if err != nil {
		a.t.Fatalf("%s: %v", tool, err)
	}
	text := textOf(result)
	if !result.IsError || !strings.HasPrefix(text, code+": ") {
		a.t.Errorf("%s %v: %q, want %s", tool, arguments, text, code)
	}
	return text
}

// disk gives the folder that stands for a VM's disk: the rig's VMs run on this machine.
func (a *agent) disk(target string) string {
	a.t.Helper()
	return strings.TrimSpace(call[executeOutput](a, "vers.execute", toolArguments{"target": target, "command": []string{"pwd"}}).Stdout)
}

// Every tool of the contract is there under both names, with schemas and annotations.
func TestAgentTools(t *testing.T) {
	a := newAgent(t)
	tools := map[string]*sdk.Tool{}
	for tool, err := range a.Tools(t.Context(), nil) {
		if err != nil {
			t.Fatal(err)
		}
		tools[tool.Name] = tool
	}
	for _, name := range []string{
		"vers.status", "vers.run", "vers.execute", "vers.branch", "vers.kill", "vers.tunnel", "vers.tunnel.close", "vers.version",
		"vers.capabilities", "vers.metrics", "vers.commit", "vers.run_commit", "vers.info", "vers.pause", "vers.resume", "vers.repo.list",
		"vers.repo.get", "vers.repo.create", "vers.repo.delete", "vers.repo.tag.create", "vers.repo.tag.get", "vers.repo.tag.list",
		"vers.repo.tag.update", "vers.repo.tag.delete", "vers.tag.list", "vers.env.list", "vers.env.set", "vers.env.delete",
		"vers.rootfs.list", "vers.logs", "vers.file.read", "vers.file.write",
	} {
		dots, underscores := tools[name], tools[strings.ReplaceAll(name, ".", "_")]
		if dots == nil || underscores == nil {
			t.Errorf("%s is missing", name)
			continue
		}
		if dots.InputSchema == nil || dots.OutputSchema == nil || dots.Description == "" || dots.Annotations == nil {
			t.Errorf("%s: %+v", name, dots)
		}
		if same := *dots; true {
			same.Name = underscores.Name
			one, _ := json.Marshal(same)
			two, _ := json.Marshal(underscores)
			if !bytes.Equal(one, two) {
				t.Errorf("%s differs by its name:\n%s\n%s", name, one, two)
			}
		}
	}
	for _, name := range []string{"vers.kill", "vers.repo.delete", "vers.repo.tag.delete", "vers.env.delete", "vers.commit.delete"} {
		if !*tools[name].Annotations.DestructiveHint || tools[name].Annotations.ReadOnlyHint {
			t.Errorf("%s is not marked as destructive", name)
		}
	}
	if tool := tools["vers.status"]; !tool.Annotations.ReadOnlyHint {
		t.Error("vers.status is not marked as read-only")
	}
	listed := call[capabilitiesOutput](a, "vers_capabilities", nil)
	if len(listed.Tools)*2 != len(tools) {
		t.Errorf("capabilities lists %d tools of %d names", len(listed.Tools), len(tools))
	}
}

// An agent's whole work: run, execute, commit, branch, restore, kill; HEAD and aliases follow the rules of the commands.
func TestAgentWorks(t *testing.T) {
	a := newAgent(t)
	ran := call[runResult](a, "vers.run", toolArguments{"vmAlias": "dev", "memSizeMib": 256, "env": toolArguments{"X": "y"}})
	if ran.Head != ran.VMID || ran.Alias != "dev" {
		t.Errorf("%+v", ran)
	}
	info := call[infoResult](a, "vers_info", nil)
	if info.VMID != ran.VMID || info.MemSizeMiB != 256 || info.Alias == nil || *info.Alias != "dev" {
		t.Errorf("%+v", info)
	}
	done := call[executeOutput](a, "vers.execute", toolArguments{"target": "dev", "command": []string{"echo out; echo err >&2; exit 3"}})
	if done.ExitCode != 3 || done.Stdout != "out\n" || done.Stderr != "err\n" || done.VMID != ran.VMID {
		t.Errorf("%+v", done)
	}
	call[writeFileOutput](a, "vers.file.write", toolArguments{"path": a.disk("dev") + "/srv/state", "content": "one", "mode": "0600", "createDirs": true})
	committed := call[commitResult](a, "vers.commit", toolArguments{"name": "first", "tags": []string{"app:latest"}})
	branched := call[branchResult](a, "vers.branch", toolArguments{"alias": "copy"})
	if branched.FromID != ran.VMID || !branched.UsedHead || branched.CheckoutDone {
		t.Errorf("%+v", branched)
	}
	call[writeFileOutput](a, "vers.file.write", toolArguments{"path": a.disk("dev") + "/srv/state", "content": "two"})
	if read := call[readFileOutput](a, "vers.file.read", toolArguments{"target": "copy", "path": a.disk("copy") + "/srv/state"}); read.Content != "one" || read.Size != 3 {
		t.Errorf("the branch has %+v", read)
	}
	restored := call[runCommitResult](a, "vers.run_commit", toolArguments{"commit": "app:latest", "vmAlias": "dev"})
	if restored.CommitID != committed.CommitID || restored.Head != restored.VMID || restored.VMID == ran.VMID {
		t.Errorf("%+v", restored)
	}
	if read := call[readFileOutput](a, "vers.file.read", toolArguments{"path": a.disk("dev") + "/srv/state"}); read.Content != "one" || read.VMID != restored.VMID {
		t.Errorf("the restored VM has %+v", read)
	}
	status := call[statusOutput](a, "vers.status", nil)
	if len(status.VMs) != 3 || status.Head == nil || *status.Head != restored.VMID {
		t.Errorf("%+v", status)
	}
	a.fails(mcp.ConfirmRequired, "vers.kill", toolArguments{"targets": []string{"dev"}})
	killed := call[killOutput](a, "vers.kill", toolArguments{"targets": []string{"dev", "nobody", "copy"}, "skipConfirmation": true})
	if !killed.AffectedHead || len(killed.DeletedIDs) != 2 || len(killed.Failed) != 1 || killed.Failed[0].Target != "nobody" {
		t.Errorf("%+v", killed)
	}
	a.fails(mcp.NotFound, "vers.info", nil)
	a.fails(mcp.NotFound, "vers.info", toolArguments{"target": "dev"})
	resource, err := a.ReadResource(t.Context(), &sdk.ReadResourceParams{URI: "vers://status"})
	if err != nil || len(resource.Contents) != 1 || !strings.Contains(resource.Contents[0].Text, ran.VMID) {
		t.Errorf("%+v, %v", resource, err)
	}
}

// Failures name their kind, whoever finds them.
func TestAgentFailures(t *testing.T) {
	a := newAgent(t)
	a.fails(mcp.NotFound, "vers.execute", toolArguments{"command": []string{"true"}})
	a.fails(mcp.Invalid, "vers.execute", toolArguments{"command": []string{}})
	a.fails(mcp.Invalid, "vers.execute", toolArguments{"target": "x"})                      // the schema
	a.fails(mcp.Invalid, "vers.execute", toolArguments{"command": []string{"x"}, "cmd": 1}) // the schema
	a.fails(mcp.Invalid, "vers.run", toolArguments{"memSizeMib": -1})
	a.fails(mcp.Invalid, "vers.run", toolArguments{"vmAlias": "../x"})
	a.fails(mcp.Invalid, "vers.branch", toolArguments{"count": 0})
	call[json.RawMessage](a, "vers.repo.create", toolArguments{"name": "app"})
	a.fails(mcp.Conflict, "vers.repo.create", toolArguments{"name": "app"})
	a.fails(mcp.NotFound, "vers.repo.get", toolArguments{"name": "none"})
	a.fails(mcp.ConfirmRequired, "vers.repo.delete", toolArguments{"name": "app"})
	call[runResult](a, "vers.run", nil)
	a.fails(mcp.Invalid, "vers.tunnel", toolArguments{"remotePort": 70000})
	a.fails(mcp.NotFound, "vers.tunnel.close", toolArguments{"localPort": 4})
	a.fails(mcp.Invalid, "vers.file.write", toolArguments{"path": "/x"})
}

// Tools for what an organisation keeps.
func TestAgentKeeps(t *testing.T) {
	a := newAgent(t)
	call[runResult](a, "vers.run", nil)
	one := call[commitResult](a, "vers.commit", nil).CommitID
	two := call[commitResult](a, "vers.commit", nil).CommitID
	call[json.RawMessage](a, "vers.repo.create", toolArguments{"name": "app", "description": "d"})
	call[json.RawMessage](a, "vers.repo.tag.create", toolArguments{"repo": "app", "tag": "v1", "commit": one})
	moved := call[struct {
		CommitID string `json:"commit_id"`
	}](a, "vers.repo.tag.update", toolArguments{"repo": "app", "tag": "v1", "commit": two, "expectedCommit": one})
	if moved.CommitID != two {
		t.Errorf("%+v", moved)
	}
	a.fails(mcp.Conflict, "vers.repo.tag.update", toolArguments{"repo": "app", "tag": "v1", "commit": two, "expectedCommit": one})
	tags := call[listOutput[json.RawMessage]](a, "vers.repo.tag.list", toolArguments{"repo": "app", "limit": 1})
	if tags.Total != 1 || len(tags.Items) != 1 {
		t.Errorf("%+v", tags)
	}
	call[json.RawMessage](a, "vers.tag.create", toolArguments{"tag": "plain", "commit": one})
	call[json.RawMessage](a, "vers.tag.update", toolArguments{"tag": "plain", "commit": "app:v1"})
	if text := call[struct {
		CommitID string `json:"commit_id"`
	}](a, "vers.tag.get", toolArguments{"tag": "plain"}); text.CommitID != two {
		t.Errorf("%+v", text)
	}
	call[json.RawMessage](a, "vers.tag.delete", toolArguments{"tag": "plain", "skipConfirmation": true})
	a.fails(mcp.NotFound, "vers.tag.get", toolArguments{"tag": "plain"})
	call[json.RawMessage](a, "vers.env.set", toolArguments{"key": "K", "value": "v"})
	if vars := call[struct{ Variables []envVar }](a, "vers.env.list", nil); !slices.Equal(vars.Variables, []envVar{{"K", "v"}}) {
		t.Errorf("%+v", vars)
	}
	call[json.RawMessage](a, "vers.env.delete", toolArguments{"key": "K", "skipConfirmation": true})
	commits := call[listOutput[json.RawMessage]](a, "vers.commit.list", toolArguments{"limit": 1})
	if len(commits.Items) != 1 || commits.Total < 2 || commits.NextOffset != 1 {
		t.Errorf("%d of %d commits, then %d", len(commits.Items), commits.Total, commits.NextOffset)
	}
	call[json.RawMessage](a, "vers.repo.tag.delete", toolArguments{"repo": "app", "tag": "v1", "skipConfirmation": true})
	call[json.RawMessage](a, "vers.repo.delete", toolArguments{"name": "app", "skipConfirmation": true})
	call[json.RawMessage](a, "vers.commit.delete", toolArguments{"commit": two, "skipConfirmation": true})
	call[json.RawMessage](a, "vers.rootfs.list", nil)
	call[stateResult](a, "vers.pause", nil)
	if state := call[stateResult](a, "vers.resume", nil); state.State != "Running" {
		t.Errorf("%+v", state)
	}
	version := call[versionOutput](a, "vers.version", nil)
	if version.Version != "1.2.3-test" || version.ServerVersion == "" {
		t.Errorf("%+v", version)
	}
	if metrics := call[mcp.Metrics](a, "vers.metrics", nil); metrics.Tools["vers.repo.tag.update"].Calls != 2 || metrics.Tools["vers.repo.tag.update"].Errors != 1 {
		t.Errorf("%+v", metrics)
	}
}

// What another organisation publishes can be found and forked.
func TestAgentForks(t *testing.T) {
	a := newAgent(t)
	call[runResult](a, "vers.run", nil)
	call[commitResult](a, "vers.commit", toolArguments{"tags": []string{"tools:latest"}})
	client, err := a.app.newClient(a.server.URL, a.server.Key)
	if err == nil {
		err = client.SetVisibility(t.Context(), "tools", true)
	}
	if err != nil {
		t.Fatal(err)
	}
	public := call[listOutput[struct {
		FullName string `json:"full_name"`
	}]](a, "vers.repo.public", nil)
	if public.Total != 1 {
		t.Fatalf("%+v", public)
	}
	a.fails(mcp.NotFound, "vers.repo.fork", toolArguments{"source": public.Items[0].FullName + ":none"})
	a.fails(mcp.Invalid, "vers.repo.fork", toolArguments{"source": "nonsense"})
	forked := call[api.Fork](a, "vers.repo.fork", toolArguments{"source": public.Items[0].FullName + ":latest", "repoName": "mine"})
	if forked.Reference != "mine:latest" || forked.VMID == "" {
		t.Errorf("%+v", forked)
	}
}

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
	a.mu.Lock()
	seen := strings.Join(a.progress, "\n")
	a.mu.Unlock()
	if !strings.HasPrefix(seen, "first\n1\n2\n") || !strings.Contains(seen, "no more of stdout is streamed") {
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

// awaitProgress waits until a piece of output has arrived.
func (a *agent) awaitProgress(text string) {
	a.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		a.mu.Lock()
		found := slices.ContainsFunc(a.progress, func(piece string) bool { return strings.Contains(piece, text) })
		a.mu.Unlock()
		if found {
			return
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("%q did not arrive", text)
		}
	}
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
	answer, err = http.Post("http://"+at, "text/plain", strings.NewReader("again"))
	for i := 0; err != nil && i < 50; i++ {
		time.Sleep(20 * time.Millisecond)
		answer, err = http.Post("http://"+at, "text/plain", strings.NewReader("again"))
	}
	if err != nil {
		t.Fatal(err)
	}
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

// Fifty calls at once, of tools that read and that change.
func TestAgentsInParallel(t *testing.T) {
	a := newAgent(t)
	call[runResult](a, "vers.run", toolArguments{"vmAlias": "dev"})
	disk := a.disk("dev")
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			params := &sdk.CallToolParams{Name: "vers.status"}
			switch i % 5 {
			case 1:
				params = &sdk.CallToolParams{Name: "vers.info", Arguments: toolArguments{"target": "dev"}}
			case 2:
				params = &sdk.CallToolParams{Name: "vers.checkout", Arguments: toolArguments{"target": "dev"}}
			case 3:
				params = &sdk.CallToolParams{Name: "vers.file.write", Arguments: toolArguments{"path": fmt.Sprintf("%s/%d", disk, i), "content": "x"}}
			case 4:
				params = &sdk.CallToolParams{Name: "vers.metrics"}
			}
			result, err := a.CallTool(t.Context(), params)
			if err != nil || result.IsError {
				t.Errorf("%s: %v %s", params.Name, err, textOf(result))
			}
		})
	}
	wg.Wait()
}

// Without a key the server runs and says what is missing; a key that comes later is used.
func TestAgentLogsInLater(t *testing.T) {
	a := newAgent(t)
	env := map[string]string{"VERS_URL": a.server.URL}
	a.app.Env = func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	if text := a.fails(mcp.Internal, "vers.status", nil); !strings.Contains(text, "vers login") {
		t.Errorf("%q", text)
	}
	data, _ := json.Marshal(map[string]string{"apiKey": a.server.Key})
	if err := os.WriteFile(filepath.Join(a.app.Home, ".versrc"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	call[statusOutput](a, "vers.status", nil)
}

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
		for deadline := time.Now().Add(20 * time.Second); !strings.Contains(stdout.String(), `"id":2`); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no answer: %s", stdout)
			}
		}
	}
	cmd, stdin, stdout, stderr := start()
	_, _ = io.WriteString(stdin, hello)
	answered(stdout)
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
	for deadline := time.Now().Add(10 * time.Second); address == ""; time.Sleep(5 * time.Millisecond) {
		if _, rest, ok := strings.Cut(stderr.String(), "MCP server at "); ok {
			address, _, _ = strings.Cut(rest, ",")
		}
		if time.Now().After(deadline) {
			t.Fatalf("no address: %s", stderr)
		}
	}
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

func TestMCPCode(t *testing.T) {
	for err, want := range map[error]string{
		errors.New("x"): mcp.Internal, &confirmError{"x"}: mcp.ConfirmRequired, usagef("x"): mcp.Invalid, context.DeadlineExceeded: mcp.Internal,
	} {
		if got := mcpCode(err); got != want {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
	}
}
