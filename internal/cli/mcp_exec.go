package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"vers/api"
	"vers/internal/cli/mcp"
	"vers/internal/fault"
)

const (
	defaultToolTimeout = 600      // of vers.execute, in seconds: an agent that waits for ever is of no use
	defaultOutput      = 64 << 10 // bytes of each stream that stay in a result
	maxOutput          = 1 << 20
)

func (m *agentTools) addExecTools(s *mcp.Server) {
	mcp.Add(s, mcp.Tool{
		Name: "vers.execute", Title: "Run a command in a VM", PerMinute: 10, Destructive: true,
		Description: "Runs a command in a VM, as root, and gives exit code, stdout and stderr. Output is streamed while it comes. " +
			"Start what shall go on running with nohup … & and redirect its output.",
	}, m.execute)
	mcp.Add(s, mcp.Tool{
		Name: "vers.logs", Title: "Read a VM's logs", PerMinute: 60, ReadOnly: true,
		Description: "Gives the output of all commands that were run in a VM, in time order, also of those whose call was given up.",
	}, m.logs)
}

type executeInput struct {
	vmInput
	Command        []string          `json:"command" jsonschema:"one word: a shell script; several: program and arguments, without a shell"`
	TimeoutSeconds *int64            `json:"timeoutSeconds,omitempty" jsonschema:"end the command after this time; 600 if left out, 0 for no limit"`
	Workdir        string            `json:"workdir,omitempty" jsonschema:"working folder; root's home if left out"`
	Env            map[string]string `json:"env,omitempty" jsonschema:"variables for the command"`
	Stdin          *string           `json:"stdin,omitempty" jsonschema:"whole standard input; empty if left out"`
	MaxOutputBytes *int              `json:"maxOutputBytes,omitempty" jsonschema:"how much of each stream stays in the result, beginning and end; 65536 if left out, at most 1048576"`
}

// executeOutput is the result of vers.execute. A command that failed is a result too, not a failure of the tool.
type executeOutput struct {
	VMID     string `json:"vm_id"`
	ExecID   string `json:"exec_id" jsonschema:"names the command in vers.logs"`
	ExitCode int    `json:"exit_code" jsonschema:"128 and the signal's number if a signal ended it; 124 if the time was up"`
	TimedOut bool   `json:"timed_out"`
	Stdout   string `json:"stdout"`
	Stderr   string `json:"stderr"`

	StdoutBytes int64 `json:"stdout_bytes" jsonschema:"what the command wrote"`
	StderrBytes int64 `json:"stderr_bytes"`
	StdoutCut   int64 `json:"stdout_cut_bytes" jsonschema:"what is missing in the middle of stdout"`
	StderrCut   int64 `json:"stderr_cut_bytes"`
}

func (m *agentTools) execute(ctx context.Context, call *mcp.Call, in executeInput) (executeOutput, error) {
	timeout, keep, err := in.limits()
	if err != nil {
		return executeOutput{}, err
	}
	out := executeOutput{ExecID: uuid.NewString()}
	stdout, stderr := call.Outputs(ctx, keep)
	err = m.with(call, func(a *App, client *api.Client) error {
		t, err := a.target(ctx, in.Target)
		if err != nil {
			return err
		}
		out.VMID = t.ID
		r := remoteCommand{
			client: client, vm: t, command: in.Command, env: in.Env, execID: out.ExecID, stdin: in.Stdin,
			options: execOptions{timeout: timeout, workdir: in.Workdir}, stdout: stdout, stderr: stderr,
		}
		out.ExitCode, err = a.execAPI(ctx, r)
		if errors.Is(err, context.DeadlineExceeded) && timeout > 0 && ctx.Err() == nil {
			out.ExitCode, out.TimedOut, err = 124, true, nil
		}
		return t.missing(err)
	})
	stdout.Flush()
	stderr.Flush()
	out.Stdout, out.StdoutBytes, out.StdoutCut = stdout.Result()
	out.Stderr, out.StderrBytes, out.StderrCut = stderr.Result()
	if err != nil {
		if out.StdoutBytes+out.StderrBytes > 0 {
			call.Note(out.text(timeout))
		}
		return out, err
	}
	call.Text(out.text(timeout))
	return out, nil
}

