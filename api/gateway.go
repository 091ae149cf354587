package api

import "time"

// Gateway is the answer of GET /gateway [ours]: how VMs are reached from outside. Empty fields: not at all.
type Gateway struct {
	Domain        string `json:"domain" doc:"VMs are <id>.<domain>, their port 3000 is 3000-<id>.<domain>"`
	TLSAddress    string `json:"tls_address" doc:"Where TLS is listened for: SSH, HTTP, WebSocket"`
	SSHAddress    string `json:"ssh_address" doc:"Where SSH is listened for; the user name is the VM"`
	Ports         []int  `json:"ports" nullable:"false" doc:"TLS ports that lead to the guest's port of the same number"`
	APIHost       string `json:"api_host" doc:"Name that leads to the API at tls_address"`
	PrivateVMs    bool   `json:"private_vms" doc:"Whether the names of VMs need a key, as domains do"`
	SSHAuthority  string `json:"ssh_authority" doc:"Public key that signs the host keys of VMs and of the gateway, for @cert-authority lines"`
	Authority     string `json:"certificate_authority" doc:"Certificate that signs those of host names, PEM; empty if the names have certificates of a public authority"`
	ACMEDirectory string `json:"acme_directory" doc:"ACME server that certifies domains and the API's name; empty: none. While it has not, the certificate_authority does"`
}

// URLRequest is the body of POST /vm/{id}/url.
type URLRequest struct {
	Port      int    `json:"port,omitempty" doc:"Port of the guest; 80 if left out, or the domain's"`
	Domain    string `json:"domain,omitempty" doc:"One of the VM's domains; the VM's own name if left out"`
	ExpiresIn int64  `json:"expires_in_seconds,omitempty" doc:"How long the link opens a private name; a day if left out, 30 days at most"`
}

// URL is the answer of POST /vm/{id}/url [ours].
type URL struct {
	URL       string     `json:"url"`
	Private   bool       `json:"private" doc:"The URL holds a signed link: who has it gets in"`
	ExpiresAt *time.Time `json:"expires_at" doc:"End of the signed link; null without one"`
}

// LoginKey is an SSH key that logs in to all VMs of the organisation [ours].
type LoginKey struct {
	KeyID       string    `json:"key_id" format:"uuid"`
	Name        string    `json:"name"`
	Fingerprint string    `json:"fingerprint" doc:"SHA256:…"`
	PublicKey   string    `json:"ssh_public_key" doc:"One line in authorized_keys form"`
	CreatedAt   time.Time `json:"created_at"`
}

// LoginKeyList is the answer of GET /ssh_keys.
type LoginKeyList struct {
	Keys []LoginKey `json:"keys" nullable:"false"`
}

// LoginKeyRequest is the body of POST /ssh_keys.
type LoginKeyRequest struct {
	PublicKey string `json:"ssh_public_key" doc:"One line, as in ~/.ssh/id_ed25519.pub"`
	Name      string `json:"name,omitempty" doc:"The line's comment if left out"`
}
