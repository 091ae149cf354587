package api

import (
	"context"
	"net/http"
	"net/url"
)

// Whoami says which organisation and key the calls are made for.
func (c *Client) Whoami(ctx context.Context) (Whoami, error) {
	var out Whoami
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"whoami"}}, &out)
}

// Usage says what the organisation uses, and what it may use.
func (c *Client) Usage(ctx context.Context) (Usage, error) {
	var out Usage
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"usage"}}, &out)
}

// ValidateKey checks the API key.
func (c *Client) ValidateKey(ctx context.Context) (KeyValidation, error) {
	var out KeyValidation
	return out, c.do(ctx, call{method: http.MethodPost, path: []string{"keys", "validate"}}, &out)
}

// Keys lists the API keys of the organisation, revoked ones too, oldest first.
func (c *Client) Keys(ctx context.Context) ([]Key, error) {
	var out KeyList
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"keys"}}, &out)
	return out.Keys, err
}

// CreateKey makes an API key of the organisation. The answer alone holds the key itself.
func (c *Client) CreateKey(ctx context.Context, req KeyRequest) (KeyCreated, error) {
	var out KeyCreated
	return out, c.do(ctx, call{method: http.MethodPost, path: []string{"keys"}, body: req}, &out)
}

// RevokeKey ends the life of an API key of the organisation.
func (c *Client) RevokeKey(ctx context.Context, keyID string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"keys", keyID}}, nil)
}

// Organisations lists the own organisation; for an administrator all of them.
func (c *Client) Organisations(ctx context.Context) ([]Organisation, error) {
	var out OrganisationList
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"orgs"}}, &out)
	return out.Organisations, err
}

// Domains lists the domains of the organisation, or those of one VM.
func (c *Client) Domains(ctx context.Context, vmID string) ([]Domain, error) {
	var out []Domain
	query := url.Values{}
	if vmID != "" {
		query.Set("vm_id", vmID)
	}
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"domains"}, query: query}, &out)
}

// Domain gives one domain.
func (c *Client) Domain(ctx context.Context, id string) (Domain, error) {
	var out Domain
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"domains", id}}, &out)
}

// CreateDomain gives a VM a host name. It ends with the VM.
func (c *Client) CreateDomain(ctx context.Context, req DomainRequest) (Domain, error) {
	var out Domain
	return out, c.do(ctx, call{method: http.MethodPost, path: []string{"domains"}, body: req}, &out)
}

// DeleteDomain takes a host name from its VM.
func (c *Client) DeleteDomain(ctx context.Context, id string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"domains", id}}, nil)
}

// Deploy makes a VM and begins to clone, install, build and run a repository in it. Project tells how that goes.
func (c *Client) Deploy(ctx context.Context, req DeployRequest) (Deployment, error) {
	var out Deployment
	return out, c.do(ctx, call{method: http.MethodPost, path: []string{"deploy"}, body: req}, &out)
}

// Projects lists the projects of the organisation, newest first.
func (c *Client) Projects(ctx context.Context) ([]Project, error) {
	var out ProjectList
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"deploy"}}, &out)
	return out.Projects, err
}

// Project gives one project.
func (c *Client) Project(ctx context.Context, id string) (Project, error) {
	var out Project
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"deploy", id}}, &out)
}

// DeleteProject forgets a project, so that its name is free; its VM runs on.
func (c *Client) DeleteProject(ctx context.Context, id string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"deploy", id}}, nil)
}
