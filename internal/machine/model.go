// Package machine is the domain: the life cycle of VMs, branch, commit and restore. It knows no HTTP and no QEMU flags.
package machine

import (
	"io"
	"time"

	"vers/internal/catalog"
)

// State of a VM as users see it (spec/api.md 1.10).
type State string

// The states.
const (
	StateCreating State = "creating" // not handed out yet, shown to nobody
	StateBooting  State = "booting"
	StateRunning  State = "running"
	StatePaused   State = "paused"
	StateSleeping State = "sleeping" // no process and no memory; woken by whoever needs it
	StateDead     State = "dead"     // crashed or powered off; Reason says why
)

// Caller is on whose behalf something is done.
type Caller struct {
	OrgID string
	KeyID string // becomes owner_id
}

// RunRequest asks for a new root VM. Zero sizes and empty names mean the defaults.
type RunRequest struct {
	Config   catalog.VMConfig
	Labels   map[string]string
	Network  NetworkRequest
	Env      map[string]string // extra variables for /etc/environment
	WaitBoot bool              // return only when commands can run
	Start    bool              // start the image's own command when the VM has booted
	Cold     bool              // really boot, do not use a template
	BuildID  string            // build that the VM is for: see builder.go
	Options  []Option
}

// BranchRequest asks for children of a running VM.
type BranchRequest struct {
	Count        int
	KeepPaused   bool
	SkipWaitBoot bool // a VM that is still booting is a conflict instead of waited for
	Network      NetworkRequest
	Options      []Option // of the children
}

// CommitRequest asks for a commit of a VM.
type CommitRequest struct {
	CommitID     string // "" generates one
	Name         string // "" generates one
	Description  *string
	KeepPaused   bool
	SkipWaitBoot bool

	Step    bool                 // the outcome of a build's step: internal, never listed, not counted against quotas
	Image   *catalog.ImageConfig // how VMs made of it are run, from now on; nil: as the VM is
	Publish Publish              // writes what goes with the commit, in the transaction that makes it visible; may be nil
}

// VM is a VM as the manager shows it.
type VM = catalog.VM

// Commit is a commit as the manager shows it.
type Commit = catalog.Commit

// Timing holds the separate numbers of one branch, commit or restore (design section 9).
type Timing struct {
	Paused  time.Duration // the source stood still
	Durable time.Duration // from the start until all files were on stable storage; 0 if not waited for
}

// Progress receives lines that say what long work is doing; nil is allowed where it is passed.
type Progress = io.Writer

// Defaults of a VM (vers.toml of seed 001).
var Defaults = catalog.VMConfig{
	MemSizeMiB: 512, VCPUCount: 1, FSSizeMiB: 1024, ImageName: "default", KernelName: "default.bin",
}
