package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"vers/api"
	"vers/internal/cli/local"
	"vers/internal/fault"
)

func (a *App) loginCommand() *cobra.Command {
	var token string
	cmd := &cobra.Command{
		Use: "login", Short: "Store an API key for this user",
		Long: `Check an API key against the server and store it in ~/.versrc, which only you can read. Without --token
the key is asked for, hidden. With --url the address is stored too.

versd prints a key on its first start; 'versd key create' makes more.`,
		Example: "  vers login --token <key>\n  vers --url https://vers.example.org login",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.login(cmd.Context(), token, cmd.Flags().Changed("token"))
		},
	}
	cmd.Flags().StringVarP(&token, "token", "t", "", "the API key")
	return cmd
}

func (a *App) login(ctx context.Context, token string, given bool) error {
	var err error
	if !given {
		if token, err = a.askKey(); err != nil {
			return err
		}
	}
	token = strings.TrimSpace(token)
	if token == "" || strings.ContainsAny(token, " \t\r\n") {
		return fault.Invalidf("the API key is empty or holds spaces")
	}
	address, _, err := a.address()
	if err != nil {
		return err
	}
	client, err := a.newClient(address, token)
	if err != nil {
		return err
	}
	defer client.CloseIdle()
	ctx, cancel := limit(ctx, checkLimit, "checking the key")
	defer cancel()
	if _, err := client.VMs(ctx); err != nil {
		if status := api.StatusOf(err); status == http.StatusUnauthorized || status == http.StatusForbidden {
			return fault.New(fault.Unauthenticated, "invalid API key: the server at %s does not accept it; nothing was stored", address)
		}
		return err
	}
	stored, err := local.LoadCredentials(a.Home)
	if err != nil {
		return err
	}
	stored.APIKey = token
	if a.url != "" {
		stored.URL = address
	}
	if err := stored.Save(a.Home); err != nil {
		return err
	}
	fmt.Fprintf(a.Streams.Out, "Logged in to %s; the key is stored in ~/.versrc\n", address)
	return nil
}

// askKey reads the key, hidden on a terminal.
func (a *App) askKey() (string, error) {
	if a.Streams.Terminal == nil {
		line, err := bufio.NewReader(a.Streams.In).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("read the key: %w", err)
		}
		return line, nil
	}
	fmt.Fprint(a.Streams.Err, "API key: ")
	key, err := term.ReadPassword(int(a.Streams.Terminal.Fd()))
	fmt.Fprintln(a.Streams.Err)
	if err != nil {
		return "", fmt.Errorf("read the key: %w", err)
	}
	return string(key), nil
}

func (a *App) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use: "logout", Short: "Forget the stored API key",
		Args: arguments(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error { return a.logout() },
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

func (a *App) whoamiCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "whoami", Short: "Show organisation, key and server",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.whoami(cmd.Context(), format) },
	}
	format.add(cmd)
	return cmd
}

// whoamiResult is the JSON output of whoami.
type whoamiResult struct {
	api.Whoami
	Server string `json:"server"`
}

func (a *App) whoami(ctx context.Context, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, checkLimit, "asking the server")
	defer cancel()
	who, err := client.Whoami(ctx)
	switch {
	case err != nil:
		return err
	case mode == modeJSON:
		return printJSON(a.Streams.Out, whoamiResult{who, client.Address()})
	}
	key := who.KeyName
	if key == "" {
		key = who.KeyID
	}
	a.fields([][2]string{{"Organisation", who.OrgName}, {"Key", key}, {"Server", client.Address()}})
	return nil
}
