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
	var token, org string
	var git bool
	cmd := &cobra.Command{
		Use: "login", Short: "Store an API key for this user",
		Long: `Check an API key against the server and store it in ~/.versrc, which only you can read. Without --token
the key is asked for, hidden. With --url the address is stored too.

With --git the server is asked for a key, with git's user.email and your SSH public key, as 'vers signup'
does.

versd prints a key on its first start; 'versd key create' makes more.`,
		Example: "  vers login --token <key>\n  vers --url https://vers.example.org login\n  vers login --git",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			given := cmd.Flags().Changed("token")
			if !git {
				return a.login(cmd.Context(), token, given)
			}
			if given {
				return fault.Invalidf("--git asks the server for a key, --token brings one; give one of them")
			}
			who, err := a.gitIdentity(cmd.Context(), "", "")
			if err != nil {
				return err
			}
			return a.shellLogin(cmd.Context(), who, org, true)
		},
	}
	cmd.Flags().StringVarP(&token, "token", "t", "", "the API key")
	cmd.Flags().BoolVar(&git, "git", false, "ask the server for a key with git's e-mail address and your SSH key")
	cmd.Flags().StringVar(&org, "org", "", "with --git: organisation, if you belong to several")
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
	return a.storeKey(ctx, address, token, nil)
}

// storeKey checks a key against the server and stores it, with what change adds.
func (a *App) storeKey(ctx context.Context, address, key string, change func(*local.Credentials)) error {
	client, err := a.newClient(address, key)
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
	stored.APIKey = key
	if a.url != "" {
		stored.URL = address
	}
	if change != nil {
		change(&stored)
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
