package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/ref"
	"vers/internal/fault"
)

// publicKeyFile is the most that a file with one public key has.
const publicKeyFile = 64 << 10

func (a *App) keysAddCommand() *cobra.Command {
	var format formatFlags
	var name string
	cmd := &cobra.Command{
		Use: "add <file>", Short: "Let an SSH public key log in to all VMs of the organisation",
		Long: `Let an SSH public key log in, as root, to all VMs of the organisation, those that exist and those to come:
ssh -p 2222 <vm or alias>@<server>. The file is that of the public key; - is standard input.`,
		Example: "  vers key add ~/.ssh/id_ed25519.pub\n  ssh-add -L | head -1 | vers key add - --name laptop",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			mode, client, err := a.begin(format)
			if err != nil {
				return err
			}
			line, err := a.publicKey(args[0])
			if err != nil {
				return err
			}
			ctx, cancel := limit(cmd.Context(), listLimit, "adding the key")
			defer cancel()
			key, err := client.AddSSHKey(ctx, api.LoginKeyRequest{PublicKey: line, Name: name})
			if err != nil {
				return err
			}
			return a.show(mode, key.KeyID, key, a.say("✓ SSH key '%s' added (%s)", clean(key.Name), key.Fingerprint))
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "what the key is called (default: the comment in the file)")
	format.addQuiet(cmd, "print the key's id only")
	return cmd
}

// publicKey reads a public key. A private one is not even sent.
func (a *App) publicKey(path string) (string, error) {
	in := a.Streams.In
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return "", fault.Invalidf("read the public key: %w", err)
		}
		defer file.Close()
		in = file
	}
	data, err := io.ReadAll(io.LimitReader(in, publicKeyFile))
	if err != nil {
		return "", fmt.Errorf("read the public key: %w", err)
	}
	text := strings.TrimSpace(string(data))
	if strings.Contains(text, "PRIVATE KEY") {
		return "", fault.Invalidf("%s holds a private key, which nobody else should see: name the file of the public key, %s.pub", path, path)
	}
	return text, nil
}

func (a *App) listSSHKeys(ctx context.Context, client *api.Client, m mode, pages pageFlags) error {
	all, err := client.SSHKeys(ctx)
	if err != nil {
		return err
	}
	return listing[api.LoginKey]{
		name:   func(k api.LoginKey) string { return k.KeyID },
		header: []string{"KEY ID", "FINGERPRINT", "CREATED", "NAME"},
		row: func(k api.LoginKey) []string {
			return []string{k.KeyID, k.Fingerprint, when(k.CreatedAt), k.Name}
		},
		empty: "No SSH keys. Add one with 'vers key add ~/.ssh/id_ed25519.pub'.",
	}.print(a, m, pages, all)
}

func (a *App) keysRemoveCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "remove <key>...", Short: "Take from SSH keys, named by name, id or fingerprint, the right to log in",
		Example: "  vers key remove laptop",
		Args:    arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			mode, client, err := a.begin(format)
			if err != nil {
				return err
			}
			ctx, cancel := limit(cmd.Context(), listLimit, "removing the key")
			defer cancel()
			all, err := client.SSHKeys(ctx)
			if err != nil {
				return err
			}
			return eachResult(a, mode, args, func(name string) (map[string]string, string, error) {
				key, err := findSSHKey(all, name)
				if err == nil {
					err = client.RemoveSSHKey(ctx, key.KeyID)
				}
				return map[string]string{"key_id": key.KeyID}, fmt.Sprintf("✓ SSH key '%s' removed", clean(key.Name)), err
			})
		},
	}
	format.add(cmd)
	return cmd
}

// findSSHKey finds a key by its name, its fingerprint, its id or the beginning of it.
func findSSHKey(all []api.LoginKey, name string) (api.LoginKey, error) {
	prefix, isPrefix := ref.Prefix(name)
	var found []api.LoginKey
	for _, k := range all {
		if k.Name == name || k.Fingerprint == name || isPrefix && len(ref.Match(prefix, []string{k.KeyID})) > 0 {
			found = append(found, k)
		}
	}
	switch len(found) {
	case 0:
		return api.LoginKey{}, fault.NotFoundf("SSH key '%s' not found; 'vers key list --ssh' shows them", name)
	case 1:
		return found[0], nil
	}
	return api.LoginKey{}, fault.Invalidf("SSH key '%s' is ambiguous, %d keys match; name it by its id", name, len(found))
}
