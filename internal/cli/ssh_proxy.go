package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/fault"
)

// sshSuffix ends the names of VMs in the user's ssh_config, in any letter case.
const sshSuffix = ".vers"

func (a *App) sshProxyCommand() *cobra.Command {
	var knownHosts bool
	cmd := &cobra.Command{
		Use: "ssh-proxy <vm>" + sshSuffix, Short: "Join standard input and output with a VM's SSH server; ssh calls it", Hidden: true,
		Long: `ProxyCommand and KnownHostsCommand of the configuration that 'vers ssh-config' makes. A paused VM is resumed,
a booting one waited for. The API key stands for an SSH key.`,
		Example: "  ssh -o ProxyCommand='vers ssh-proxy %n' root@dev.vers",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if knownHosts {
				return a.printHostKey(cmd.Context(), args[0])
			}
			return a.sshProxy(cmd.Context(), args[0])
		},
	}
	cmd.Flags().BoolVar(&knownHosts, "known-hosts", false, "print the VM's host key as a line of known_hosts")
	return cmd
}

// sshTarget finds the VM that a host name means.
func (a *App) sshTarget(ctx context.Context, host string) (target, error) {
	name := host
	if i := len(name) - len(sshSuffix); i > 0 && strings.EqualFold(name[i:], sshSuffix) {
		name = name[:i]
	}
	t, err := a.target(ctx, name)
	if !fault.Is(err, fault.NotFound) {
		return t, err
	}
	if found, ok, findErr := a.foldedAlias(name); ok || findErr != nil {
		return found, findErr
	}
	if found, ok := a.labelled(ctx, name); ok {
		return found, nil
	}
	return t, err
}

// foldedAlias finds an alias in any letter case: ssh writes host names in lower case.
func (a *App) foldedAlias(name string) (target, bool, error) {
	all, err := a.aliases().All()
	if err != nil {
		return target{}, false, err
	}
	var found []string
	for alias := range all {
		if strings.EqualFold(alias, name) {
			found = append(found, alias)
		}
	}
	if len(found) != 1 {
		return target{}, false, nil
	}
	return a.localTarget(found[0])
}

// labelled finds a VM that has a name on the server.
func (a *App) labelled(ctx context.Context, name string) (target, bool) {
	client, err := a.api()
	if err != nil {
		return target{}, false
	}
	ctx, cancel := limit(ctx, listLimit, "listing the VMs")
	defer cancel()
	vms, err := client.VMs(ctx)
	if err != nil {
		return target{}, false
	}
	var found []string
	for _, vm := range vms {
		if vm.State != api.StateDead && strings.EqualFold(vm.Labels[api.AliasLabel], name) {
			found = append(found, vm.VMID)
		}
	}
	if len(found) != 1 {
		return target{}, false
	}
	return target{ID: found[0], Name: name}, true
}

func (a *App) sshProxy(ctx context.Context, host string) error {
	t, err := a.sshTarget(ctx, host)
	if err != nil {
		return err
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	if err := a.wake(ctx, client, t); err != nil {
		return err
	}
	conn, err := client.SSHWithoutKey(ctx, t.ID, host)
	if err != nil {
		return t.missing(err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	go func() {
		_, _ = io.Copy(conn, a.Streams.In)
		_ = conn.Close() // ssh has ended
	}()
	_, _ = io.Copy(a.Streams.Out, conn) // ssh says what an early end means
	return nil
}

func (a *App) printHostKey(ctx context.Context, host string) error {
	t, err := a.sshTarget(ctx, host)
	if err != nil {
		return err
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "asking for the host key")
	defer cancel()
	keys, err := client.SSHKey(ctx, t.ID)
	if err != nil {
		return t.missing(err)
	}
	_, err = fmt.Fprintf(a.Streams.Out, "%s %s\n", host, keys.HostKey)
	return err
}
