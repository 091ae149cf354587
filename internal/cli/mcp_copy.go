package cli

import (
	"context"

	"vers/internal/cli/mcp"
	"vers/internal/fault"
)

type copyInput struct {
	vmInput
	Source         string `json:"source" jsonschema:"a leading : marks a path in the VM; others are on the machine of this server"`
	Destination    string `json:"destination" jsonschema:"the same; a folder, or a path that ends in a slash, gets the source under its own name"`
	Recursive      bool   `json:"recursive,omitempty" jsonschema:"copy folders with all that is in them"`
	TimeoutSeconds int64  `json:"timeoutSeconds,omitempty" jsonschema:"give up after this time; 0 or left out: no limit"`
}

// addCopyTool adds the tool that reads and writes files of this machine.
func (m *agentTools) addCopyTool(s *mcp.Server) {
	mcp.Add(s, mcp.Tool{
		Name: "vers.copy", Title: "Copy files", PerMinute: 10, Destructive: true, Idempotent: true,
		Description: "Copies a file or folder between the machine of this server and a VM, of any size. Exactly one of the paths must begin with a colon: " +
			"the one in the VM. What was copied in part goes on when the call is repeated.",
	}, m.copy)
}

func (m *agentTools) copy(ctx context.Context, call *mcp.Call, in copyInput) (copyResult, error) {
	if (in.Source != "" && in.Source[0] == ':') == (in.Destination != "" && in.Destination[0] == ':') || in.Source == "-" || in.Destination == "-" {
		return copyResult{Failed: []copyFailed{}}, fault.Invalidf("source is %q and destination %q; exactly one of them must begin with ':', the one in the VM", in.Source, in.Destination)
	}
	args := []string{in.Source, in.Destination}
	if in.Target != "" {
		args = append([]string{in.Target}, args...)
	}
	result, err := command[copyResult](m, call, func(a *App) error {
		return a.copy(ctx, copyOptions{args: args, recursive: in.Recursive, timeout: in.TimeoutSeconds, format: asJSON})
	})
	if result.Failed == nil {
		result.Failed = []copyFailed{}
	}
	return result, err
}
