package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"vers/internal/cli/session"
	"vers/internal/fault"
)

type tunnelOptions struct {
	args       []string
	reverse    []string
	bind       string
	remoteBind string
	format     formatFlags
}

func (a *App) tunnelCommand() *cobra.Command {
	var o tunnelOptions
	cmd := &cobra.Command{
		Use: "tunnel [vm|alias] <spec>...", Short: "Forward ports to a VM, or from it",
		Long: `Forward ports of this machine to a VM (default: HEAD), or to a host as the VM sees it, until Ctrl-C. A spec
is local:remote or local:host:remote; local port 0 chooses a free one, which is told. As many specs as you
like go over one connection, with up to 256 connections at a time.

-R forwards the other way: the VM listens, and connections come to this machine (remote:local or
remote:host:local). Both listen on 127.0.0.1 unless --bind or --remote-bind says otherwise.

A paused VM is resumed at the start. When the connection breaks, because the server restarts or the VM is
paused, it is made again for as long as the VM exists.`,
		Example: `  vers tunnel 8080:80
  vers tunnel dev 8080:80 5432:5432
  vers tunnel dev 0:db.internal:5432
  vers tunnel dev -R 9000:3000`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 && len(o.reverse) == 0 || len(args) == 1 && !strings.Contains(args[0], ":") && len(o.reverse) == 0 {
				return usagef("no forwarding given; for example: vers tunnel 8080:80")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.args = args
			return a.tunnel(cmd.Context(), o)
		},
		ValidArgsFunction: a.completeVMs,
	}
	cmd.Flags().StringArrayVarP(&o.reverse, "reverse", "R", nil, "forward from the VM to this machine: remote:local or remote:host:local (repeatable)")
	cmd.Flags().StringVar(&o.bind, "bind", "127.0.0.1", "address of this machine to listen on; 0.0.0.0 lets others in")
	cmd.Flags().StringVar(&o.remoteBind, "remote-bind", "127.0.0.1", "address in the VM that -R listens on")
	o.format.addJSON(cmd)
	return cmd
}

// forwarded is the JSON output of tunnel, one for every spec.
type forwarded struct {
	tunnelInfo
	Reverse bool `json:"reverse"`
}

func (a *App) tunnel(ctx context.Context, o tunnelOptions) error {
	typed, wanted, err := o.forwardings()
	if err != nil {
		return err
	}
	mode, client, err := a.begin(o.format)
	if err != nil {
		return err
	}
	t, err := a.target(ctx, typed)
	if err != nil {
		return err
	}
	if t.IsHead {
		a.Streams.note("Using current HEAD VM: %s", t.ID)
	}
	if err := a.wake(ctx, client, t); err != nil {
		return err
	}
	notice := func(text string) { a.Streams.note("%s", text) }
	link, err := session.OpenLink(ctx, func(ctx context.Context) (*ssh.Client, error) {
		conn, err := session.Dial(ctx, client, t.ID)
		return conn, t.missing(err)
	}, notice)
	if err != nil {
		return interrupted(err)
	}
	defer link.Close()
	var list []forwarded
	for _, f := range wanted {
		opened, err := link.Forward(ctx, f, notice)
		if err != nil {
			return interrupted(err)
		}
		defer opened.Close()
		list = append(list, forwardedBy(t, opened.Forwarding))
	}
	if mode == modeJSON {
		if err := printJSON(a.Streams.Out, list); err != nil {
			return err
		}
	} else {
		for _, f := range list {
			fmt.Fprintln(a.Streams.Out, f)
		}
		a.Streams.note("Press Ctrl-C to stop.")
	}
	<-link.Done()
	return interrupted(link.Err())
}

// interrupted takes Ctrl-C for the orderly end that it is.
func interrupted(err error) error {
	var signalled *signalError
	if errors.As(err, &signalled) && signalled.signal == os.Interrupt {
		return nil
	}
	return err
}

func forwardedBy(t target, f session.Forwarding) forwarded {
	info := tunnelInfo{VMID: t.ID, LocalHost: f.ListenHost, LocalPort: f.ListenPort, RemoteHost: f.Host, RemotePort: f.Port}
	if f.Reverse {
		info = tunnelInfo{VMID: t.ID, LocalHost: f.Host, LocalPort: f.Port, RemoteHost: f.ListenHost, RemotePort: f.ListenPort}
	}
	return forwarded{info, f.Reverse}
}

func (f forwarded) String() string {
	local, remote := net.JoinHostPort(f.LocalHost, strconv.Itoa(f.LocalPort)), net.JoinHostPort(f.RemoteHost, strconv.Itoa(f.RemotePort))
	if f.Reverse {
		return fmt.Sprintf("Forwarding %s of VM %s -> %s", remote, f.VMID, local)
	}
	return fmt.Sprintf("Forwarding %s -> %s of VM %s", local, remote, f.VMID)
}

// forwardings reads the specs. The first argument is the VM if it is no spec.
func (o tunnelOptions) forwardings() (vm string, list []session.Forwarding, err error) {
	specs := o.args
	if len(specs) > 0 && !strings.Contains(specs[0], ":") {
		vm, specs = specs[0], specs[1:]
	}
	for _, text := range specs {
		f, err := parseForwarding(text, "local", "remote")
		if err != nil {
			return "", nil, err
		}
		f.ListenHost = o.bind
		list = append(list, f)
	}
	for _, text := range o.reverse {
		f, err := parseForwarding(text, "remote", "local")
		if err != nil {
			return "", nil, err
		}
		f.ListenHost, f.Reverse = o.remoteBind, true
		list = append(list, f)
	}
	for flag, address := range map[string]string{"--bind": o.bind, "--remote-bind": o.remoteBind} {
		if net.ParseIP(address) == nil {
			return "", nil, fault.Invalidf("%s is %q, which is no IP address", flag, address)
		}
	}
	return vm, list, nil
}

// parseForwarding reads listen:connect or listen:host:connect, where an IPv6 host stands in brackets.
func parseForwarding(text, listen, connect string) (session.Forwarding, error) {
	first, rest, ok := strings.Cut(text, ":")
	if !ok {
		return session.Forwarding{}, fault.Invalidf("invalid spec %q: use %s:%s or %s:host:%s", text, listen, connect, listen, connect)
	}
	var f session.Forwarding
	last := rest
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		host := rest[:i]
		last = rest[i+1:]
		inner, bracketed := strings.CutPrefix(host, "[")
		if bracketed {
			inner, bracketed = strings.CutSuffix(inner, "]")
		}
		if host == "" || !bracketed && strings.ContainsAny(host, ":[]") || bracketed && net.ParseIP(inner) == nil {
			return f, fault.Invalidf("invalid host %q in spec %q: a name, an IPv4 address, or an IPv6 address in brackets is expected", host, text)
		}
		if f.Host = host; bracketed {
			f.Host = inner
		}
	}
	var err error
	if f.ListenPort, err = parsePort(first, listen, text, 0); err != nil {
		return f, err
	}
	f.Port, err = parsePort(last, connect, text, 1)
	return f, err
}

func parsePort(typed, side, spec string, least int) (int, error) {
	port, err := strconv.Atoi(typed)
	if err != nil || port < least || port > 65535 {
		return 0, fault.Invalidf("invalid %s port %q in spec %q: a number from %d to 65535 is expected", side, typed, spec, least)
	}
	return port, nil
}
