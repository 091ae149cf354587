package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/machine"
)

// Extensions of ssh.Permissions.
const (
	vmExtension  = "vers-vm"  // id of the VM that the login is for
	whyExtension = "vers-why" // the key is good, the VM's name is not
)

// SSHLabel with the value image hands a VM's SSH connections to the image's own server, on its port 22, as they come.
const (
	SSHLabel = "vers.ssh"
	imageSSH = "image"
	sshPort  = 22
)

var errLogin = errors.New("unknown user or key")

// serveSSH is the SSH server for one connection. vm is known from the name the connection was made to; without one the
// user name says which is meant.
func (g *Gateway) serveSSH(conn net.Conn, vm *machine.VM, admitted func()) {
	config := &ssh.ServerConfig{
		ServerVersion: "SSH-2.0-vers",
		MaxAuthTries:  10, // agents offer all keys they have
		PublicKeyCallback: func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			ctx, cancel := context.WithTimeout(g.life, loginLimit)
			defer cancel()
			return g.login(ctx, vm, meta.User(), key)
		},
	}
	g.converse(conn, vm, "", config, admitted)
}

// ServeTrusted is the SSH server for a connection whose client may reach the VM, which the caller has found out: it needs
// no key. host is the name that the client knows the VM by; a certificate that is not for it would be taken for an attack.
func (g *Gateway) ServeTrusted(conn net.Conn, vm machine.VM, host string) {
	config := &ssh.ServerConfig{
		ServerVersion: "SSH-2.0-vers", NoClientAuth: true,
		NoClientAuthCallback: func(ssh.ConnMetadata) (*ssh.Permissions, error) { return permit(vm), nil },
	}
	stop := context.AfterFunc(g.life, func() { conn.Close() })
	defer stop()
	g.converse(conn, &vm, host, config, func() {})
}

func permit(vm machine.VM) *ssh.Permissions {
	return &ssh.Permissions{Extensions: map[string]string{vmExtension: vm.ID}}
}

// login decides whether a key logs in to a VM as root: the VM's own key, or one of its organisation.
func (g *Gateway) login(ctx context.Context, vm *machine.VM, user string, key ssh.PublicKey) (*ssh.Permissions, error) {
	if vm != nil {
		if user != "root" && user != vm.ID {
			return nil, errLogin
		}
		return g.authorize(ctx, *vm, key)
	}
	if id, ok := ident.Parse(user); ok {
		vm, err := g.Machines.Find(ctx, id)
		if err != nil {
			return nil, errLogin
		}
		return g.authorize(ctx, vm, key)
	}
	orgs, err := g.Registry.SSHKeyOrganisations(ctx, key)
	if err != nil {
		return nil, err
	}
	if len(orgs) == 0 {
		return nil, errLogin
	}
	named, err := g.named(ctx, orgs, user)
	switch fault.KindOf(err) {
	case fault.NotFound, fault.Conflict:
		return &ssh.Permissions{Extensions: map[string]string{whyExtension: err.Error()}}, nil
	}
	if err != nil {
		return nil, err
	}
	return permit(named), nil
}

// named gives the VM that a name means for a key, which may be of several organisations.
func (g *Gateway) named(ctx context.Context, orgs []string, name string) (found machine.VM, err error) {
	none := fault.NotFoundf("no VM is called '%s'; 'vers alias set' and run --vm-alias give names, an id does too", name)
	for _, org := range orgs {
		vm, err := g.Machines.Named(ctx, org, name)
		switch {
		case fault.Is(err, fault.NotFound):
		case err != nil:
			return machine.VM{}, err
		case found.ID != "":
			return machine.VM{}, fault.Conflictf("'%s' is a VM of two organisations that this key is of; take an id: %s, %s", name, found.ID, vm.ID)
		default:
			found, none = vm, nil
		}
	}
	return found, none
}

func (g *Gateway) authorize(ctx context.Context, vm machine.VM, key ssh.PublicKey) (*ssh.Permissions, error) {
	own, err := ssh.ParsePrivateKey([]byte(vm.SSHKey))
	if err != nil {
		return nil, fmt.Errorf("key of VM %s: %w", vm.ID, err)
	}
	if string(own.PublicKey().Marshal()) == string(key.Marshal()) {
		return permit(vm), nil
	}
	orgs, err := g.Registry.SSHKeyOrganisations(ctx, key)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(orgs, vm.OrgID) {
		return nil, errLogin
	}
	return permit(vm), nil
}

