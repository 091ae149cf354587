package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"vers/internal/build/engine/embedded/wire"
	"vers/internal/egress"
	"vers/internal/fault"
	"vers/internal/netstack"
)

// namespace is a network namespace with a thread in it. It ends with close, unless a process or a file keeps it.
type namespace struct {
	file *os.File
	jobs chan func()
}

func newNamespace() (*namespace, error) {
	n := &namespace{jobs: make(chan func())}
	ready := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.file, err = os.Open("/proc/thread-self/ns/net")
		}
		ready <- err
		for job := range n.jobs {
			job()
		}
	}()
	if err := <-ready; err != nil {
		close(n.jobs)
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	return n, nil
}

// do runs f in the namespace.
func (n *namespace) do(f func()) {
	done := make(chan struct{})
	n.jobs <- func() { defer close(done); f() }
	<-done
}

func (n *namespace) close() {
	close(n.jobs)
	_ = n.file.Close()
}

// network is a namespace with a network like a VM's: what can be reached is decided in user space by the egress policy,
// and the host has no address in it.
type network struct {
	space    *namespace
	stack    *netstack.Network
	tap      *netstack.Tap
	forwards []net.Listener
	conns    sync.WaitGroup
}

// newNetwork makes one. Registries are reached beyond the policy; those on the host's loopback, which is another one in
// the namespace, through forwarders there.
func newNetwork(dir string, may wire.Egress, registries []string) (_ *network, err error) {
	n := &network{}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	local, allowed, err := sortRegistries(registries)
	if err != nil {
		return nil, err
	}
	policy, err := egress.New(may.Mode, append(append([]string{}, may.Allow...), allowed...), may.Deny)
	if err != nil {
		return nil, err
	}
	levels, err := levelsOf(policy, may.Organisation, allowed)
	if err != nil {
		return nil, err
	}
	if n.space, err = newNamespace(); err != nil {
		return nil, err
	}
	if n.stack, err = netstack.New(context.Background(), netstack.Config{Dir: dir, Egress: levels}); err != nil {
		return nil, err
	}
	n.space.do(func() { n.tap, err = netstack.NewTap(dir) })
	if err != nil {
		return nil, fault.Unavailablef("builds need a network card of their own: %w; modprobe tun, or build without network", err)
	}
	for _, registry := range local {
		var listener net.Listener
		n.space.do(func() { listener, err = net.Listen("tcp", registry) })
		if err != nil {
			return nil, fmt.Errorf("make the registry %s reachable: %w", registry, err)
		}
		n.forwards = append(n.forwards, listener)
		n.conns.Go(func() { n.forward(listener, registry) })
	}
	return n, nil
}

// levelsOf puts the organisation's policy, which may be nil, under the server's. Registries are reached beyond both.
func levelsOf(server egress.Policy, organisation *egress.Policy, registries []string) (egress.Levels, error) {
	if organisation == nil {
		return egress.Stack(server, nil, nil), nil
	}
	reached, err := egress.New("", registries, nil)
	if err != nil {
		return nil, err
	}
	own := *organisation
	own.Allow = slices.Concat(own.Allow, reached.Allow)
	return egress.Stack(server, &own, nil), nil
}

// sortRegistries tells registries on the host's loopback from others, and makes rules for those.
func sortRegistries(registries []string) (local, allowed []string, err error) {
	for _, registry := range registries {
		host, port, err := net.SplitHostPort(registry)
		if err != nil {
			return nil, nil, fault.Invalidf("registry %q: %w; it is written host:port", registry, err)
		}
		addresses, err := net.LookupHost(host)
		if err != nil {
			continue // whoever uses it will hear
		}
		for _, text := range addresses {
			address, err := netip.ParseAddr(text)
			switch {
			case err != nil:
			case address.IsLoopback() && address.Is4():
				local = append(local, net.JoinHostPort(text, port))
			case address.Is4():
				allowed = append(allowed, net.JoinHostPort(text, port))
			}
		}
	}
	return local, allowed, nil
}

func (n *network) forward(listener net.Listener, registry string) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		n.conns.Go(func() {
			defer conn.Close()
			target, err := net.Dial("tcp", registry)
			if err != nil {
				return
			}
			defer target.Close()
			go func() {
				_, _ = io.Copy(target, conn)
				_ = target.(*net.TCPConn).CloseWrite()
			}()
			_, _ = io.Copy(conn, target)
		})
	}
}

func (n *network) close() {
	for _, listener := range n.forwards {
		_ = listener.Close()
	}
	if n.stack != nil {
		_ = n.stack.Close()
	}
	if n.tap != nil {
		_ = n.tap.Close()
	}
	if n.space != nil {
		n.space.close()
	}
	// Forwarded connections end with the process: their registry may take its time.
}
