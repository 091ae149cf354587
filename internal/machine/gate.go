package machine

import (
	"context"
	"net"
	"sync"
	"time"

	"vers/internal/fault"
	"vers/internal/guest"
)

// The gate of a VM is where everybody passes who connects into its guest. It counts who is inside, which is what keeps a
// VM from falling asleep by itself, and it is shut while the VM falls asleep or sleeps: who comes then wakes it.
type gate struct {
	shut   bool
	inside int       // connections into the guest that are open
	used   time.Time // when the VM was last seen in use
}

// parts are what a VM has while its process runs; all nil while it sleeps.
type parts struct {
	instance Instance
	network  Network
	agent    *guest.Client // past the gate, for the manager's own calls
}

// live gives the parts to who does not hold op.
func (v *vm) live() parts {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.parts
}

// attach gives a VM the process and network that it has from now on. The caller holds op or is the only one who knows v.
func (m *Manager) attach(v *vm, instance Instance, network Network) {
	m.trafficMu.Lock()
	v.counted = false
	m.trafficMu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.parts = parts{instance: instance, network: network, agent: guest.New(network.DialAgent)}
	if v.guest == nil {
		v.guest = guest.New(func(ctx context.Context) (net.Conn, error) {
			return m.dial(ctx, v, func(n Network) (net.Conn, error) { return n.DialAgent(ctx) })
		})
	}
}

// detach takes them away. The caller holds op.
func (v *vm) detach() parts {
	v.mu.Lock()
	defer v.mu.Unlock()
	had := v.parts
	v.parts = parts{}
	return had
}

// setGate shuts or opens the gate. The caller holds op.
func (v *vm) setGate(shut bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.gate.shut, v.gate.used = shut, time.Now()
}

// touch notes that the VM is used.
func (v *vm) touch() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.gate.used = time.Now()
}

// enter lets a connection through the gate, and wakes the VM if it sleeps. leave is called when the connection ends.
func (m *Manager) enter(ctx context.Context, v *vm) (n Network, leave func(), err error) {
	for {
		v.mu.Lock()
		if !v.gate.shut {
			v.gate.inside++
			v.gate.used = time.Now()
			n := v.network
			v.mu.Unlock()
			leave := sync.OnceFunc(v.leave)
			if n == nil {
				leave()
				return nil, nil, fault.Unavailablef("VM '%s' has no network: it has not booted, is being deleted, or its process is gone", v.record.ID)
			}
			return n, leave, nil
		}
		v.mu.Unlock()
		if err := m.awake(ctx, v); err != nil {
			return nil, nil, err
		}
	}
}

func (v *vm) leave() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.gate.inside--
	v.gate.used = time.Now()
}

// dial connects into the guest through the gate.
func (m *Manager) dial(ctx context.Context, v *vm, connect func(Network) (net.Conn, error)) (net.Conn, error) {
	network, leave, err := m.enter(ctx, v)
	if err != nil {
		return nil, err
	}
	c, err := connect(network)
	if err != nil {
		leave()
		return nil, err
	}
	return &counted{Conn: c, leave: leave}, nil
}

// counted is a connection that says when it is closed.
type counted struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// CloseWrite tells the guest that nothing more comes.
func (c *counted) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// CloseRead gives up what the guest still sends.
func (c *counted) CloseRead() error {
	if half, ok := c.Conn.(interface{ CloseRead() error }); ok {
		return half.CloseRead()
	}
	return nil
}