// converse logs a client in and joins its session with the guest's SSH server.
func (g *Gateway) converse(conn net.Conn, vm *machine.VM, host string, config *ssh.ServerConfig, admitted func()) {
	signers, err := g.hostKeys(vm, host)
	if err != nil {
		g.Logger.Error("no SSH host key", "error", err)
		return
	}
	for _, s := range signers {
		config.AddHostKey(s)
	}
	// Not every connection knows deadlines.
	watch := time.AfterFunc(loginLimit, func() { conn.Close() })
	client, channels, requests, err := ssh.NewServerConn(conn, config)
	if !watch.Stop() && err == nil {
		err = errors.New("too slow")
	}
	if err != nil {
		g.Logger.Debug("no SSH login", "from", conn.RemoteAddr(), "error", err)
		return
	}
	admitted()
	defer client.Close()
	if why := client.Permissions.Extensions[whyExtension]; why != "" {
		tell(client, channels, requests, errors.New(why))
		return
	}
	guest, err := g.dialSSH(client.Permissions.Extensions[vmExtension])
	if err != nil {
		tell(client, channels, requests, err)
		return
	}
	defer guest.conn.Close()
	proxySSH(client, channels, requests, guest)
}

// sshSide is the guest's side of a session.
type sshSide struct {
	conn     ssh.Conn
	channels <-chan ssh.NewChannel
	requests <-chan *ssh.Request
}

// dialSSH logs in to the guest's SSH server. The connection comes from the agent itself, so nothing has to be proved on
// it; the host key is looked at all the same.
func (g *Gateway) dialSSH(vmID string) (sshSide, error) {
	ctx, cancel := context.WithTimeout(g.life, dialLimit)
	defer cancel()
	vm, err := g.Machines.Find(ctx, vmID)
	if err != nil {
		return sshSide{}, err
	}
	if vm.Labels[SSHLabel] == imageSSH {
		return sshSide{}, fault.Conflictf("VM '%s' is asked for its own SSH server (label %s=%s), which only its host name %s reaches; remove the label, or go through it",
			vmID, SSHLabel, imageSSH, g.VMHost(vmID, 0))
	}
	host, err := ssh.ParsePrivateKey([]byte(vm.SSHHostKey))
	if err != nil {
		return sshSide{}, err
	}
	login, err := ssh.ParsePrivateKey([]byte(vm.SSHKey))
	if err != nil {
		return sshSide{}, err
	}
	conn, err := g.Machines.DialSSH(ctx, caller(vm), vmID)
	if err != nil {
		return sshSide{}, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	side := sshSide{}
	config := &ssh.ClientConfig{User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(login)},
		HostKeyCallback: ssh.FixedHostKey(host.PublicKey()), HostKeyAlgorithms: []string{host.PublicKey().Type()}}
	if side.conn, side.channels, side.requests, err = ssh.NewClientConn(conn, vmID, config); err != nil {
		_ = conn.Close()
		return sshSide{}, fmt.Errorf("log in to VM %s: %w", vmID, err)
	}
	return side, nil
}

// tell says in the client's first session why there is none. SSH has no better place once a login was accepted.
func tell(client ssh.Conn, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request, why error) {
	go ssh.DiscardRequests(requests)
	watch := time.AfterFunc(loginLimit, func() { client.Close() })
	defer watch.Stop()
	for request := range channels {
		if request.ChannelType() != "session" {
			_ = request.Reject(ssh.ConnectionFailed, why.Error())
			continue
		}
		channel, reqs, err := request.Accept()
		if err != nil {
			return
		}
		for req := range reqs {
			begins := req.Type == "shell" || req.Type == "exec" || req.Type == "subsystem"
			_ = req.Reply(true, nil)
			if begins {
				_, _ = io.WriteString(channel.Stderr(), "vers: "+why.Error()+"\r\n")
				_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(&struct{ Status uint32 }{255}))
				_ = channel.Close()
				return
			}
		}
	}
}
