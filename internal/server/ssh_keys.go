package server

import (
	"context"
	"net/http"

	"vers/api"
	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

func (s *Server) routeSSHKeys() {
	add(s, operation{method: http.MethodGet, path: "/ssh_keys", id: "list-ssh-keys",
		summary: "[ours] Public keys that log in to all VMs of the organisation", tag: "Access"}, s.listSSHKeys)
	add(s, operation{method: http.MethodPost, path: "/ssh_keys", status: http.StatusCreated, creates: true, id: "add-ssh-key",
		summary: "[ours] Let a public key log in to all VMs of the organisation, through the gateway", tag: "Access"}, s.addSSHKey)
	add(s, operation{method: http.MethodDelete, path: "/ssh_keys/{id}", status: http.StatusNoContent, id: "remove-ssh-key",
		summary: "[ours] Take that right from a public key; open sessions stay", tag: "Access"}, s.removeSSHKey)
}

func showSSHKey(k catalog.SSHKey) api.LoginKey {
	return api.LoginKey{KeyID: k.ID, Name: k.Name, Fingerprint: k.Fingerprint, PublicKey: k.PublicKey, CreatedAt: k.CreatedAt.UTC()}
}

func (s *Server) listSSHKeys(ctx context.Context, _ *none) (*output[api.LoginKeyList], error) {
	keys, err := s.Registry.SSHKeys(ctx, orgOf(ctx))
	if err != nil {
		return nil, err
	}
	list := api.LoginKeyList{Keys: make([]api.LoginKey, 0, len(keys))}
	for _, k := range keys {
		list.Keys = append(list.Keys, showSSHKey(k))
	}
	return reply(list), nil
}

type addSSHKeyInput struct{ Body api.LoginKeyRequest }

func (s *Server) addSSHKey(ctx context.Context, in *addSSHKeyInput) (*output[api.LoginKey], error) {
	k, err := s.Registry.AddSSHKey(ctx, callerKey(ctx), in.Body.Name, in.Body.PublicKey)
	if err != nil {
		return nil, err
	}
	return reply(showSSHKey(k)), nil
}

// SSHKeyInput names an SSH key.
type SSHKeyInput struct {
	ID string `path:"id" doc:"Key id, a UUID"`
}

func (s *Server) removeSSHKey(ctx context.Context, in *SSHKeyInput) (*none, error) {
	id, ok := ident.Parse(in.ID)
	if !ok {
		return nil, fault.Invalidf("SSH key id %q is malformed: it must be a UUID", in.ID)
	}
	return nil, s.Registry.RemoveSSHKey(ctx, orgOf(ctx), id)
}
