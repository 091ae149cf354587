package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/fault"
)

func (a *App) openCommand() *cobra.Command {
	var format formatFlags
	var domain, expiresIn string
	cmd := &cobra.Command{
		Use: "open [vm|alias] [port]", Short: "Print the URL of a web server in a VM",
		Long: `Print the URL by which a browser reaches a port of a VM (default: HEAD, port 80) through the server's gateway.
A number alone is a port. The server in the VM must listen on all addresses (0.0.0.0), not on localhost only.

For a private name, as domains are by default, the URL holds a signed link: who has it gets in until it
expires.`,
		Example: `  vers open dev 3000
  vers open 8080
  vers open dev --domain app.example.org --expires-in 1h
  xdg-open "$(vers open dev 3000)"`,
		Args: arguments(cobra.MaximumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			typed, port, err := openArguments(args)
			if err != nil {
				return err
			}
			req := api.URLRequest{Port: port, Domain: domain}
			if expiresIn != "" {
				age, err := days(expiresIn)
				if err != nil {
					return err
				}
				req.ExpiresIn = int64(age / time.Second)
			}
			return a.open(cmd.Context(), typed, req, format)
		},
		ValidArgsFunction: a.completeVMs,
	}
	cmd.Flags().StringVar(&domain, "domain", "", "one of the VM's domains, instead of the VM's own name")
	cmd.Flags().StringVar(&expiresIn, "expires-in", "", "how long a signed link is good, for example 1h or 7d (default a day)")
	format.add(cmd)
	return cmd
}

// openArguments tells a port from a VM: a number up to 65535 is a port.
func openArguments(args []string) (vm string, port int, err error) {
	if len(args) == 0 {
		return "", 0, nil
	}
	last := args[len(args)-1]
	n, err := strconv.Atoi(last)
	isPort := err == nil && n >= 1 && n <= 65535
	switch {
	case len(args) == 2 && !isPort:
		return "", 0, fault.Invalidf("invalid port '%s': use a number from 1 to 65535", last)
	case len(args) == 2:
		return args[0], n, nil
	case isPort:
		return "", n, nil
	}
	return last, 0, nil
}

func (a *App) open(ctx context.Context, typed string, req api.URLRequest, format formatFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	t, err := a.target(ctx, typed)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "asking for the URL")
	defer cancel()
	u, err := client.URL(ctx, t.ID, req)
	if err != nil {
		return t.missing(err)
	}
	return a.show(mode, u.URL, u, func() {
		a.usedHead(t)
		fmt.Fprintln(a.Streams.Out, u.URL)
		if u.ExpiresAt != nil {
			a.Streams.note("Who has this link gets in, until %s.", when(*u.ExpiresAt))
		}
	})
}
