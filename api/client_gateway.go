package api

import (
	"context"
	"net/http"
)

// Gateway says how VMs are reached from outside.
func (c *Client) Gateway(ctx context.Context) (Gateway, error) {
	var out Gateway
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"gateway"}}, &out)
}

// URL gives the address of a port of a VM, with a signed link where one is needed.
func (c *Client) URL(ctx context.Context, vmID string, req URLRequest) (URL, error) {
	var out URL
	return out, c.do(ctx, call{method: http.MethodPost, path: []string{"vm", vmID, "url"}, body: req}, &out)
}

// SSHKeys lists the public keys that log in to all VMs of the organisation.
func (c *Client) SSHKeys(ctx context.Context) ([]LoginKey, error) {
	var out LoginKeyList
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"ssh_keys"}}, &out)
	return out.Keys, err
}

// AddSSHKey lets a public key log in to all VMs of the organisation.
func (c *Client) AddSSHKey(ctx context.Context, req LoginKeyRequest) (LoginKey, error) {
	var out LoginKey
	return out, c.do(ctx, call{method: http.MethodPost, path: []string{"ssh_keys"}, body: req}, &out)
}

// RemoveSSHKey ends what AddSSHKey began.
func (c *Client) RemoveSSHKey(ctx context.Context, keyID string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"ssh_keys", keyID}}, nil)
}
