package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"vers/api"
	"vers/internal/cli/local"
	"vers/internal/fault"
)

// Limits of the login by e-mail and SSH key (spec/cli.md 10.1).
const (
	approvalPause = 3 * time.Second
	approvalLimit = 10 * time.Minute
)

// identity is who asks for a key: an e-mail address and an SSH public key.
type identity struct {
	email   string
	keyPath string // of the public key
	key     string // its line
}

// gitIdentity finds what is not given: the address in git's settings, the key in ~/.ssh.
func (a *App) gitIdentity(ctx context.Context, email, keyPath string) (identity, error) {
	who := identity{email: strings.TrimSpace(email), keyPath: keyPath}
	if who.email == "" {
		cmd := exec.CommandContext(ctx, "git", "config", "user.email")
		cmd.Dir = a.Dir
		out, err := cmd.Output()
		if who.email = strings.TrimSpace(string(out)); who.email == "" {
			if errors.Is(err, exec.ErrNotFound) {
				return who, fmt.Errorf("ask git for your e-mail address: %w", err)
			}
			return who, fault.Invalidf("git knows no e-mail address of yours: set one with 'git config --global user.email you@example.org'")
		}
	}
	candidates := []string{who.keyPath}
	if who.keyPath == "" {
		candidates = nil
		for _, name := range []string{"id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub"} {
			candidates = append(candidates, filepath.Join(a.Home, ".ssh", name))
		}
	}
	for _, path := range candidates {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return who, fmt.Errorf("read the SSH public key: %w", err)
		}
		if strings.Contains(string(data), "PRIVATE KEY") {
			return who, fault.Invalidf("%s is a private key: name the public one, which ends in .pub", path)
		}
		who.keyPath, who.key = path, strings.TrimSpace(string(data))
		return who, nil
	}
	return who, fault.NotFoundf("no SSH public key found (%s): make one with 'ssh-keygen -t ed25519'", strings.Join(candidates, ", "))
}

// shellLogin asks the server for an API key, waits until the request is approved, and stores the key. org may be empty.
func (a *App) shellLogin(ctx context.Context, who identity, org string, ask bool) error {
	address, _, err := a.address()
	if err != nil {
		return err
	}
	client, err := a.newClient(address, "")
	if err != nil {
		return err
	}
	defer client.CloseIdle()
	limited, cancel := limit(ctx, listLimit, "asking to log in")
	started, err := client.ShellAuth(limited, api.ShellAuthRequest{Email: who.email, SSHPublicKey: who.key})
	cancel()
	if err != nil {
		return err
	}
	user, err := a.awaitApproval(ctx, client, who, started)
	if err != nil {
		return err
	}
	if org, err = a.chooseOrganisation(user.Orgs, org, ask); err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown-host"
	}
	limited, cancel = limit(ctx, listLimit, "making the key")
	defer cancel()
	made, err := client.CreateShellKey(limited, api.ShellKeyRequest{
		Email: who.email, SSHPublicKey: who.key, Label: "vers-cli-" + host, OrgName: &org,
	})
	if err != nil {
		return err
	}
	return a.storeKey(ctx, address, made.APIKey, func(c *local.Credentials) {
		c.Email, c.SSHKeyPath = who.email, who.keyPath
	})
}

// awaitApproval asks until the request is approved.
func (a *App) awaitApproval(ctx context.Context, client *api.Client, who identity, started api.ShellAuthStarted) (api.VerifyKeyResult, error) {
	if !started.AlreadyVerified {
		a.Streams.note("Asked to log in as %s, request %s. Unless the server lets everybody in, its operator approves it now: versd approve %s",
			who.email, started.Nonce, started.Nonce)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, approvalLimit,
		rewordf(context.DeadlineExceeded, "the request %s was not approved within %v", started.Nonce, approvalLimit))
	defer cancel()
	defer a.Streams.progress("Waiting for the approval of request %s", started.Nonce)()
	for {
		limited, cancel := limit(ctx, listLimit, "asking for the approval")
		user, err := client.VerifyKey(limited, api.VerifyKeyRequest{Email: who.email, SSHPublicKey: who.key})
		cancel()
		switch {
		case err == nil && user.Verified:
			return user, nil
		case err != nil && api.StatusOf(err) != http.StatusUnauthorized:
			return user, err
		case started.AlreadyVerified:
			return user, fault.New(fault.Unauthenticated, "the server does not accept %s with the key %s", who.email, who.keyPath)
		}
		select {
		case <-ctx.Done():
			return user, context.Cause(ctx)
		case <-time.After(a.approvalPause()):
		}
	}
}

func (a *App) approvalPause() time.Duration {
	if a.pause > 0 {
		return a.pause
	}
	return approvalPause
}

// chooseOrganisation finds the organisation that the key is for: the one that is named, the only one, or the user's choice.
func (a *App) chooseOrganisation(orgs []api.UserMembership, named string, ask bool) (string, error) {
	names := make([]string, 0, len(orgs))
	for _, org := range orgs {
		names = append(names, org.Name)
	}
	switch {
	case named != "" && slices.Contains(names, named):
		return named, nil
	case named != "":
		return "", fault.NotFoundf("you do not belong to an organisation '%s', but to: %s", named, strings.Join(names, ", "))
	case len(names) == 0:
		return "", fault.Forbiddenf("you belong to no organisation yet; the server's operator adds you to one")
	case len(names) == 1:
		return names[0], nil
	case !ask || !a.Streams.InTTY || !a.Streams.ErrTTY:
		return "", fault.Invalidf("you belong to several organisations, choose one with --org: %s", strings.Join(names, ", "))
	}
	for i, name := range names {
		a.Streams.note("%3d  %s", i+1, clean(name))
	}
	answer, err := a.Streams.ask("Organisation (number): ")
	if err != nil {
		return "", err
	}
	n, err := strconv.Atoi(answer)
	if err != nil || n < 1 || n > len(names) {
		return "", fault.Invalidf("%q is no number from 1 to %d", answer, len(names))
	}
	return names[n-1], nil
}
