package api

import (
	"context"
	"net/http"
)

// shellAuthRoot is beside /api/v1. The original serves it on another host; this server on the same.
const shellAuthRoot = "api/shell-auth"

func (c *Client) shellAuth(ctx context.Context, path []string, body, out any) error {
	return c.do(ctx, call{method: http.MethodPost, root: shellAuthRoot, path: path, body: body}, out)
}

// ShellAuth asks to log in by e-mail and SSH key. It needs no API key, nor do the calls below.
func (c *Client) ShellAuth(ctx context.Context, req ShellAuthRequest) (ShellAuthStarted, error) {
	var out ShellAuthStarted
	return out, c.shellAuth(ctx, nil, req, &out)
}

// VerifyKey asks whether the request to log in was approved. Call it every 3 s while Verified is false; the request is
// gone when it fails with 404.
func (c *Client) VerifyKey(ctx context.Context, req VerifyKeyRequest) (VerifyKeyResult, error) {
	var out VerifyKeyResult
	return out, c.shellAuth(ctx, []string{"verify-key"}, req, &out)
}

// CreateShellKey makes an API key for a user whose request was approved.
func (c *Client) CreateShellKey(ctx context.Context, req ShellKeyRequest) (ShellKey, error) {
	var out ShellKey
	return out, c.shellAuth(ctx, []string{"api-keys"}, req, &out)
}

// VerifyPublicKey tells which users have an SSH key.
func (c *Client) VerifyPublicKey(ctx context.Context, req PublicKeyRequest) (PublicKeyResult, error) {
	var out PublicKeyResult
	return out, c.shellAuth(ctx, []string{"verify-public-key"}, req, &out)
}
