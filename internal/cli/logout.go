package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"vers/internal/cli/local"
)

func (a *App) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use: "logout", Short: "Forget the stored API key",
		Long:    "Forget the stored API key. VERS_API_KEY, where it is set, stays what it is.",
		Example: "  vers logout",
		Args:    arguments(cobra.NoArgs),
		RunE:    func(*cobra.Command, []string) error { return a.logout() },
	}
}

func (a *App) logout() error {
	stored, err := local.LoadCredentials(a.Home)
	if err != nil {
		return err
	}
	if stored.APIKey == "" {
		fmt.Fprintln(a.Streams.Out, "Nobody is logged in")
	} else {
		stored.APIKey = ""
		if err := stored.Save(a.Home); err != nil {
			return err
		}
		fmt.Fprintln(a.Streams.Out, "Logged out")
	}
	for _, name := range []string{"VERS_API_KEY", "VERS_TOKEN"} {
		if a.env(name) != "" {
			a.Streams.note("note: %s is still set and will be used", name)
		}
	}
	return nil
}
