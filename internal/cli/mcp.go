package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/mcp"
	"vers/internal/fault"
)

type mcpOptions struct {
	transport string
	addr      string
	names     string
	setKey    bool
}

func (a *App) mcpCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "mcp", Short: "Let AI agents use VMs (Model Context Protocol)",
		Example: "  vers mcp serve",
	}
	return group(cmd, a.mcpServeCommand())
}

func (a *App) mcpServeCommand() *cobra.Command {
	var o mcpOptions
	cmd := &cobra.Command{
		Use: "serve", Short: "Serve the Model Context Protocol",
		Long: `Give AI agents tools to run, branch, commit and use VMs. With --transport stdio (the default) the agent's
program starts this one and speaks with it on standard input and output; it ends when its input does.
With --transport http any number of clients connect to --addr: the protocol is at /, and GET /healthz
says ok.

HEAD of this folder, the aliases of this machine, vers.toml and the API key are those of the other
commands. Set VERS_MCP_HTTP_TOKEN to demand that token from HTTP clients; an address that other machines
can reach is refused without it.`,
		Example: `  vers mcp serve
  VERS_MCP_HTTP_TOKEN=$(openssl rand -hex 32) vers mcp serve --transport http --addr :3920`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.mcpServe(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.transport, "transport", "stdio", "stdio or http")
	f.StringVar(&o.addr, "addr", "127.0.0.1:3920", "address for HTTP clients")
	f.StringVar(&o.names, "names", string(mcp.BothNames), "tool names: dots (vers.run), underscores (vers_run), or both")
	f.BoolVar(&o.setKey, "allow-insecure-set-key", false, "without effect: no tool sets a key")
	_ = cmd.RegisterFlagCompletionFunc("transport", cobra.FixedCompletions([]string{"stdio", "http"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("names", cobra.FixedCompletions([]string{"both", "dots", "underscores"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// mcpServe serves until the client has gone or a signal comes; both are its ordinary end.
func (a *App) mcpServe(ctx context.Context, o mcpOptions) error {
	switch names := mcp.Names(o.names); {
	case o.transport != "stdio" && o.transport != "http":
		return fault.Invalidf("unknown transport %q; stdio and http are possible", o.transport)
	case names != mcp.BothNames && names != mcp.DotNames && names != mcp.UnderlineNames:
		return fault.Invalidf("unknown kind of names %q; both, dots and underscores are possible", o.names)
	}
	mask := &mcp.Mask{}
	a.Streams.Err = mask.Writer(a.Streams.Err)
	tools := newAgentTools(ctx, a, mask)
	tools.local = o.transport == "stdio"
	defer tools.tunnels.closeAll()
	server := tools.server(mcp.Options{Names: mcp.Names(o.names), Log: slog.New(slog.NewTextHandler(a.Streams.Err, nil))})
	var err error
	if o.transport == "http" {
		err = server.ServeHTTP(ctx, o.addr, a.env("VERS_MCP_HTTP_TOKEN"), func(url string) {
			a.Streams.note("MCP server at %s, ends with Ctrl-C", url)
		})
	} else {
		err = server.ServeStreams(ctx, a.Streams.In, a.Streams.Out)
	}
	var signalled *signalError
	if errors.As(context.Cause(ctx), &signalled) {
		return nil
	}
	return err
}

// mcpCode gives the error code of a tool's failure. Like exitCode it looks at types and statuses only.
func mcpCode(err error) string {
	var confirm *confirmError
	if errors.As(err, &confirm) {
		return mcp.ConfirmRequired
	}
	switch exitCode(err) {
	case exitNotFound:
		return mcp.NotFound
	case exitConflict:
		return mcp.Conflict
	case exitInvalid:
		return mcp.Invalid
	}
	if status := api.StatusOf(err); status == http.StatusUnsupportedMediaType || status == http.StatusMethodNotAllowed {
		return mcp.Invalid
	}
	return mcp.Internal
}

// confirmError says that a tool which destroys was called without its confirmation.
type confirmError struct{ what string }

func (e *confirmError) Error() string {
	return fmt.Sprintf("this deletes %s for good; call again with skipConfirmation true if that is what the user wants", e.what)
}

// confirmed checks the confirmation of a tool that destroys what.
func confirmed(given bool, format string, args ...any) error {
	if given {
		return nil
	}
	return &confirmError{fmt.Sprintf(format, args...)}
}
