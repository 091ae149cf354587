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
