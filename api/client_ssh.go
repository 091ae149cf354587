package api

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// SSH opens a connection to the SSH server of a VM, through the API connection: the caller speaks the SSH protocol
// on it, with the keys of SSHKey. ctx bounds the opening only.
func (c *Client) SSH(ctx context.Context, vmID string) (net.Conn, error) {
	return c.openSSH(ctx, vmID, nil)
}

// SSHWithoutKey is SSH for clients that are to need no key: the server asks for none, since this call has shown one. host is
// the name that the client knows the VM by, for the host certificate.
func (c *Client) SSHWithoutKey(ctx context.Context, vmID, host string) (net.Conn, error) {
	return c.openSSH(ctx, vmID, url.Values{"login": {"none"}, "host": {host}})
}

func (c *Client) openSSH(ctx context.Context, vmID string, query url.Values) (net.Conn, error) {
	header := http.Header{"Connection": {"Upgrade"}, "Upgrade": {UpgradeSSH}}
	resp, err := c.send(ctx, call{method: http.MethodPost, path: []string{"vm", vmID, "ssh"}, query: query, header: header})
	if err != nil {
		return nil, err
	}
	stream, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		resp.Body.Close()
		return nil, fmt.Errorf("the server at %s answered %s instead of opening an SSH connection; is a proxy in between that cannot upgrade connections?",
			c.address, resp.Status)
	}
	return &upgraded{ReadWriteCloser: stream, address: address(c.address)}, nil
}

// upgraded makes a net.Conn of the body of an upgraded response. Deadlines are not supported by net/http there; close
// the connection instead.
type upgraded struct {
	io.ReadWriteCloser
	address address
}

func (u *upgraded) LocalAddr() net.Addr              { return u.address }
func (u *upgraded) RemoteAddr() net.Addr             { return u.address }
func (u *upgraded) SetDeadline(time.Time) error      { return errNoDeadline }
func (u *upgraded) SetReadDeadline(time.Time) error  { return errNoDeadline }
func (u *upgraded) SetWriteDeadline(time.Time) error { return errNoDeadline }

var errNoDeadline = fmt.Errorf("deadlines on an upgraded connection: %w", http.ErrNotSupported)

// address is the server's address as a net.Addr.
type address string

func (a address) Network() string { return UpgradeSSH }
func (a address) String() string  { return string(a) }
