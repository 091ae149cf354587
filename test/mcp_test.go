package test

import (
	"encoding/json"
	"errors"

	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// agentOf starts `vers mcp serve` as an agent's program does, in the user's folder.
func agentOf(t *testing.T, u *user) *sdk.ClientSession {
	t.Helper()
	cmd := exec.Command(filepath.Join(bin, "vers"), "mcp", "serve")
	cmd.Dir, cmd.Env = u.dir, u.env()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	client := sdk.NewClient(&sdk.Implementation{Name: "agent", Version: "1"}, nil)
	session, err := client.Connect(t.Context(), &sdk.CommandTransport{Command: cmd}, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	t.Cleanup(func() {
		if err := session.Close(); err != nil {
			t.Errorf("vers mcp serve did not end well: %v\n%s", err, &stderr)
		}
	})
	return session
}

// use calls a tool that must succeed.
func use(t *testing.T, agent *sdk.ClientSession, tool string, arguments map[string]any, into any) {
	t.Helper()
	result, err := agent.CallTool(t.Context(), &sdk.CallToolParams{Name: tool, Arguments: arguments})
	if err != nil {
		t.Fatalf("%s: %v", tool, err)
	}
	if result.IsError {
		t.Fatalf("%s: %s", tool, result.Content[0].(*sdk.TextContent).Text)
	}
	data, err := json.Marshal(result.StructuredContent)
	must(t, err)
	must(t, json.Unmarshal(data, into))
}

// TestAgent: an agent lists the tools and runs a VM, executes, commits, branches, restores, reaches a port, and kills.
func TestAgent(t *testing.T) {
	u := newUser(t, shared)
	agent := agentOf(t, u)
	names := map[string]bool{}
	for tool, err := range agent.Tools(t.Context(), nil) {
		must(t, err)
		names[tool.Name] = true
	}
	for _, name := range []string{"vers.run", "vers_run", "vers.execute", "vers.commit", "vers.branch", "vers.kill", "vers_repo_tag_create"} {
		if !names[name] {
			t.Errorf("%s is missing", name)
		}
	}
	var ran, restored struct {
		VMID string `json:"vm_id"`
	}
	var commit struct {
		ID string `json:"commit_id"`
	}
	var branched struct {
		NewID string `json:"new_id"`
	}
	use(t, agent, "vers.run", map[string]any{"memSizeMib": 256, "vmAlias": "agent"}, &ran)
	execute := func(target, script string) string {
		t.Helper()
		var done struct {
			Code   int `json:"exit_code"`
			Stdout string
			Stderr string
		}
		use(t, agent, "vers_execute", map[string]any{"target": target, "command": []string{script}}, &done)
		if done.Code != 0 {
			t.Fatalf("%s: exit code %d: %s", script, done.Code, done.Stderr)
		}
		return strings.TrimSpace(done.Stdout)
	}
	// A server whose process, and number in memory, must be in every copy.
	execute("agent", `cat > /root/serve <<'E'
use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => 8080, Listen => 5, ReuseAddr => 1) or die;
my $n = 41;
while (my $c = $s->accept) { $n++; print $c "$n\n"; close $c }
E
nohup perl /root/serve >/dev/null 2>&1 & echo $! > /dev/shm/pid`)
	if got := throughTunnel(t, agent, "agent"); got != "42" {
		t.Fatalf("the VM's server says %q", got)
	}
	use(t, agent, "vers.commit", map[string]any{"tags": []string{"agents:ready"}}, &commit)
	use(t, agent, "vers.branch", map[string]any{"alias": "copy"}, &branched)
	use(t, agent, "vers.run_commit", map[string]any{"commit": "agents:ready", "vmAlias": "restored"}, &restored)
	for _, target := range []string{"copy", "restored", "agent"} {
		if got := throughTunnel(t, agent, target); got != "43" {
			t.Errorf("the server in %s says %q, so it does not go on from where it was", target, got)
		}
	}
	if host := execute("copy", "hostname"); host == execute("agent", "hostname") {
		t.Errorf("the branch and its source are both called %s", host)
	}
	execute("restored", "echo hello > /root/new")
	use(t, agent, "vers.commit", map[string]any{"target": "restored"}, &commit)
	var diff struct {
		Entries []struct{ Path, Change string }
	}
	use(t, agent, "vers.diff", map[string]any{"commits": []string{"agents:ready", commit.ID}, "path": "/root"}, &diff)
	if len(diff.Entries) != 1 || diff.Entries[0].Path != "/root/new" || diff.Entries[0].Change != "added" {
		t.Errorf("the commits differ in %+v", diff.Entries)
	}
	if head := u.run("vers head"); head != restored.VMID {
		t.Errorf("HEAD is %s", head)
	}
	var killed struct {
		Deleted []string `json:"deleted_ids"`
	}
	use(t, agent, "vers.kill", map[string]any{"targets": []string{"agent", "copy", "restored"}, "skipConfirmation": true}, &killed)
	if left := u.run("vers status -q"); left != "" || len(killed.Deleted) != 3 {
		t.Errorf("%v deleted, left is %s", killed.Deleted, left)
	}
	var none struct{}
	use(t, agent, "vers.repo.delete", map[string]any{"name": "agents", "skipConfirmation": true}, &none)
}

// throughTunnel asks the server at port 8080 of a VM. It may be starting, so that connections are closed without a word.
func throughTunnel(t *testing.T, agent *sdk.ClientSession, target string) (answer string) {
	t.Helper()
	var tunnel struct {
		Host string `json:"local_host"`
		Port int    `json:"local_port"`
	}
	use(t, agent, "vers.tunnel", map[string]any{"target": target, "remotePort": 8080}, &tunnel)
	eventually(t, "an answer through the tunnel", func() error {
		conn, err := net.Dial("tcp", net.JoinHostPort(tunnel.Host, strconv.Itoa(tunnel.Port)))
		if err != nil {
			return err
		}
		defer conn.Close()
		data, err := io.ReadAll(conn)
		if answer = strings.TrimSpace(string(data)); answer == "" {
			return errors.Join(errors.New("nothing came"), err)
		}
		return nil
	})
	var none struct{}
	use(t, agent, "vers.tunnel.close", map[string]any{"localPort": tunnel.Port}, &none)
	return answer
}
