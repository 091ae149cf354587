package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/local"
)

// Files of 'vers ssh-config --install', in the user's home.
const (
	sshConfigFile     = ".vers/ssh_config"
	sshKnownHostsFile = ".vers/ssh_known_hosts"
)

func (a *App) sshConfigCommand() *cobra.Command {
	var install bool
	cmd := &cobra.Command{
		Use: "ssh-config", Short: "Let 'ssh <vm>.vers' work, with scp, rsync, git and editors",
		Long: `Print a block for ~/.ssh/config. With it 'ssh dev.vers' reaches the VM that is called dev, and so do scp,
sftp, rsync, git and editors that work over SSH. No key is needed but the API key. VMs show host keys that
the server has signed, and that are verified.

--install writes the block to ~/.vers/ssh_config and lets ~/.ssh/config include it; nothing else in there
is changed.`,
		Example: "  vers ssh-config >> ~/.ssh/config\n  vers ssh-config --install && ssh dev.vers",
		Args:    arguments(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.sshConfig(cmd.Context(), install) },
	}
	cmd.Flags().BoolVar(&install, "install", false, "write the files instead of printing")
	return cmd
}

func (a *App) sshConfig(ctx context.Context, install bool) error {
	client, err := a.api()
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "asking for the gateway")
	defer cancel()
	g, err := client.Gateway(ctx)
	if err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	knownHosts := filepath.Join(a.Home, sshKnownHostsFile)
	if err := writeSSHFile(knownHosts, fmt.Sprintf("@cert-authority *%s,%s %s\n", sshSuffix, "gateway"+sshSuffix, g.SSHAuthority)); err != nil {
		return err
	}
	block := a.sshBlock(program, knownHosts, g)
	if !install {
		_, err := fmt.Fprint(a.Streams.Out, block)
		return err
	}
	if err := writeSSHFile(filepath.Join(a.Home, sshConfigFile), block); err != nil {
		return err
	}
	changed, err := includeFile(filepath.Join(a.Home, ".ssh", "config"), "Include ~/"+sshConfigFile)
	if err != nil {
		return err
	}
	if changed {
		a.say("✓ ~/.ssh/config includes ~/%s", sshConfigFile)()
	}
	a.say("✓ ssh <vm or alias>%s", sshSuffix)()
	return nil
}

// sshBlock is the configuration for all VMs at once: they come and go without it being written again.
func (a *App) sshBlock(program, knownHosts string, g api.Gateway) string {
	call := `"` + program + `"`
	if address, source, err := a.address(); err == nil && source != "~/.versrc" {
		call += " --url " + address
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Made by 'vers ssh-config': ssh <vm or alias>%s\n", sshSuffix)
	if host, port, err := net.SplitHostPort(g.SSHAddress); err == nil {
		fmt.Fprintf(&b, "# Without this, with a key of 'vers key add': ssh -p %s <vm or alias>@%s\n", port, host)
	}
	fmt.Fprintf(&b, "Host *%s\n", sshSuffix)
	for _, line := range []string{
		"User root",
		"ProxyCommand " + call + " ssh-proxy %n",
		"KnownHostsCommand " + call + " ssh-proxy --known-hosts %H",
		`UserKnownHostsFile "` + knownHosts + `"`,
		"StrictHostKeyChecking yes",
		"ServerAliveInterval 10",
		"ServerAliveCountMax 6",
	} {
		fmt.Fprintf(&b, "    %s\n", line)
	}
	return b.String()
}

// includeFile puts a line at the top of a file, above the first Host, which it would belong to otherwise.
func includeFile(path, line string) (changed bool, err error) {
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	for have := range strings.Lines(string(old)) {
		if strings.TrimSpace(have) == line {
			return false, nil
		}
	}
	return true, writeSSHFile(path, line+"\n\n"+string(old))
}

// writeSSHFile writes a file that ssh reads, for the user alone.
func writeSSHFile(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return local.WriteFile(path, []byte(text), 0o600)
}
