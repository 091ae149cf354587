package cli

import (
	"context"

	"vers/api"
	"vers/internal/cli/mcp"
)

// versionOutput is the result of vers.version.
type versionOutput struct {
	Version       string `json:"version" jsonschema:"of this program"`
	Commit        string `json:"commit"`
	BuildDate     string `json:"build_date"`
	Server        string `json:"server" jsonschema:"address of the vers server"`
	ServerVersion string `json:"server_version"`
	ServerCommit  string `json:"server_commit"`
}

// capabilitiesOutput is the result of vers.capabilities.
type capabilitiesOutput struct {
	Tools      []string `json:"tools"`
	Resources  []string `json:"resources"`
	ErrorCodes []string `json:"error_codes"`
}

const statusURI = "vers://status"

// addServerTools adds the tools about this server itself, and the resource.
func (m *agentTools) addServerTools(s *mcp.Server) {
	type none struct{}
	mcp.Add(s, mcp.Tool{
		Name: "vers.version", Title: "Show versions", ReadOnly: true,
		Description: "Shows the versions of this program and of the vers server, and that server's address.",
	}, func(ctx context.Context, call *mcp.Call, _ none) (versionOutput, error) {
		out := versionOutput{Version: m.app.Build.Version, Commit: m.app.Build.Commit, BuildDate: m.app.Build.Date}
		return filled(&out, m.with(call, func(_ *App, client *api.Client) error {
			ctx, cancel := limit(ctx, checkLimit, "asking for the version")
			defer cancel()
			v, err := client.ServerVersion(ctx)
			out.Server, out.ServerVersion, out.ServerCommit = client.Address(), v.WorkspaceVersion, v.GitHash
			return err
		}))
	})
	mcp.Add(s, mcp.Tool{
		Name: "vers.capabilities", Title: "List tools", ReadOnly: true,
		Description: "Lists the tools and resources of this server, and the error codes that failures begin with.",
	}, func(context.Context, *mcp.Call, none) (capabilitiesOutput, error) {
		return capabilitiesOutput{
			Tools: s.Tools(), Resources: []string{statusURI},
			ErrorCodes: []string{mcp.Invalid, mcp.ConfirmRequired, mcp.NotFound, mcp.Conflict, mcp.Internal},
		}, nil
	})
	mcp.Add(s, mcp.Tool{
		Name: "vers.metrics", Title: "Count calls", ReadOnly: true,
		Description: "Counts calls, failures and durations by tool, since this server started.",
	}, func(context.Context, *mcp.Call, none) (mcp.Metrics, error) { return s.Metrics(), nil })
	s.AddResource(statusURI, "status", "The VMs of the organisation, and HEAD", m.statusDocument)
}
