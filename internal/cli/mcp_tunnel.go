package cli

import (
	"context"
	"slices"
	"sync"

	"golang.org/x/crypto/ssh"

	"vers/api"
	"vers/internal/cli/mcp"
	"vers/internal/cli/session"
	"vers/internal/fault"
)

// maxTunnels bounds what an agent can forget to close.
const maxTunnels = 64

// tunnels are those that are open. The zero value has none.
type tunnels struct {
	mu     sync.Mutex
	open   []openTunnel
	closed bool // the server ends
}

type openTunnel struct {
	*session.Tunnel
	info tunnelInfo
}

// tunnelInfo describes an open tunnel.
type tunnelInfo struct {
	VMID       string `json:"vm_id"`
	LocalHost  string `json:"local_host"`
	LocalPort  int    `json:"local_port"`
	RemoteHost string `json:"remote_host"`
	RemotePort int    `json:"remote_port"`
}

type tunnelInput struct {
	vmInput
	LocalPort  int    `json:"localPort,omitempty" jsonschema:"port on the machine of this server, at 127.0.0.1; 0 or left out: any free one"`
	RemotePort int    `json:"remotePort" jsonschema:"port in the VM"`
	RemoteHost string `json:"remoteHost,omitempty" jsonschema:"host as the VM sees it; 127.0.0.1 if left out"`
}

// tunnelCloseInput chooses tunnels.
type tunnelCloseInput struct {
	LocalPort int `json:"localPort,omitempty" jsonschema:"close the tunnel of this port only; all if left out"`
}

type tunnelCloseOutput struct {
	Closed []tunnelInfo `json:"closed"`
}

func (m *agentTools) addTunnelTools(s *mcp.Server) {
	mcp.Add(s, mcp.Tool{
		Name: "vers.tunnel", Title: "Reach a port of a VM", PerMinute: 10,
		Description: "Forwards a port of the machine that this server runs on to a port in a VM, until vers.tunnel.close or the end of this server.",
	}, m.tunnel)
	mcp.Add(s, mcp.Tool{
		Name: "vers.tunnel.close", Title: "Close tunnels", Idempotent: true,
		Description: "Closes all tunnels, or the one of a local port.",
	}, func(_ context.Context, _ *mcp.Call, in tunnelCloseInput) (tunnelCloseOutput, error) {
		closed := m.tunnels.close(in.LocalPort)
		if in.LocalPort != 0 && len(closed) == 0 {
			return tunnelCloseOutput{closed}, fault.NotFoundf("there is no tunnel from local port %d", in.LocalPort)
		}
		return tunnelCloseOutput{closed}, nil
	})
}

func (m *agentTools) tunnel(ctx context.Context, call *mcp.Call, in tunnelInput) (tunnelInfo, error) {
	out := tunnelInfo{LocalHost: "127.0.0.1", RemoteHost: in.RemoteHost, RemotePort: in.RemotePort}
	if out.RemoteHost == "" {
		out.RemoteHost = "127.0.0.1"
	}
	return filled(&out, m.with(call, func(a *App, client *api.Client) error {
		t, err := a.target(ctx, in.Target)
		if err != nil {
			return err
		}
		if err := a.wake(ctx, client, t); err != nil {
			return err
		}
		dial := func(ctx context.Context) (*ssh.Client, error) {
			conn, err := session.Dial(ctx, client, t.ID)
			return conn, t.missing(err)
		}
		opened, err := session.OpenTunnel(m.ctx, dial, in.LocalPort, out.RemoteHost, in.RemotePort, func(text string) {
			m.app.warn("%s", text)
		})
		if err != nil {
			return err
		}
		out.VMID, out.LocalPort = t.ID, opened.Port()
		return m.tunnels.add(openTunnel{opened, out})
	}))
}

// add remembers a tunnel, or closes it again.
func (t *tunnels) add(tunnel openTunnel) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		tunnel.Close()
		return fault.New(fault.Unavailable, "this server is ending")
	case len(t.open) >= maxTunnels:
		tunnel.Close()
		return fault.Conflictf("%d tunnels are open, which is the most that is possible; close some with vers.tunnel.close", maxTunnels)
	}
	t.open = append(t.open, tunnel)
	return nil
}

// close ends the tunnel of a local port, or all with port 0.
func (t *tunnels) close(port int) []tunnelInfo {
	t.mu.Lock()
	defer t.mu.Unlock()
	closed := []tunnelInfo{}
	t.open = slices.DeleteFunc(t.open, func(tunnel openTunnel) bool {
		if port != 0 && tunnel.info.LocalPort != port {
			return false
		}
		tunnel.Close()
		closed = append(closed, tunnel.info)
		return true
	})
	return closed
}

// closeAll ends all, and lets no new ones be.
func (t *tunnels) closeAll() {
	t.close(0)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for _, tunnel := range t.open { // opened in between
		tunnel.Close()
	}
}
