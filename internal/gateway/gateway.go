// Package gateway is the way to VMs for everybody's ordinary tools (spec/api.md section 4, docs/access.md):
//
//	listen   TLS; the server name says which VM. Inside: SSH, HTTP, WebSocket, or any other bytes
//	ports    TLS; the bytes go to the VM's port of the same number
//	ssh      SSH; the user name says which VM
//
// Nothing of it needs a port or an address of the host for a VM: connections into a guest are made in process. SSH ends
// here and goes on to the guest's agent, so that who may log in is decided by the server at that moment.
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"vers/internal/catalog"
	"vers/internal/machine"
)

// Machines is what the gateway needs of the machine manager. Dialling waits for a VM that boots.
type Machines interface {
	Find(ctx context.Context, vmID string) (machine.VM, error)
	Named(ctx context.Context, orgID, name string) (machine.VM, error)
	DialGuest(ctx context.Context, caller machine.Caller, vmID string, port uint16) (net.Conn, error)
	DialSSH(ctx context.Context, caller machine.Caller, vmID string) (net.Conn, error)
}

// Registry is what the gateway needs of the registry.
type Registry interface {
	Authenticate(ctx context.Context, apiKey string) (catalog.Key, error)
	SSHKeyOrganisations(ctx context.Context, key ssh.PublicKey) ([]string, error)
	DomainByName(ctx context.Context, name string) (catalog.Domain, error)
}

// Options of New.
type Options struct {
	Dir         string // where keys and certificates are kept
	Domain      string // VMs are <id>.<Domain>
	APIHost     string // name that leads to API; "" none
	API         http.Handler
	PrivateVMs  bool   // the names of VMs need the organisation's key too, as domains do
	Certificate string // files with a certificate that everybody trusts, and its key; "": our own authority
	Key         string
	ACME        *ACME // certificates that everybody trusts, for names that those files are not for; nil: none
	Connections int   // open at a time, from one address; 0: 1024
	Machines    Machines
	Registry    Registry
	Logger      *slog.Logger
}

// Gateway serves connections. Close it.
type Gateway struct {
	Options
	tls       *tls.Config
	authority *authority
	acme      *acmeNames // nil without
	ssh       *sshKeys
	links     links
	web       *http.Server
	webConns  *connQueue
	transport *http.Transport
	gate      *gate
	life      context.Context
	end       context.CancelFunc
	conns     sync.WaitGroup
	addresses Addresses
}

// Addresses are where a gateway is reached; "" or none: not at all.
type Addresses struct {
	TLS   string
	SSH   string
	Ports []int
}

// Limits of a connection that has not said yet what it wants.
const (
	handshakeLimit = 10 * time.Second
	loginLimit     = 30 * time.Second
	dialLimit      = 30 * time.Second
)

// New prepares a gateway. The first one of a directory makes its keys.
func New(o Options) (*Gateway, error) {
	if o.Connections == 0 {
		o.Connections = 1024
	}
	g := &Gateway{Options: o, gate: newGate(o.Connections), webConns: newConnQueue()}
	var err error
	if g.authority, err = openAuthority(o.Dir); err != nil {
		return nil, err
	}
	if g.ssh, err = openSSHKeys(filepath.Join(o.Dir, "ssh")); err != nil {
		return nil, err
	}
	if g.links, err = openLinks(filepath.Join(o.Dir, "link.key")); err != nil {
		return nil, err
	}
	g.life, g.end = context.WithCancel(context.Background())
	if o.ACME != nil {
		if g.acme, err = newACME(g, *o.ACME, filepath.Join(o.Dir, "acme")); err != nil {
			return nil, err
		}
	}
	if g.tls, err = g.newTLS(); err != nil {
		return nil, err
	}
	g.transport = g.newTransport()
	g.web = g.newWeb()
	g.conns.Go(func() { _ = g.web.Serve(g.webConns) })
	return g, nil
}

// TLS takes connections whose server name leads to a VM: serve returns when the listener or the gateway is closed. With
// port 0 the name, or else 80, says which port of the VM is meant, and SSH is possible.
func (g *Gateway) TLS(l net.Listener, port uint16) (serve func() error) {
	if port == 0 {
		g.addresses.TLS = l.Addr().String()
		if g.acme != nil {
			g.acme.start(l.Addr())
		}
	} else {
		g.addresses.Ports = append(g.addresses.Ports, int(port))
	}
	return func() error {
		return g.serve(l, func(conn net.Conn, admitted func()) { g.serveTLS(conn, port, admitted) })
	}
}

// SSH takes SSH connections whose user name is a VM, like TLS.
func (g *Gateway) SSH(l net.Listener) (serve func() error) {
	g.addresses.SSH = l.Addr().String()
	return func() error {
		return g.serve(l, func(conn net.Conn, admitted func()) { g.serveSSH(conn, nil, admitted) })
	}
}

// Addresses says where the gateway is reached. All listeners are there before it is asked.
func (g *Gateway) Addresses() Addresses { return g.addresses }

func (g *Gateway) serve(l net.Listener, serve func(conn net.Conn, admitted func())) error {
	stop := context.AfterFunc(g.life, func() { l.Close() })
	defer stop()
	for delay := time.Millisecond; ; {
		conn, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			// Out of descriptors, or a connection that broke at once: others may still come.
			g.Logger.Warn("the gateway cannot take a connection", "error", err)
			select {
			case <-g.life.Done():
				return nil
			case <-time.After(delay):
			}
			delay = min(2*delay, time.Second)
			continue
		}
		delay = time.Millisecond
		release, admitted, ok := g.gate.enter(conn.RemoteAddr())
		if !ok {
			_ = conn.Close()
			continue
		}
		g.conns.Go(func() {
			defer release()
			defer conn.Close()
			stop := context.AfterFunc(g.life, func() { conn.Close() })
			defer stop()
			serve(conn, admitted)
		})
	}
}

// Close ends all connections.
func (g *Gateway) Close() {
	g.end()
	_ = g.webConns.Close()
	_ = g.web.Close()
	g.conns.Wait()
	g.transport.CloseIdleConnections()
	if g.acme != nil {
		g.acme.close()
	}
}

// caller is on whose behalf a VM is reached once it is known that one may.
func caller(vm machine.VM) machine.Caller { return machine.Caller{OrgID: vm.OrgID, KeyID: vm.OwnerID} }
