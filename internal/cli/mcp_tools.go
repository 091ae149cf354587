package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"vers/api"
	"vers/internal/cli/mcp"
)

// agentTools are the tools of the MCP server. Most run the function of a command as if --format json were given, so
// that both follow the same rules and a tool's result is what the command prints.
type agentTools struct {
	app     *App
	ctx     context.Context // of the server: tunnels outlive the call that opened them
	mask    *mcp.Mask
	tunnels *tunnels
	local   bool // the agent is whoever started this program, and may have its files

	mu sync.Mutex // guards app.client while it is made
}

const mcpInstructions = `vers is git for running machines. A VM can be branched while it runs (memory, processes and disk), committed
to an immutable snapshot, restored any number of times, and named repo:tag.

Where a target is left out, HEAD is used: the VM that the last vers.run, vers.run_commit or vers.checkout chose. A target
is an alias, an id, or a unique beginning of an id. Typical work: vers.run, vers.execute to set things up, vers.commit,
then vers.branch or vers.run_commit to try things on copies, vers.kill for what is not needed any more.

A command of one word is a shell script; several words are run as they are, without a shell. A failure begins with one of
E_INVALID, E_CONFIRM_REQUIRED, E_NOT_FOUND, E_CONFLICT, E_INTERNAL. Tools that delete need skipConfirmation: true; ask the
user first. Every tool has two names, with dots and with underscores, which do the same.`

func newAgentTools(ctx context.Context, a *App, mask *mcp.Mask) *agentTools {
	for _, name := range []string{"VERS_API_KEY", "VERS_TOKEN", "VERS_MCP_HTTP_TOKEN"} {
		mask.Hide(strings.TrimSpace(a.env(name)))
	}
	return &agentTools{app: a, ctx: ctx, mask: mask, tunnels: &tunnels{}}
}

// server makes the server with all tools.
func (m *agentTools) server(o mcp.Options) *mcp.Server {
	o.Version, o.Instructions, o.Mask, o.Code = m.app.Build.Version, mcpInstructions, m.mask, mcpCode
	s := mcp.New(o)
	m.addVMTools(s)
	m.addExecTools(s)
	m.addFileTools(s)
	if m.local {
		m.addCopyTool(s)
	}
	m.addCommitTools(s)
	m.addRepoTools(s)
	m.addSharingTools(s)
	m.addRepoTagTools(s)
	m.addTagTools(s)
	m.addAccountTools(s)
	m.addTunnelTools(s)
	m.addServerTools(s)
	return s
}

// session gives an App for one call, which has the server's settings and connection but prints to nobody: what it notes
// for the user is in the second result.
func (m *agentTools) session() (*App, *bytes.Buffer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.app.client == nil { // the key may come later than the server, by vers login
		if key, _, err := m.app.key(); err == nil {
			m.mask.Hide(key)
		}
		if _, err := m.app.api(); err != nil {
			return nil, nil, m.unavailable(err)
		}
	}
	var notes bytes.Buffer
	one := *m.app
	one.Streams = &Streams{In: strings.NewReader(""), Out: &bytes.Buffer{}, Err: &notes, Width: func() int { return 0 }}
	return &one, &notes, nil
}

// unavailable adds the standing remedy to an error, as the commands do.
func (m *agentTools) unavailable(err error) error {
	message := m.app.explain(err)
	if advice := m.app.advice(err); advice != "" {
		message += "\n" + advice
	}
	return rewordf(err, "%s", message)
}

// with runs do for one call of a tool.
func (m *agentTools) with(call *mcp.Call, do func(a *App, client *api.Client) error) error {
	a, notes, err := m.session()
	if err != nil {
		return err
	}
	err = do(a, a.client)
	for line := range strings.Lines(notes.String()) {
		if line = strings.TrimSpace(line); line != "" {
			call.Note(line)
		}
	}
	if err != nil {
		return m.unavailable(err)
	}
	return nil
}

// filled gives what a call of with has filled in: in "return out, m.with(…)", out could be read before the call.
func filled[T any](out *T, err error) (T, error) { return *out, err }

// asJSON is --format json.
var asJSON = formatFlags{json: true}

// command runs a command's function with JSON output and gives what it printed.
func command[T any](m *agentTools, call *mcp.Call, run func(a *App) error) (T, error) {
	var result T
	err := m.with(call, func(a *App, _ *api.Client) error {
		out := a.Streams.Out.(*bytes.Buffer)
		if err := run(a); err != nil {
			var status *statusError
			if errors.As(err, &status) {
				return fmt.Errorf("the command ended with exit code %d", status.code)
			}
			return err
		}
		if err := json.Unmarshal(out.Bytes(), &result); err != nil {
			return fmt.Errorf("read the command's result: %w", err)
		}
		return nil
	})
	return result, err
}

// vmInput names a VM.
type vmInput struct {
	Target string `json:"target,omitempty" jsonschema:"alias, id, or unique beginning of an id; HEAD if left out"`
}

// pageInput chooses a part of a list.
type pageInput struct {
	Limit  int `json:"limit,omitempty" jsonschema:"show at most this many; 100 if left out"`
	Offset int `json:"offset,omitempty" jsonschema:"leave out this many from the start"`
}

// listOutput is a part of a list.
type listOutput[T any] struct {
	Items      []T `json:"items"`
	Total      int `json:"total"`
	NextOffset int `json:"next_offset,omitempty" jsonschema:"there is more: pass it as offset"`
}

const defaultPage = 100

// pageOf cuts a list that a command printed whole.
func pageOf[T any](in pageInput, all []T, err error) (listOutput[T], error) {
	if err != nil {
		return listOutput[T]{Items: []T{}}, err
	}
	if in.Limit == 0 {
		in.Limit = defaultPage
	}
	items, _, _, err := cut(pageFlags{in.Limit, in.Offset}, all)
	out := listOutput[T]{Items: items, Total: len(all)}
	if err != nil {
		out.Items = []T{}
	}
	if next := in.Offset + len(items); next < len(all) {
		out.NextOffset = next
	}
	return out, err
}
