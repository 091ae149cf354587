package api

import "time"

// Whoami is the answer of GET /whoami [ours].
type Whoami struct {
	OrgID     string     `json:"org_id" format:"uuid"`
	OrgName   string     `json:"org_name"`
	KeyID     string     `json:"key_id"`
	KeyName   string     `json:"key_name"`
	IsLocal   bool       `json:"is_local,omitempty" doc:"The call came over the server's own socket, without a key"`
	IsAdmin   bool       `json:"is_admin,omitempty" doc:"The key may read what concerns the whole server, such as /metrics"`
	ExpiresAt *time.Time `json:"expires_at,omitempty" doc:"When the key ends; absent: never"`
}

// Key is an API key without its secret [ours].
type Key struct {
	KeyID      string     `json:"key_id" format:"uuid" doc:"Shown as owner_id of what the key makes"`
	Name       string     `json:"name"`
	OrgName    string     `json:"org_name"`
	IsLocal    bool       `json:"is_local,omitempty" doc:"Stands for calls over the server's own socket; has no secret"`
	IsAdmin    bool       `json:"is_admin,omitempty"`
	CreatedAt  time.Time  `json:"created_at"`
	ExpiresAt  *time.Time `json:"expires_at"`
	RevokedAt  *time.Time `json:"revoked_at"`
	LastUsedAt *time.Time `json:"last_used_at" doc:"To the minute; null: never"`
}

// KeyList is the answer of GET /keys [ours]: all keys of the organisation, oldest first.
type KeyList struct {
	Keys []Key `json:"keys" nullable:"false"`
}

// KeyRequest is the body of POST /keys [ours].
type KeyRequest struct {
	Name      string     `json:"name" doc:"1 to 128 printable characters"`
	ExpiresAt *time.Time `json:"expires_at,omitempty" nullable:"true" doc:"When the key ends. Absent: never, or with the key that makes it"`
}

// KeyCreated is the answer of POST /keys [ours]. APIKey is shown only here.
type KeyCreated struct {
	Key
	APIKey string `json:"api_key" doc:"The key itself; the server keeps only a hash of it"`
}

// KeyValidation is the answer of POST /keys/validate.
type KeyValidation struct {
	Valid   bool   `json:"valid"`
	Message string `json:"message"`
}

// Organisation is an organisation of the server [ours].
type Organisation struct {
	OrgID     string    `json:"org_id" format:"uuid"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
}

// OrganisationList is the answer of GET /orgs [ours]: the own organisation; for an administrator all of them.
type OrganisationList struct {
	Organisations []Organisation `json:"organisations" nullable:"false"`
}

// Amount is how much of something an organisation uses, and may use.
type Amount struct {
	Used  int64  `json:"used"`
	Limit *int64 `json:"limit" doc:"null: no limit"`
}

// Usage is the answer of GET /usage [ours]. VMs in every state but dead count, with all that they were given.
type Usage struct {
	OrgID        string `json:"org_id" format:"uuid"`
	OrgName      string `json:"org_name"`
	VMs          Amount `json:"vms"`
	VCPUs        Amount `json:"vcpus"`
	MemoryMiB    Amount `json:"memory_mib"`
	StorageBytes Amount `json:"storage_bytes" doc:"What commits take on disk, deleted ones too while others stand on them"`
}

// Domain sends the HTTP traffic for a host name to a VM.
type Domain struct {
	DomainID  string    `json:"domain_id" format:"uuid"`
	VMID      string    `json:"vm_id" format:"uuid"`
	Domain    string    `json:"domain"`
	Port      int       `json:"port" doc:"[ours] Port of the guest"`
	Public    bool      `json:"public" doc:"[ours] Open to everybody; otherwise an API key of the organisation or a signed link is needed"`
	CreatedAt time.Time `json:"created_at"`
}

// DomainRequest is the body of POST /domains.
type DomainRequest struct {
	VMID   string `json:"vm_id"`
	Domain string `json:"domain" doc:"Host name in lower case with at least one dot; international names in their xn-- form"`
	Port   int    `json:"port,omitempty" doc:"[ours] Port of the guest; 80 if left out"`
	Public bool   `json:"public,omitempty" doc:"[ours] Open to everybody"`
}

// DomainDeleted is the answer of DELETE /domains/{id}.
type DomainDeleted struct {
	DomainID string `json:"domain_id" format:"uuid"`
}
