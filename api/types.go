package api

import "time"

// Headers of the API beyond the usual ones.
const (
	HeaderIdempotencyKey = "X-Idempotency-Key"   // repeated request: first answer again, for 24 h
	HeaderFolder         = "X-Vers-Folder"       // [ours] digest of the folder that is sent; see docs/builds.md
	HeaderImageConfig    = "X-Vers-Image-Config" // [ours] ImageConfig of an uploaded root file system, JSON in base64
	HeaderShouldRetry    = "X-Should-Retry"      // "false": the answer is final
	HeaderRequestID      = "X-Request-Id"        // [ours] names the request in the server's log
)

// UpgradeSSH is the protocol name of the upgraded connection at /api/v1/vm/{id}/ssh [ours]: after status 101 both
// sides exchange the raw bytes of an SSH session with the VM.
const UpgradeSSH = "vers-ssh"

// Error is the body of every answer with a status of 400 or more.
type Error struct {
	Error     string `json:"error" doc:"What went wrong, with which object, and what to do"`
	Success   bool   `json:"success" doc:"Always false"`
	RequestID string `json:"request_id,omitempty" doc:"[ours] Names the request in the server's log; only with status 500"`
}

// VMsError is the error body of the four calls under /vm/branch: an Error that reads as an empty NewVMs too.
type VMsError struct {
	Error
	VMs []VMRef `json:"vms" nullable:"false"`
}

// States of a VM in answers.
const (
	StateBooting  = "booting"
	StateRunning  = "running"
	StatePaused   = "paused"
	StateSleeping = "sleeping" // on disk only; woken by whoever needs it
	StateDead     = "dead"     // crashed or powered off
)

// VM is one virtual machine.
type VM struct {
	VMID      string            `json:"vm_id" format:"uuid"`
	OwnerID   string            `json:"owner_id" doc:"Id of the API key that made it"`
	CreatedAt time.Time         `json:"created_at"`
	State     string            `json:"state" doc:"booting, running, paused, sleeping or dead"`
	Labels    map[string]string `json:"labels"`
	Reason    string            `json:"reason,omitempty" doc:"[ours] Why the VM is dead"`
	Parent    *string           `json:"parent_commit_id,omitempty" doc:"[ours] Commit it was started from"`
	ExpiresAt *time.Time        `json:"expires_at,omitempty" nullable:"true" doc:"[ours] When it is deleted; absent: never"`
}

// VMMetadata is the answer of GET /vm/{id}/metadata.
type VMMetadata struct {
	VMID           string     `json:"vm_id" format:"uuid"`
	OwnerID        string     `json:"owner_id"`
	CreatedAt      time.Time  `json:"created_at"`
	State          string     `json:"state"`
	IP             string     `json:"ip" doc:"Address inside the VM's own network"`
	DeletedAt      *time.Time `json:"deleted_at" nullable:"true"`
	ParentCommitID *string    `json:"parent_commit_id" doc:"Commit the VM was started from"`
	GrandparentVM  *string    `json:"grandparent_vm_id" doc:"VM that commit was taken of"`

	// What follows is [ours].
	MemSizeMiB int64             `json:"mem_size_mib" doc:"[ours]"`
	VCPUCount  int64             `json:"vcpu_count" doc:"[ours]"`
	FSSizeMiB  int64             `json:"fs_size_mib" doc:"[ours]"`
	ImageName  string            `json:"image_name" doc:"[ours]"`
	KernelName string            `json:"kernel_name" doc:"[ours]"`
	Labels     map[string]string `json:"labels" doc:"[ours]"`
	Reason     string            `json:"reason,omitempty" doc:"[ours] Why the VM is dead"`
	Image      *ImageConfig      `json:"image,omitempty" doc:"[ours] What the image says about its processes"`
	Egress     string            `json:"egress,omitempty" doc:"[ours] The VM's own egress policy; missing: that of the organisation"`
	Internal   bool              `json:"internal,omitempty" doc:"[ours] Whether it takes part in the organisation's internal network"`
	Traffic    *Traffic          `json:"traffic,omitempty" doc:"[ours]"`
	MainExecID *string           `json:"main_exec_id,omitempty" nullable:"true" format:"uuid" doc:"[ours] Command that is the image's own process, if it was started"`

	SleepAfterSeconds int64      `json:"sleep_after_seconds" doc:"[ours] It falls asleep after so many seconds without use; 0 never"`
	SleptAt           *time.Time `json:"slept_at,omitempty" nullable:"true" doc:"[ours] When it fell asleep last"`
	WokenAt           *time.Time `json:"woken_at,omitempty" nullable:"true" doc:"[ours] When it woke last"`
	ExpiresAt         *time.Time `json:"expires_at,omitempty" nullable:"true" doc:"[ours] When it is deleted; absent: never"`
}

