package cli

import (
	"context"

	"github.com/spf13/cobra"

	"vers/api"
)

func (a *App) whoamiCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "whoami", Short: "Show organisation, key and server",
		Example: "  vers whoami\n  vers whoami --format json | jq -r .org_name",
		Args:    arguments(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.whoami(cmd.Context(), format) },
	}
	format.addQuiet(cmd, "print the organisation only")
	return cmd
}

// whoamiResult is the JSON output of whoami.
type whoamiResult struct {
	api.Whoami
	Server string `json:"server"`
}

func (a *App) whoami(ctx context.Context, format formatFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, checkLimit, "asking the server")
	defer cancel()
	who, err := client.Whoami(ctx)
	if err != nil {
		return err
	}
	key := who.KeyName
	if key == "" {
		key = who.KeyID
	}
	expires := ""
	if who.ExpiresAt != nil {
		expires = when(*who.ExpiresAt)
	}
	return a.show(mode, who.OrgName, whoamiResult{who, client.Address()}, a.fields([][2]string{
		{"Organisation", who.OrgName}, {"Key", key}, {"Expires", expires}, {"Server", client.Address()},
	}))
}
