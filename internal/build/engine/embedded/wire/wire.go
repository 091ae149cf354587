// Package wire is what the embedded engine and its program vers-builder say to each other. One process serves one build,
// one other request, or one session:
//
//	fd 3 of the builder   the client writes one Start as a line of JSON and keeps the pipe open: when it ends, everything
//	                      that the builder started is killed. The supervisor reads it.
//	fd 4                  one Verdict as JSON, the last thing that the supervisor writes.
//	stdin, stdout         frames (Conn) to and from the worker, which does the work in namespaces of its own: one Request,
//	                      then one Reply; in a session, any number of them. Data of a request follows it, data of a reply
//	                      precedes it.
//	stderr                for people, when something goes wrong.
//
// Both ends are always of one version: Start carries it.
package wire

import (
	"time"

	"vers/internal/build/engine"
	"vers/internal/egress"
	"vers/internal/fault"
)

// Version of everything in this package. A builder refuses another one.
const Version = 2

// Start says in what surroundings the worker runs.
type Start struct {
	Version int
	// Sweep asks only to remove what killed builders left below Dir; nothing else is looked at.
	Sweep bool
	// Probe asks only for Verdict.Host.
	Probe bool
	Dir   string // the engine's folder, absolute
	Store string // name of one organisation's store below it
	// Context is a folder the worker sees, read-only; "" none.
	Context string
	// Mounts are paths of the host that the worker may mount into its container.
	Mounts []engine.Mount
	// Network of the steps. The worker's own, for pulls and ADD, follows Egress and reaches Registries.
	Network    engine.Network
	Egress     Egress
	Registries []string // host:port, reached whatever Egress says and without TLS if they speak plain HTTP
	Auth       []byte   // a Docker configuration file with credentials; may be empty
	Limits     engine.Limits
	Runtime    string // OCI runtime, name or path
}

// Egress is the server's policy as it is written in a configuration, and that of the organisation.
type Egress struct {
	Mode         string
	Allow        []string
	Deny         []string
	Organisation *egress.Policy `json:",omitempty"` // narrows it further; nil: it says nothing
}

// Verdict is how it ended, as the supervisor saw it.
type Verdict struct {
	Host *Host `json:",omitempty"` // if Start.Probe
	// Err is why the worker could not be started or was killed; empty after an end of its own.
	Err *Error `json:",omitempty"`
	// Limit is one that steps reached; a step that failed may have failed for it.
	Limit string `json:",omitempty"`
}

// Limits that the kernel enforces.
const (
	LimitMemory    = "memory"
	LimitProcesses = "processes"
)

// Host is what the host can do for builds.
type Host struct {
	EngineVersion           string
	Runtime, RuntimeVersion string   // path, and its own words
	Limits                  bool     // memory and processes can be limited
	Network                 bool     // steps can have a network
	Notes                   []string // for people
	Err                     *Error   `json:",omitempty"` // no builds at all
}

// Request is one thing to do. Exactly one field is set.
type Request struct {
	Build   *Build            `json:",omitempty"`
	Recall  *Build            `json:",omitempty"`
	Resolve *engine.Reference `json:",omitempty"`
	Load    *Load             `json:",omitempty"` // its tar archive follows
	Export  *engine.Image     `json:",omitempty"` // a tar archive precedes the reply
	Clean   *Clean            `json:",omitempty"`

	// In a session, which Open begins.
	Open      *Open `json:",omitempty"`
	CopyIn    *None `json:",omitempty"` // its tar archive follows
	Exec      *Exec `json:",omitempty"` // output precedes the reply
	Interrupt *None `json:",omitempty"` // ends the command that runs; has no reply of its own
	Snapshot  *None `json:",omitempty"` // a tar archive precedes the reply
	Close     *None `json:",omitempty"`
}

// None is a request without arguments.
type None struct{}

// Build is engine.Build without what Start says and what is no data. The log precedes the reply.
type Build struct {
	Dockerfile string
	Args       map[string]string
	Target     string
	Platform   string
	NoCache    bool
	Pull       engine.Pull
	Network    engine.Network // of the steps, as in Start
	Inputs     string
}

// Load names the image that the archive becomes.
type Load struct {
	Name   string
	Config engine.Config
}

// Clean removes the working containers of ended builders from the store.
type Clean struct{ IDs []string }

// Open starts the session's container.
type Open struct {
	Image      engine.Image
	Env        map[string]string
	Hostname   string
	Privileged bool
	CapAdd     []string
	CapDrop    []string
	Mounts     []engine.Mount
}

// Exec is engine.Command without its writers.
type Exec struct {
	Args       []string
	Env        map[string]string
	Dir, User  string
	Privileged bool
	Timeout    time.Duration
}

// Reply ends a request.
type Reply struct {
	Err   *Error        `json:",omitempty"`
	Image *engine.Image `json:",omitempty"`
	Code  int           `json:",omitempty"` // of Exec
}

// Error is an error that crosses the pipe: its kind, and its step if a step failed.
type Error struct {
	Kind    fault.Kind
	Message string
	Step    *engine.StepError `json:",omitempty"`
}

// Pack makes err fit to be sent; nil stays nil.
func Pack(err error) *Error {
	if err == nil {
		return nil
	}
	packed := &Error{Kind: fault.KindOf(err), Message: err.Error()}
	if step, ok := asStep(err); ok {
		packed.Step = step
	}
	return packed
}

// Unpack is the error again; nil stays nil.
func (e *Error) Unpack() error {
	switch {
	case e == nil:
		return nil
	case e.Step != nil:
		return e.Step
	}
	return fault.New(e.Kind, "%s", e.Message)
}
