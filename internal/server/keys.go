package server

import (
	"context"
	"net/http"

	"vers/api"
	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

func (s *Server) routeKeys() {
	add(s, operation{method: http.MethodPost, path: "/keys/validate", id: "validate-key",
		summary: "Check the API key", tag: "Account"}, s.validateKey)
	add(s, operation{method: http.MethodGet, path: "/keys", id: "list-keys",
		summary: "[ours] API keys of the organisation", tag: "Account"}, s.listKeys)
	add(s, operation{method: http.MethodPost, path: "/keys", status: http.StatusCreated, creates: true, id: "create-key",
		summary: "[ours] Make an API key; the answer alone holds it", tag: "Account"}, s.createKey)
	add(s, operation{method: http.MethodDelete, path: "/keys/{id}", status: http.StatusNoContent, id: "revoke-key",
		summary: "[ours] End the life of an API key, at once", tag: "Account"}, s.revokeKey)
	add(s, operation{method: http.MethodGet, path: "/orgs", id: "list-organisations",
		summary: "[ours] The own organisation; for an administrator all of them", tag: "Account"}, s.listOrganisations)
	add(s, operation{method: http.MethodGet, path: "/usage", id: "usage",
		summary: "[ours] What the organisation uses, and may use", tag: "Account"}, s.usage)
	add(s, operation{method: http.MethodGet, path: "/whoami", id: "whoami",
		summary: "[ours] Organisation and name of the API key", tag: "Account"}, s.whoami)
}

func (s *Server) validateKey(ctx context.Context, _ *none) (*output[api.KeyValidation], error) {
	return reply(api.KeyValidation{Valid: true, Message: "API key '" + callerKey(ctx).Name + "' is valid"}), nil
}

func (s *Server) whoami(ctx context.Context, _ *none) (*output[api.Whoami], error) {
	key := callerKey(ctx)
	org, err := s.Registry.Organisation(ctx, key.OrgID)
	if err != nil {
		return nil, err
	}
	return reply(api.Whoami{OrgID: org.ID, OrgName: org.Name, KeyID: key.ID, KeyName: key.Name, IsLocal: key.IsLocal,
		IsAdmin: administers(key), ExpiresAt: key.ExpiresAt}), nil
}

// administers reports whether a key may read what concerns the whole server. Who may open the local socket may.
func administers(key catalog.Key) bool { return key.IsAdmin || key.IsLocal }

func (s *Server) listOrganisations(ctx context.Context, _ *none) (*output[api.OrganisationList], error) {
	all, err := s.Registry.Organisations(ctx)
	if err != nil {
		return nil, err
	}
	key := callerKey(ctx)
	list := api.OrganisationList{Organisations: []api.Organisation{}}
	for _, org := range all {
		if org.ID == key.OrgID || administers(key) {
			list.Organisations = append(list.Organisations, api.Organisation{OrgID: org.ID, Name: org.Name, CreatedAt: org.CreatedAt.UTC()})
		}
	}
	return reply(list), nil
}

func (s *Server) usage(ctx context.Context, _ *none) (*output[api.Usage], error) {
	org, err := s.Registry.Organisation(ctx, orgOf(ctx))
	if err != nil {
		return nil, err
	}
	u, err := s.Machines.Usage(ctx, callerOf(ctx))
	if err != nil {
		return nil, err
	}
	answer := api.Usage{OrgID: org.ID, OrgName: org.Name,
		VMs: api.Amount{Used: u.VMs, Limit: u.Quotas.VMs}, VCPUs: api.Amount{Used: u.VCPUs, Limit: u.Quotas.VCPUs},
		MemoryMiB: api.Amount{Used: u.MemoryMiB, Limit: u.Quotas.MemoryMiB}, StorageBytes: api.Amount{Used: u.StoredBytes}}
	if u.Quotas.StorageMiB != nil {
		bytes := *u.Quotas.StorageMiB << 20
		answer.StorageBytes.Limit = &bytes
	}
	return reply(answer), nil
}

func showKey(key catalog.Key, org catalog.Organisation) api.Key {
	return api.Key{KeyID: key.ID, Name: key.Name, OrgName: org.Name, IsLocal: key.IsLocal, IsAdmin: administers(key), CreatedAt: key.CreatedAt.UTC(),
		ExpiresAt: key.ExpiresAt, RevokedAt: key.RevokedAt, LastUsedAt: key.LastUsedAt}
}

func (s *Server) listKeys(ctx context.Context, _ *none) (*output[api.KeyList], error) {
	org, err := s.Registry.Organisation(ctx, orgOf(ctx))
	if err != nil {
		return nil, err
	}
	keys, err := s.Registry.Keys(ctx, org.ID)
	if err != nil {
		return nil, err
	}
	list := api.KeyList{Keys: make([]api.Key, 0, len(keys))}
	for _, key := range keys {
		list.Keys = append(list.Keys, showKey(key, org))
	}
	return reply(list), nil
}

type createKeyInput struct{ Body api.KeyRequest }

func (s *Server) createKey(ctx context.Context, in *createKeyInput) (*output[api.KeyCreated], error) {
	org, err := s.Registry.Organisation(ctx, orgOf(ctx))
	if err != nil {
		return nil, err
	}
	key, text, err := s.Registry.CreateKeyBy(ctx, callerKey(ctx), in.Body.Name, in.Body.ExpiresAt)
	if err != nil {
		return nil, err
	}
	return reply(api.KeyCreated{Key: showKey(key, org), APIKey: text}), nil
}

// KeyInput names an API key.
type KeyInput struct {
	ID string `path:"id" doc:"Key id, a UUID"`
}

func (s *Server) revokeKey(ctx context.Context, in *KeyInput) (*none, error) {
	id, ok := ident.Parse(in.ID)
	if !ok {
		return nil, fault.Invalidf("key id %q is malformed: it must be a UUID", in.ID)
	}
	return nil, s.Registry.RevokeKey(ctx, orgOf(ctx), id)
}
