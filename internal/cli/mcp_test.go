package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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
		"vers.capabilities", "vers.metrics", "vers.commit", "vers.run_commit", "vers.info", "vers.pause", "vers.resume", "vers.sleep", "vers.repo.list",
		"vers.repo.get", "vers.repo.create", "vers.repo.delete", "vers.repo.tag.create", "vers.repo.tag.get", "vers.repo.tag.list",
		"vers.repo.tag.update", "vers.repo.tag.delete", "vers.repo.tag.history", "vers.repo.tag.rollback", "vers.diff", "vers.tag.list", "vers.env.list", "vers.env.set", "vers.env.delete",
		"vers.rootfs.list", "vers.logs", "vers.file.read", "vers.file.write", "vers.copy",
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
	back := call[api.TagRollbackResult](a, "vers.repo.tag.rollback", toolArguments{"repo": "app", "tag": "v1", "expectedCommit": two})
	if back.CommitID != one || back.FromCommitID != two {
		t.Errorf("%+v", back)
	}
	history := call[listOutput[api.TagEvent]](a, "vers.repo.tag.history", toolArguments{"repo": "app", "tag": "v1", "limit": 2})
	if history.Total != 3 || len(history.Items) != 2 || history.Items[0].Action != "rollback" {
		t.Errorf("%+v", history)
	}
	call[json.RawMessage](a, "vers.repo.tag.update", toolArguments{"repo": "app", "tag": "v1", "commit": two})
	a.fails(mcp.Invalid, "vers.diff", toolArguments{"commits": []string{one, two, one}})
	a.fails(mcp.NotFound, "vers.diff", toolArguments{"commits": []string{one, "app:nothing"}})
	a.fails(mcp.Conflict, "vers.diff", toolArguments{"commits": []string{one, "app:v1"}}) // the rig's disks have no files; a real VM's have: test/mcp_test.go
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
	if metrics := call[mcp.Metrics](a, "vers.metrics", nil); metrics.Tools["vers.repo.tag.update"].Calls != 3 || metrics.Tools["vers.repo.tag.update"].Errors != 1 {
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

func TestMCPCode(t *testing.T) {
	for err, want := range map[error]string{
		errors.New("x"): mcp.Internal, &confirmError{"x"}: mcp.ConfirmRequired, usagef("x"): mcp.Invalid, context.DeadlineExceeded: mcp.Internal,
	} {
		if got := mcpCode(err); got != want {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
	}
}
