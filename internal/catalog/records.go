package catalog

import (
	"encoding/json"
	"time"

	"vers/internal/egress"
)

// VM is one row of the table vms.
type VM struct {
	ID            string
	OrgID         string
	OwnerID       string // id of the API key that made it
	State         string // machine.State
	Reason        string // why it is dead, or paused without being asked
	CreatedAt     time.Time
	Labels        map[string]string
	Config        VMConfig
	BootEnv       map[string]string // variables of its run request, until they are in the guest
	ParentCommit  string            // commit it was started from; "" for a root VM
	GrandparentVM string            // VM that commit was taken of
	MemoryBase    string            // commit whose flat file it maps, asleep: would map; "": anonymous memory
	LayerID       string            // its active layer
	UID           int
	Process       json.RawMessage // machine.Process
	Spec          json.RawMessage // machine.Spec
	SSHKey        string          // OpenSSH private key that logs in as root
	SSHHostKey    string          // OpenSSH private host key
	BuildID       string          // build that works in it and ends it; "" none
	SleepAfter    *int64          // seconds without use after which it sleeps; 0 never, nil as the server says
	ExpiresAt     *time.Time      // when it is deleted; nil never
	SleptAt       *time.Time      // when it fell asleep last; its MemoryBase is the image it sleeps in
	WokenAt       *time.Time      // when it had woken from that, its guest told; before SleptAt or nil: not yet
}

// VMConfig holds what the user asked for, and what the image says. Sizes in MiB. Commits carry it, so that VMs made of
// them are run like the first one.
type VMConfig struct {
	MemSizeMiB int64        `json:"mem_size_mib"`
	VCPUCount  int64        `json:"vcpu_count"`
	FSSizeMiB  int64        `json:"fs_size_mib"`
	ImageName  string       `json:"image_name"`
	KernelName string       `json:"kernel_name"`
	Image      *ImageConfig `json:"image,omitempty"`      // nil: it says nothing
	MainExec   string       `json:"main_exec,omitempty"`  // id of the command that is the image's own process; "" it was not started
	StartMain  bool         `json:"start_main,omitempty"` // to be started when the VM has booted

	Egress   *egress.Policy `json:"egress,omitempty"`   // the VM's own policy; nil: that of its organisation
	Internal bool           `json:"internal,omitempty"` // reaches other VMs of its organisation, and is reached by them
}

// Commit is one row of the table commits.
type Commit struct {
	ID           string
	OrgID        string
	OwnerID      string
	Name         string
	Description  *string
	IsPublic     bool
	CreatedAt    time.Time
	ParentVM     string
	ParentCommit string
	MemoryBase   string
	LayerID      string
	TemplateKey  string // "" unless it is an internal template
	Durable      bool
	Deleted      bool
	Manifest     json.RawMessage
}

// Layer is one row of the table layers: a qcow2 file.
type Layer struct {
	ID        string
	OrgID     string
	ParentID  string // "" directly on the image
	ImageFile string
	Frozen    bool
	CreatedAt time.Time
}

// Flat is one row of the table flats.
type Flat struct {
	CommitID string
	BootID   string
	Synced   bool
	UsedAt   time.Time
}

// Organisation is one row of the table organisations, without its quotas.
type Organisation struct {
	ID        string
	Name      string
	GID       int
	CreatedAt time.Time
}

// Quotas bound what an organisation uses at a time. In the catalogue nil is the server's default and Unlimited none;
// where they are enforced nil is none.
type Quotas struct {
	VMs        *int64
	VCPUs      *int64
	MemoryMiB  *int64
	StorageMiB *int64 // of commits and images
}

// Unlimited is a quota that bounds nothing.
const Unlimited = -1

// Key is one row of the table api_keys.
type Key struct {
	ID         string
	OrgID      string
	Name       string
	Hash       []byte
	IsLocal    bool   // the key that connections over the UNIX socket act as
	IsAdmin    bool   // may read what concerns the whole server
	UserID     string // user who got it by logging in; "" made otherwise
	CreatedAt  time.Time
	ExpiresAt  *time.Time
	RevokedAt  *time.Time
	LastUsedAt *time.Time // to the minute
}

// Repository is one row of the table repositories.
type Repository struct {
	ID          string
	OrgID       string
	Name        string
	Description *string
	IsPublic    bool
	CreatedAt   time.Time
	TagCount    int64 // counted when read, ignored when written
}

// RepositoryTag is one row of the table repository_tags.
type RepositoryTag struct {
	ID          string
	RepoID      string
	Name        string
	CommitID    string
	Description *string
	CreatedAt   time.Time
	UpdatedAt   time.Time
	Protected   bool // looked up when read (TagKeys), ignored when written
}

// PublicRepository is a repository that everybody may see.
type PublicRepository struct {
	Repository
	OrgName string
}

// PlainTag is one row of the table commit_tags.
type PlainTag struct {
	ID          string
	OrgID       string
	Name        string
	CommitID    string
	Description *string
	CreatedAt   time.Time
	UpdatedAt   time.Time
}

// TagEvent is one row of the table tag_events.
type TagEvent struct {
	ID          int64 // ascending; ignored when written
	RepoID      string
	TagName     string
	At          time.Time
	Action      string // create, move, rollback, delete
	FromCommit  string // "" the tag was made
	ToCommit    string // "" the tag was deleted
	KeyID       string
	KeyName     string
	Description *string
	Available   bool // ToCommit still exists; looked up when read
}

// Image is one row of the table images.
type Image struct {
	ID          string
	OrgID       string // "" everybody's
	OwnerID     string // key that made it; "" the server itself
	Name        string
	Description *string
	File        string
	Digest      string
	SizeMiB     int64
	SourceType  string          // dockerfile, docker, upload; debian: made by the server
	Source      string          // the Dockerfile's path, the image's reference
	Origin      string          // equal origins give equal files; "" not known
	Config      json.RawMessage // ImageConfig
	CreatedAt   time.Time
}

// ImageConfig is what an image says about how it is run, as in the OCI image specification.
type ImageConfig struct {
	Env          []string          `json:"env,omitempty"` // KEY=VALUE
	WorkingDir   string            `json:"working_dir,omitempty"`
	User         string            `json:"user,omitempty"` // user[:group], names or numbers
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	ExposedPorts []string          `json:"exposed_ports,omitempty"` // 8080/tcp
	Labels       map[string]string `json:"labels,omitempty"`
}

// ImageFile is one row of the table image_files.
type ImageFile struct {
	Name        string
	OrgID       string
	StoredBytes int64 // on disk
	CreatedAt   time.Time
}

// States of an ImageJob.
const (
	ImagePending  = "pending"
	ImageBuilding = "building"
	ImageReady    = "ready"
	ImageFailed   = "failed"
)

// ImageJob is one row of the table image_jobs.
type ImageJob struct {
	ID        string
	OrgID     string
	Name      string
	State     string
	Reason    string // why it failed
	CreatedAt time.Time
	EndedAt   *time.Time
}

// Answer is one row of the table idempotency: the first answer to a request, to be repeated.
type Answer struct {
	KeyID     string
	Request   string // method, path and idempotency key
	Digest    []byte // of query and body; a repeated key with another digest is a mistake of the client
	Status    int
	Body      []byte
	CreatedAt time.Time
}