func (in executeInput) limits() (timeout int64, keep int, err error) {
	timeout, keep = defaultToolTimeout, defaultOutput
	if in.TimeoutSeconds != nil {
		timeout = *in.TimeoutSeconds
	}
	if in.MaxOutputBytes != nil {
		keep = *in.MaxOutputBytes
	}
	switch {
	case len(in.Command) == 0 || strings.TrimSpace(in.Command[0]) == "":
		return 0, 0, fault.Invalidf("the command is empty")
	case timeout < 0:
		return 0, 0, fault.Invalidf("invalid timeoutSeconds %d (must not be negative)", timeout)
	case keep < 0 || keep > maxOutput:
		return 0, 0, fault.Invalidf("invalid maxOutputBytes %d (0 to %d)", keep, maxOutput)
	}
	for key, value := range in.Env {
		if err := errors.Join(checkEnvKey(key), checkEnvValue(key, value)); err != nil {
			return 0, 0, err
		}
	}
	return timeout, keep, nil
}

// text is the result for clients that read text.
func (out executeOutput) text(timeout int64) string {
	var b strings.Builder
	fmt.Fprintf(&b, "exit code: %d\n", out.ExitCode)
	if out.TimedOut {
		fmt.Fprintf(&b, "the command was ended after %d s (timeoutSeconds)\n", timeout)
	}
	for _, stream := range []struct{ name, text string }{{"stdout", out.Stdout}, {"stderr", out.Stderr}} {
		if stream.text != "" {
			fmt.Fprintf(&b, "--- %s ---\n%s\n", stream.name, strings.TrimSuffix(stream.text, "\n"))
		}
	}
	return b.String()
}

type logsInput struct {
	vmInput
	Offset     int64  `json:"offset,omitempty" jsonschema:"next_offset of an earlier call, to go on from there"`
	MaxEntries *int64 `json:"maxEntries,omitempty" jsonschema:"at most this many pieces of output; 100 if left out"`
	Stream     string `json:"stream,omitempty" jsonschema:"stdout or stderr; both if left out"`
}

type logEntry struct {
	Timestamp time.Time `json:"timestamp"`
	Stream    string    `json:"stream"`
	ExecID    string    `json:"exec_id"`
	Text      string    `json:"text"`
	CutBytes  int       `json:"cut_bytes,omitempty" jsonschema:"missing at the end of text"`
}

type logsOutput struct {
	VMID       string     `json:"vm_id"`
	Entries    []logEntry `json:"entries"`
	NextOffset int64      `json:"next_offset"`
	EOF        bool       `json:"eof" jsonschema:"nothing more is there now"`
}

func (m *agentTools) logs(ctx context.Context, call *mcp.Call, in logsInput) (logsOutput, error) {
	entries := int64(100)
	if in.MaxEntries != nil {
		entries = *in.MaxEntries
	}
	out := logsOutput{Entries: []logEntry{}}
	if entries < 1 {
		return out, fault.Invalidf("invalid maxEntries %d (must be at least 1)", entries)
	}
	return filled(&out, m.with(call, func(a *App, client *api.Client) error {
		t, err := a.target(ctx, in.Target)
		if err != nil {
			return err
		}
		ctx, cancel := limit(ctx, listLimit, "reading the logs")
		defer cancel()
		list, err := boundedLogs(ctx, client, t.ID, api.LogOptions{Offset: in.Offset, MaxEntries: entries, Stream: in.Stream})
		if err != nil {
			return t.missing(err)
		}
		out.VMID, out.NextOffset, out.EOF = t.ID, list.NextOffset, list.EOF
		for _, e := range list.Entries {
			text, cut := bounded(e.Data)
			out.Entries = append(out.Entries, logEntry{e.Timestamp, e.Stream, e.ExecID, text, cut})
		}
		return nil
	}))
}

// boundedLogs asks for fewer entries until they are no more than an agent wants to read, so that what is left out comes
// with the next call.
func boundedLogs(ctx context.Context, client *api.Client, vmID string, o api.LogOptions) (api.LogList, error) {
	for {
		list, err := client.Logs(ctx, vmID, o)
		size := 0
		for _, e := range list.Entries {
			size += len(e.Data)
		}
		if err != nil || size <= defaultOutput || len(list.Entries) < 2 {
			return list, err
		}
		o.MaxEntries = int64(len(list.Entries) / 2)
	}
}

// bounded gives the beginning of data as text, and how many bytes are missing.
func bounded(data []byte) (text string, cut int) {
	end := min(len(data), defaultOutput)
	for end < len(data) && end > 0 && !utf8.RuneStart(data[end]) {
		end--
	}
	return strings.ToValidUTF8(string(data[:end]), "\uFFFD"), len(data) - end
}
