package cli

import (
	"github.com/spf13/cobra"
)

func (a *App) signupCommand() *cobra.Command {
	var git bool
	var org, email, key string
	cmd := &cobra.Command{
		Use: "signup", Short: "Ask a server for an account and an API key",
		Long: `Ask the server for an account, with your e-mail address (git's user.email) and your SSH public key
(~/.ssh/id_ed25519.pub, id_ecdsa.pub or id_rsa.pub). A server that does not let everybody in waits for its
operator's approval. The API key is stored in ~/.versrc.

With --git=false an API key is asked for, as 'vers login' does.`,
		Example: `  vers --url https://vers.example.org signup
  vers signup --email me@example.org --ssh-key ~/.ssh/work.pub --org acme`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !git {
				return a.login(cmd.Context(), "", false)
			}
			who, err := a.gitIdentity(cmd.Context(), email, key)
			if err != nil {
				return err
			}
			return a.shellLogin(cmd.Context(), who, org, false)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&git, "git", true, "use e-mail address and SSH key")
	f.StringVar(&org, "org", "", "organisation, if you belong to several")
	f.StringVar(&email, "email", "", "e-mail address (default: git's)")
	f.StringVar(&key, "ssh-key", "", "file of the SSH public key")
	return cmd
}
