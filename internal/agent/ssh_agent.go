package agent

import (
	"net"
	"os"
	"path/filepath"
	"sync"
)

// agentDir holds the sockets of forwarded SSH agents, below the root. Only root comes in.
const agentDir = "/run/vers/ssh"

// forwardAgent makes a socket in the guest that leads to the client's SSH agent, until end is called.
func (c *sshConn) forwardAgent() (path string, end func(), err error) {
	parent := c.server.path(agentDir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp(parent, "")
	if err != nil {
		return "", nil, err
	}
	path = filepath.Join(dir, "agent")
	l, err := net.Listen("unix", path)
	if err != nil {
		_ = os.RemoveAll(dir)
		return "", nil, err
	}
	go c.accept(l, "auth-agent@openssh.com", func(net.Conn) []byte { return nil })
	return path, sync.OnceFunc(func() {
		_ = l.Close()
		_ = os.RemoveAll(dir)
	}), nil
}
