package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// EnvVars gives the variables that new VMs get.
func (c *Client) EnvVars(ctx context.Context) (map[string]string, error) {
	var out EnvVars
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"env_vars"}}, &out)
	return out.Vars, err
}

// SetEnvVars adds or changes variables; with replace exactly vars remain. It returns the resulting set.
func (c *Client) SetEnvVars(ctx context.Context, vars map[string]string, replace bool) (map[string]string, error) {
	var out EnvVars
	r := call{method: http.MethodPut, path: []string{"env_vars"}, body: EnvVarsRequest{Vars: vars, Replace: replace}}
	err := c.do(ctx, r, &out)
	return out.Vars, err
}

// DeleteEnvVar removes a variable.
func (c *Client) DeleteEnvVar(ctx context.Context, key string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"env_vars", key}}, nil)
}

// Images lists the rootfs images that VMs can be started from.
func (c *Client) Images(ctx context.Context) ([]Image, error) {
	all := []Image{}
	for {
		var page ImageList
		query := url.Values{"limit": {"100"}, "offset": {strconv.Itoa(len(all))}}
		if err := c.do(ctx, call{method: http.MethodGet, path: []string{"images"}, query: query}, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Images...)
		if len(page.Images) == 0 || int64(len(all)) >= page.Total {
			return all, nil
		}
	}
}

// ServerVersion gives the version of the server. It needs no key.
func (c *Client) ServerVersion(ctx context.Context) (Version, error) {
	var out Version
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"system", "version"}}, &out)
}
