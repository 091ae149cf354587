package daemon

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"vers/internal/config"
	"vers/internal/gateway"
	"vers/internal/registry"
)

func (d *Daemon) openGateway(reg *registry.Registry) (*gateway.Gateway, error) {
	c := d.config.Gateway
	var acme *gateway.ACME
	if a := c.ACME; a.Agree {
		acme = &gateway.ACME{Directory: a.Directory, Email: a.Email, Root: a.Root, EAB: a.EAB, EABKey: a.EABKey,
			DNSServer: a.RFC2136Server, DNSKey: a.RFC2136Key, Resolvers: a.Resolvers}
	}
	return gateway.New(gateway.Options{
		Dir: filepath.Join(d.config.DataDir, "gateway"), Domain: c.Domain, APIHost: c.APIHost(), PrivateVMs: c.PrivateVMs,
		Certificate: c.Certificate, Key: c.Key, ACME: acme, Connections: c.Connections,
		Machines: d.manager, Registry: reg, Logger: d.log,
	})
}

// listenGateway opens the gateway's addresses. The functions serve them until the gateway is closed.
func (d *Daemon) listenGateway() (serve []func() error, err error) {
	var open []net.Listener
	defer func() {
		if err != nil {
			for _, l := range open {
				_ = l.Close()
			}
		}
	}()
	standard := config.DefaultServer().Gateway
	listen := func(key, address string) (net.Listener, error) {
		l, err := net.Listen("tcp", address)
		if errors.Is(err, unix.EADDRINUSE) && (key == "ssh" && address == standard.SSH || key == "listen" && address == standard.Listen) {
			// Another versd, most likely. Nobody has asked for just this address.
			d.log.Warn("somebody else listens there: VMs are not reached by this way", "gateway", key, "address", address)
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w; choose another address with `gateway.%s` in the configuration, or \"\" for none", address, err, key)
		}
		open = append(open, l)
		d.log.Info("listening", "gateway", key, "address", l.Addr())
		return l, nil
	}
	c := d.config.Gateway
	if c.SSH != "" {
		l, err := listen("ssh", c.SSH)
		if err != nil {
			return nil, err
		}
		if l != nil {
			serve = append(serve, d.gateway.SSH(l))
		}
	}
	if c.Listen == "" {
		return serve, nil
	}
	l, err := listen("listen", c.Listen)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return serve, nil
	}
	serve = append(serve, d.gateway.TLS(l, 0))
	host, _, err := net.SplitHostPort(c.Listen)
	for _, port := range c.Ports {
		l, listenErr := listen("ports", net.JoinHostPort(host, strconv.Itoa(port)))
		if err = errors.Join(err, listenErr); err != nil {
			return nil, err
		}
		serve = append(serve, d.gateway.TLS(l, uint16(port)))
	}
	return serve, err
}
