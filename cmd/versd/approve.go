package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"vers/internal/catalog"
	"vers/internal/daemon"
)

func approveCommand(o *options) *cobra.Command {
	var organisation string
	var refuse, asJSON bool
	cmd := &cobra.Command{
		Use:   "approve [CODE|EMAIL]",
		Short: "Let somebody in who logs in by e-mail and SSH key, or list who waits",
		Long: `Approves one request to log in ('vers signup', 'vers login --git') while shell_auth.mode is "token", or in mode "open" a
new SSH key of a known user. Without an argument it lists the requests that wait. Compare the fingerprint with what the
user says ('ssh-keygen -lf ~/.ssh/id_ed25519.pub'): the protocol does not prove who asks.

The approval holds for ten minutes, for one API key, and for the address that the request came from.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.withAccounts(cmd, func(a *daemon.Accounts) error {
				if len(args) == 0 {
					return listLogins(cmd, a, asJSON)
				}
				action, act := "approve", func() (catalog.Login, error) { return a.ApproveLogin(cmd.Context(), args[0], organisation) }
				if refuse {
					action, act = "approve --refuse", func() (catalog.Login, error) { return a.RefuseLogin(cmd.Context(), args[0]) }
				}
				var login catalog.Login
				err := a.Record(action, args[0], catalog.Organisation{Name: organisation}, func() (_ map[string]string, err error) {
					login, err = act()
					return map[string]string{"email": login.Email, "fingerprint": login.Fingerprint, "address": login.Address}, err
				})
				if err != nil {
					return err
				}
				word := "approved"
				if refuse {
					word = "refused"
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s with %s from %s: %s\n", login.Email, login.Fingerprint, login.Address, word)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&organisation, "org", "", "organisation to join (default: the user's, or else shell_auth.organisation, or else a new one)")
	cmd.Flags().BoolVar(&refuse, "refuse", false, "end the request instead")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON (list only)")
	return cmd
}

// loginJSON is a request to log in, in JSON output.
type loginJSON struct {
	Code        string    `json:"code"`
	Email       string    `json:"email"`
	Fingerprint string    `json:"fingerprint"`
	Address     string    `json:"address"`
	Note        string    `json:"note"`
	CreatedAt   time.Time `json:"created_at"`
	ExpiresAt   time.Time `json:"expires_at"`
}

func listLogins(cmd *cobra.Command, a *daemon.Accounts, asJSON bool) error {
	pending, err := a.PendingLogins(cmd.Context())
	if err != nil {
		return err
	}
	shown := []loginJSON{}
	rows := [][]string{{"CODE", "EMAIL", "FINGERPRINT", "FROM", "WAITS UNTIL", "NOTE"}}
	for _, l := range pending {
		shown = append(shown, loginJSON{l.Nonce, l.Email, l.Fingerprint, l.Address, l.Note, l.CreatedAt.UTC(), l.ExpiresAt.UTC()})
		rows = append(rows, []string{l.Nonce, l.Email, l.Fingerprint, l.Address, l.ExpiresAt.Local().Format("15:04:05"), l.Note})
	}
	if asJSON {
		return writeJSON(cmd.OutOrStdout(), shown)
	}
	if len(pending) == 0 {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "Nobody waits")
		return err
	}
	return writeTable(cmd.OutOrStdout(), rows)
}
