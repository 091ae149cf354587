package api

import "time"

// ShellAuthRequest is the body of POST /api/shell-auth, which asks to log in by e-mail and SSH key.
type ShellAuthRequest struct {
	Email        string  `json:"email"`
	SSHPublicKey string  `json:"ssh_public_key" doc:"One line in authorized_keys form"`
	Body         *string `json:"body,omitempty" nullable:"true" doc:"Free text for the operator"`
}

// ShellAuthStarted is the answer of POST /api/shell-auth.
type ShellAuthStarted struct {
	Success         bool   `json:"success"`
	UserID          string `json:"user_id" format:"uuid"`
	Email           string `json:"email"`
	IsNewUser       bool   `json:"is_new_user"`
	Nonce           string `json:"nonce" doc:"Names the request: 'versd approve' shows it"`
	SSHPublicKey    string `json:"ssh_public_key"`
	AlreadyVerified bool   `json:"already_verified,omitempty" doc:"Nothing to wait for"`
}

// VerifyKeyRequest is the body of POST /api/shell-auth/verify-key.
type VerifyKeyRequest struct {
	Email        string `json:"email"`
	SSHPublicKey string `json:"ssh_public_key"`
}

// VerifyKeyResult is the answer of POST /api/shell-auth/verify-key. Ask again every 3 s while Verified is false.
type VerifyKeyResult struct {
	Verified bool             `json:"verified"`
	IsActive bool             `json:"is_active"`
	UserID   string           `json:"user_id,omitempty"`
	KeyID    string           `json:"key_id,omitempty"`
	Orgs     []UserMembership `json:"orgs" nullable:"false"`
	Reason   string           `json:"reason,omitempty" doc:"What is waited for"`
}

// UserMembership is an organisation that a user belongs to.
type UserMembership struct {
	OrgID string `json:"org_id" format:"uuid"`
	Name  string `json:"name"`
	Role  string `json:"role" doc:"owner or member"`
}

// ShellKeyRequest is the body of POST /api/shell-auth/api-keys.
type ShellKeyRequest struct {
	Email        string  `json:"email"`
	SSHPublicKey string  `json:"ssh_public_key"`
	Label        string  `json:"label" doc:"Name of the key, 5 characters at least"`
	OrgName      *string `json:"org_name,omitempty" nullable:"true" doc:"Needed if the user belongs to several"`
}

// ShellKey is the answer of POST /api/shell-auth/api-keys. APIKey is shown only here.
type ShellKey struct {
	Success  bool   `json:"success"`
	APIKey   string `json:"api_key"`
	APIKeyID string `json:"api_key_id" format:"uuid"`
	OrgID    string `json:"org_id" format:"uuid"`
	OrgName  string `json:"org_name"`
}

// PublicKeyRequest is the body of POST /api/shell-auth/verify-public-key.
type PublicKeyRequest struct {
	SSHPublicKey string `json:"ssh_public_key"`
}

// PublicKeyResult is the answer of POST /api/shell-auth/verify-public-key.
type PublicKeyResult struct {
	Verified bool             `json:"verified"`
	Count    int              `json:"count"`
	Matches  []PublicKeyMatch `json:"matches" nullable:"false"`
}

// PublicKeyMatch is a user who has a public key.
type PublicKeyMatch struct {
	UserID            string     `json:"user_id" format:"uuid"`
	KeyID             string     `json:"key_id" format:"uuid"`
	Email             string     `json:"email"`
	IsActive          bool       `json:"is_active"`
	PublicKeyVerified bool       `json:"public_key_verified"`
	VerifiedAt        *time.Time `json:"verified_at"`
	LastSeenAt        *time.Time `json:"last_seen_at"`
}