// Terms say how long a VM stays as it is. What is left out stays as it is; for a new VM that is the server's default, or its
// source's, and no end.
type Terms struct {
	SleepAfterSeconds *int64 `json:"sleep_after_seconds,omitempty" nullable:"true" doc:"[ours] Let it fall asleep after so many seconds without use; 0 never, else at least 10"`
	TTLSeconds        *int64 `json:"ttl_seconds,omitempty" nullable:"true" doc:"[ours] Delete it so many seconds from now; 0 never"`
}

// VMConfig is what a new VM is made of. What is left out gets the default.
type VMConfig struct {
	MemSizeMiB *int64            `json:"mem_size_mib,omitempty" nullable:"true" doc:"RAM in MiB, default 512"`
	VCPUCount  *int64            `json:"vcpu_count,omitempty" nullable:"true" doc:"Virtual CPUs, default 1"`
	FSSizeMiB  *int64            `json:"fs_size_mib,omitempty" nullable:"true" doc:"Root disk in MiB, default 1024"`
	ImageName  *string           `json:"image_name,omitempty" nullable:"true" doc:"Rootfs image, default \"default\""`
	KernelName *string           `json:"kernel_name,omitempty" nullable:"true" doc:"Kernel, default \"default.bin\""`
	Labels     map[string]string `json:"labels,omitempty" nullable:"true"`
}

// NewRootRequest is the body of POST /vm/new_root.
type NewRootRequest struct {
	VMConfig VMConfig          `json:"vm_config"`
	Env      map[string]string `json:"env,omitempty" nullable:"true" doc:"[ours] Variables for /etc/environment of this VM"`
	Cold     bool              `json:"cold,omitempty" doc:"[ours] Really boot, do not restore the state kept from an earlier boot"`
	NetworkOptions
	Terms
	Start bool `json:"start,omitempty" doc:"[ours] Start the image's own command (ENTRYPOINT, CMD) when the VM has booted; its output is in the VM's logs"`
}

// FromCommitRequest is the body of POST /vm/from_commit: exactly one of the first three fields.
type FromCommitRequest struct {
	CommitID *string `json:"commit_id,omitempty" nullable:"true" doc:"Commit to restore"`
	TagName  *string `json:"tag_name,omitempty" nullable:"true" doc:"Plain tag of the organisation"`
	Ref      *string `json:"ref,omitempty" nullable:"true" doc:"repo:tag of the own organisation"`
	NetworkOptions
	Terms
}

// NewVM is the answer of the calls that make one VM.
type NewVM struct {
	VMID     string `json:"vm_id" format:"uuid"`
	CommitID string `json:"commit_id,omitempty" doc:"[ours] Commit the VM was restored from"`
}

// VMRef names a VM.
type VMRef struct {
	VMID string `json:"vm_id" format:"uuid"`
}

// NewVMs is the answer of the branch calls.
type NewVMs struct {
	VMs      []VMRef `json:"vms" nullable:"false"`
	VMID     string  `json:"vm_id" format:"uuid" doc:"The first of vms, for older clients"`
	CommitID string  `json:"commit_id,omitempty" doc:"[ours] Commit the children started from"`
	Timing   *Timing `json:"timing,omitempty" doc:"[ours]"`
}

