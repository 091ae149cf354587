package server

import (
	"context"
	"net/http"

	"vers/api"
	"vers/internal/catalog"
	"vers/internal/registry"
)

// shellAuthPath is beside /api/v1: the original has it on another host. Clients take only 200 for success.
const shellAuthPath = "/api/shell-auth"

func (s *Server) routeShellAuth() {
	add(s, operation{method: http.MethodPost, path: shellAuthPath, root: true, public: true, id: "shell-auth", creates: true,
		summary: "Ask to log in by e-mail and SSH key", tag: "Login"}, s.shellAuth)
	add(s, operation{method: http.MethodPost, path: shellAuthPath + "/verify-key", root: true, public: true, id: "shell-auth-verify-key",
		summary: "Whether the request to log in was approved", tag: "Login"}, s.verifyKey)
	add(s, operation{method: http.MethodPost, path: shellAuthPath + "/api-keys", root: true, public: true, id: "shell-auth-api-keys", creates: true,
		summary: "Make an API key for an approved request, once", tag: "Login"}, s.shellKey)
	add(s, operation{method: http.MethodPost, path: shellAuthPath + "/verify-public-key", root: true, public: true, id: "shell-auth-verify-public-key",
		summary: "Which users have an SSH key", tag: "Login"}, s.verifyPublicKey)
}

// Requests without a key that one address may make in a minute. A client that waits asks 20 times.
const (
	loginStarts = 20
	loginCalls  = 600
)

type shellAuthInput struct{ Body api.ShellAuthRequest }

func (s *Server) shellAuth(ctx context.Context, in *shellAuthInput) (*output[api.ShellAuthStarted], error) {
	if err := s.limitLogin(ctx, "start", loginStarts); err != nil {
		return nil, err
	}
	b := in.Body
	login, err := s.Registry.StartLogin(ctx, s.loginOf(ctx, b.Email, b.SSHPublicKey, value(b.Body)))
	if err != nil {
		return nil, err
	}
	return reply(api.ShellAuthStarted{Success: true, UserID: login.UserID, Email: login.Email, IsNewUser: login.IsNewUser,
		Nonce: login.Nonce, SSHPublicKey: login.PublicKey, AlreadyVerified: login.Verified}), nil
}

// loginOf makes a request of the caller, and notes for the audit log who that says to be.
func (s *Server) loginOf(ctx context.Context, email, publicKey, note string) registry.LoginRequest {
	n := notesOf(ctx)
	n.actor = "e-mail " + registry.Printable(email, 254)
	return registry.LoginRequest{Email: email, PublicKey: publicKey, Note: note, Address: n.address}
}

func (s *Server) limitLogin(ctx context.Context, what string, perMinute int) error {
	address := notesOf(ctx).address
	if err := s.limits.take(what+" "+address, perMinute, s.now()); err != nil {
		return err
	}
	return s.limits.take("login "+address, loginCalls, s.now())
}

type verifyKeyInput struct{ Body api.VerifyKeyRequest }

func (s *Server) verifyKey(ctx context.Context, in *verifyKeyInput) (*output[api.VerifyKeyResult], error) {
	if err := s.limitLogin(ctx, "verify", loginCalls); err != nil {
		return nil, err
	}
	login, err := s.Registry.CheckLogin(ctx, s.loginOf(ctx, in.Body.Email, in.Body.SSHPublicKey, ""))
	if err != nil {
		return nil, err
	}
	result := api.VerifyKeyResult{Verified: login.Verified, IsActive: login.Verified, Orgs: []api.UserMembership{}}
	if !login.Verified {
		result.Reason = "the operator of this server has to approve it: versd approve " + login.Nonce
		return reply(result), nil
	}
	result.UserID, result.KeyID = login.UserID, login.KeyID
	for _, m := range login.Organisations {
		result.Orgs = append(result.Orgs, api.UserMembership{OrgID: m.OrgID, Name: m.OrgName, Role: m.Role})
	}
	return reply(result), nil
}

type shellKeyInput struct{ Body api.ShellKeyRequest }

func (s *Server) shellKey(ctx context.Context, in *shellKeyInput) (*output[api.ShellKey], error) {
	if err := s.limitLogin(ctx, "key", loginStarts); err != nil {
		return nil, err
	}
	b := in.Body
	key, text, org, err := s.Registry.FinishLogin(ctx, s.loginOf(ctx, b.Email, b.SSHPublicKey, ""), b.Label, value(b.OrgName))
	if err != nil {
		return nil, err
	}
	n := notesOf(ctx)
	n.org, n.orgName = org.ID, org.Name
	return reply(api.ShellKey{Success: true, APIKey: text, APIKeyID: key.ID, OrgID: org.ID, OrgName: org.Name}), nil
}

type publicKeyInput struct{ Body api.PublicKeyRequest }

func (s *Server) verifyPublicKey(ctx context.Context, in *publicKeyInput) (*output[api.PublicKeyResult], error) {
	if err := s.limitLogin(ctx, "lookup", loginStarts); err != nil {
		return nil, err
	}
	found, err := s.Registry.UsersWithKey(ctx, in.Body.SSHPublicKey)
	if err != nil {
		return nil, err
	}
	result := api.PublicKeyResult{Verified: true, Count: len(found), Matches: make([]api.PublicKeyMatch, 0, len(found))}
	for _, key := range found {
		result.Matches = append(result.Matches, showUserKey(key))
	}
	return reply(result), nil
}

func showUserKey(k catalog.UserKey) api.PublicKeyMatch {
	verified, seen := k.VerifiedAt.UTC(), k.LastSeenAt.UTC()
	return api.PublicKeyMatch{UserID: k.UserID, KeyID: k.ID, Email: k.Email, IsActive: true, PublicKeyVerified: true, VerifiedAt: &verified, LastSeenAt: &seen}
}