// Timing holds what a branch or commit took inside the server [ours].
type Timing struct {
	PausedMS  float64 `json:"paused_ms" doc:"How long the source VM stood still, in milliseconds"`
	DurableMS float64 `json:"durable_ms,omitempty" doc:"Until everything was on stable storage, in milliseconds; absent when not waited for"`
}

// AliasLabel is the label that gives a VM a name on the server [ours]: ssh NAME@gateway, NAME.vers.
const AliasLabel = "vers.alias"

// SSHKey is the answer of GET /vm/{id}/ssh_key.
type SSHKey struct {
	PrivateKey string `json:"ssh_private_key" doc:"OpenSSH private key that logs in as root"`
	Port       int    `json:"ssh_port" doc:"Informative"`
	HostKey    string `json:"ssh_host_key" doc:"[ours] Public host key of the guest, one line in authorized_keys form"`
}

// StateRequest is the body of PATCH /vm/{id}/state.
type StateRequest struct {
	State string `json:"state" doc:"Paused or Running, in any letter case"`
}

// DiskRequest is the body of PATCH /vm/{id}/disk.
type DiskRequest struct {
	FSSizeMiB int64 `json:"fs_size_mib" doc:"New size in MiB, above the present one"`
}

// LabelRequest is the body of PATCH /vm/{id}/label. It replaces all labels; null clears them.
type LabelRequest struct {
	Labels map[string]string `json:"labels" nullable:"true"`
}

// CommitRequest is the body of POST /vm/{id}/commit; it may be left out.
type CommitRequest struct {
	CommitID    *string `json:"commit_id,omitempty" nullable:"true" doc:"Id to use instead of a new one"`
	Name        *string `json:"name,omitempty" nullable:"true" doc:"Generated when missing"`
	Description *string `json:"description,omitempty" nullable:"true"`
}

// CommitCreated is the answer of POST /vm/{id}/commit.
type CommitCreated struct {
	CommitID         string  `json:"commit_id" format:"uuid"`
	HostArchitecture string  `json:"host_architecture" doc:"For older clients"`
	Name             string  `json:"name" doc:"[ours]"`
	Timing           *Timing `json:"timing,omitempty" doc:"[ours]"`
}

// CommitInfo is a commit in lists.
type CommitInfo struct {
	CommitID            string  `json:"commit_id" format:"uuid"`
	OwnerID             string  `json:"owner_id"`
	Name                string  `json:"name"`
	Description         *string `json:"description"`
	CreatedAt           string  `json:"created_at" format:"date-time"`
	IsPublic            bool    `json:"is_public"`
	ParentVMID          *string `json:"parent_vm_id" doc:"VM the commit was taken of"`
	GrandparentCommitID *string `json:"grandparent_commit_id" doc:"Commit that VM had been started from"`
}

// CommitEntity is a commit in its history: CommitInfo with another name for the id.
type CommitEntity struct {
	ID                  string  `json:"id" format:"uuid"`
	OwnerID             string  `json:"owner_id"`
	Name                string  `json:"name"`
	Description         *string `json:"description"`
	CreatedAt           string  `json:"created_at" format:"date-time"`
	IsPublic            bool    `json:"is_public"`
	ParentVMID          *string `json:"parent_vm_id" doc:"VM the commit was taken of"`
	GrandparentCommitID *string `json:"grandparent_commit_id" doc:"Commit that VM had been started from"`
}

// CommitList is a page of commits, newest first.
type CommitList struct {
	Commits []CommitInfo `json:"commits" nullable:"false"`
	Total   int64        `json:"total"`
	Limit   int64        `json:"limit"`
	Offset  int64        `json:"offset"`
}

// CommitUpdate is the body of PATCH /commits/{id}.
type CommitUpdate struct {
	IsPublic    bool           `json:"is_public"`
	Name        *string        `json:"name,omitempty" nullable:"true" doc:"Absent or null: keep"`
	Description OptionalString `json:"description,omitzero" doc:"Absent: keep. Null: clear"`
}

// Repository is a named collection of tags.
type Repository struct {
	RepoID      string    `json:"repo_id" format:"uuid"`
	Name        string    `json:"name"`
	Description *string   `json:"description"`
	IsPublic    bool      `json:"is_public"`
	CreatedAt   time.Time `json:"created_at"`
	OwnerOrg    string    `json:"owner_org" doc:"[ours] Name of the organisation"`
	TagCount    int64     `json:"tag_count" doc:"[ours]"`
}

// RepositoryList is the answer of GET /repositories.
type RepositoryList struct {
	Repositories []Repository `json:"repositories" nullable:"false"`
}

// RepositoryRequest is the body of POST /repositories.
type RepositoryRequest struct {
	Name        string  `json:"name" doc:"1 to 64 letters, digits, '-', '_' or '.'"`
	Description *string `json:"description,omitempty" nullable:"true"`
}

// RepositoryCreated is the answer of POST /repositories.
type RepositoryCreated struct {
	RepoID string `json:"repo_id" format:"uuid"`
	Name   string `json:"name"`
}

// VisibilityRequest is the body of PATCH /repositories/{name}/visibility.
type VisibilityRequest struct {
	IsPublic bool `json:"is_public"`
}

// RepoTag is a tag of a repository.
type RepoTag struct {
	TagID       string    `json:"tag_id" format:"uuid"`
	TagName     string    `json:"tag_name"`
	Reference   string    `json:"reference" doc:"repo:tag"`
	CommitID    string    `json:"commit_id" format:"uuid"`
	Description *string   `json:"description"`
	CreatedAt   time.Time `json:"created_at"`
	UpdatedAt   time.Time `json:"updated_at"`
	Protected   bool      `json:"protected" doc:"[ours] Only named API keys may move or delete it"`
}

// RepoTagList is the answer of GET /repositories/{name}/tags.
type RepoTagList struct {
	Repository string    `json:"repository"`
	Tags       []RepoTag `json:"tags" nullable:"false"`
}

// RepoTagRequest is the body of POST /repositories/{name}/tags.
type RepoTagRequest struct {
	TagName     string  `json:"tag_name" doc:"1 to 128 letters, digits, '-', '_' or '.'"`
	CommitID    string  `json:"commit_id"`
	Description *string `json:"description,omitempty" nullable:"true"`
}

// RepoTagCreated is the answer of POST /repositories/{name}/tags.
type RepoTagCreated struct {
	TagID     string `json:"tag_id" format:"uuid"`
	TagName   string `json:"tag_name" doc:"[ours]"`
	Reference string `json:"reference"`
	CommitID  string `json:"commit_id" format:"uuid"`
}

// RepoTagUpdate is the body of PATCH /repositories/{name}/tags/{tag}; commit, description or both.
type RepoTagUpdate struct {
	CommitID         *string        `json:"commit_id,omitempty" nullable:"true" doc:"Commit to move the tag to"`
	Description      OptionalString `json:"description,omitzero" doc:"Absent: keep. Null: clear"`
	ExpectedCommitID *string        `json:"expected_commit_id,omitempty" nullable:"true" doc:"[ours] The change is refused (409) if the tag points at another commit now"`
}

// EnvVars is the answer of GET and PUT /env_vars.
type EnvVars struct {
	Vars map[string]string `json:"vars"`
}

// EnvVarsRequest is the body of PUT /env_vars.
type EnvVarsRequest struct {
	Vars    map[string]string `json:"vars"`
	Replace bool              `json:"replace" required:"false" doc:"true: exactly vars remain. false: others stay"`
}

// Version is the answer of GET /system/version.
type Version struct {
	ExecutableName   string `json:"executable_name"`
	WorkspaceVersion string `json:"workspace_version"`
	GitHash          string `json:"git_hash"`
}

// Health is the answer of GET /health.
type Health struct {
	Status      string `json:"status"`
	Connections struct {
		SSH       int64 `json:"ssh"`
		HTTP      int64 `json:"http"`
		WebSocket int64 `json:"websocket"`
	} `json:"connections" doc:"Connections open now"`
}
