// Package engine is what builds need of a container engine: a Dockerfile becomes an image, an image becomes a root file
// system, and commands run in a container made of an image. Engines are interchangeable; enginetest holds what all of
// them do, and [Capabilities] says in what they differ.
package engine

import (
	"context"
	"io"
	"time"
)

// Names of engines, as in configuration, command lines and build scripts.
const (
	Auto     = "auto"     // Docker's or Podman's where one is configured or answers, else Embedded
	Embedded = "embedded" // the program vers-builder, no daemon
	Docker   = "docker"
	Podman   = "podman"
)

// Engine builds images and runs containers. Its methods can be called from several goroutines. What a cancelled call
// started has ended, and nothing of it is left, when the call returns. Errors are of package fault: Invalid for what is
// wrong in the request (a Dockerfile, a reference), with the line where there is one; NotFound for an image that neither
// the store nor its registry has; Unavailable for an engine that does not answer; Timeout and Exhausted for limits. A
// step that ends with another code than 0 is a [StepError].
type Engine interface {
	// Name is one of the constants above but Auto.
	Name() string
	// Capabilities asks the engine what it can do. It is also the check that it answers.
	Capabilities(ctx context.Context) (Capabilities, error)
	// Build runs a Dockerfile.
	Build(ctx context.Context, b Build) (Image, error)
	// Resolve finds an image, and gets it from its registry as the policy says.
	Resolve(ctx context.Context, r Reference) (Image, error)
	// Load makes an image named name ("repository:tag") out of a root file system in a tar archive. Every spelling of the
	// name finds it then, in Resolve and in FROM: "x" is "docker.io/library/x:latest".
	Load(ctx context.Context, name string, rootfs io.Reader, config Config) (Image, error)
	// Export writes the whole root file system of an image as a tar archive (PAX; owners as numbers; extended attributes
	// as SCHILY.xattr records; hard links; devices), just as the engine has it: what it adds of its own, for example an
	// empty /etc/resolv.conf, is mended by who makes a machine of it.
	Export(ctx context.Context, image Image, w io.Writer) error
	// Start runs a container of an image with a process that only sleeps; the image's own is not started.
	Start(ctx context.Context, c Container) (Session, error)
	// Sweep removes what killed builds left behind: containers, mounts, temporary files. Images and caches stay.
	Sweep(ctx context.Context) error
	io.Closer
}

// Recaller is an engine that knows again what it has built.
type Recaller interface {
	// Recall gives the newest image that Build made of the same folder (Inputs; Context may be empty) in the same way,
	// without running or fetching anything. It is NotFound if nothing is known, if a name in the store stands for another
	// image since then, if a step added something that is not in the folder, and with PullAlways. Build gives the same,
	// unless NoCache is set.
	Recall(ctx context.Context, b Build) (Image, error)
}

// Capabilities of an engine on this host. Of what is false, a request that asks for it (Heredocs, CacheMount, NoNetwork,
// Limits) is refused with an error that says so, and the rest is in Notes. docs/builds.md has the same for people; the
// engines' tests compare it.
type Capabilities struct {
	Engine           string `json:"engine"`
	Version          string `json:"version"`
	Isolation        string `json:"isolation"` // runc, chroot, or a daemon's own
	Heredocs         bool   `json:"heredocs"`
	CacheMount       bool   `json:"cache_mount"`       // RUN --mount=type=cache
	FileCapabilities bool   `json:"file_capabilities"` // COPY --from keeps those of files
	OwnImages        bool   `json:"own_images"`        // every organisation has a store of its own
	NoNetwork        bool   `json:"no_network"`        // can keep steps off every network
	Egress           bool   `json:"egress"`            // steps reach what the server's egress policy permits, and nothing else
	Cancel           bool   `json:"cancel"`            // a cancelled step ends at once
	Memory           bool   `json:"memory"`            // memory of steps can be limited
	Limits           bool   `json:"limits"`            // so can processes and disk space of a build
	// Notes are known gaps, in whole sentences, for people.
	Notes []string `json:"notes,omitempty"`
}

// Notes of several engines.
const (
	NoDevices = "Steps cannot make devices (mknod)."
	NoSecrets = "Secrets and SSH agents (RUN --mount=type=secret, type=ssh) are given to no build."
)

// Build is one run of a Dockerfile.
type Build struct {
	Context    string // absolute path of the folder; .dockerignore in it is honoured
	Dockerfile string // path below Context
	Args       map[string]string
	Target     string // stage; "" the last
	Platform   string // os/arch; "" the host's
	NoCache    bool
	Pull       Pull
	Network    Network
	Limits     Limits
	// Inputs is the digest of what is in Context, whatever its times; "" nobody knows it. See [Recaller].
	Inputs string
	Log    io.Writer // output of the build and its steps, as it comes; may be nil
}

// Pull says when an image is asked for at its registry.
type Pull string

// Pull policies.
const (
	PullMissing Pull = "missing" // the default
	PullAlways  Pull = "always"
	PullNever   Pull = "never"
)

// Network says what steps reach.
type Network string

// Networks of steps. With the default they reach what VMs reach by the server's egress policy, and never the host's
// own services.
const (
	NetworkDefault Network = "default"
	NetworkNone    Network = "none"
)

// Limits bound all processes of one build or container together. Zero values are the engine's defaults.
type Limits struct {
	MemoryMiB int64
	Processes int64
	DiskMiB   int64 // written by one build
}

// Image is an image in an engine's store.
type Image struct {
	ID     string // the engine's own
	Digest string // of the manifest or configuration: equal digests are equal images
	Config Config
}

// Config is what an image says about how it is run, as in the OCI image specification.
type Config struct {
	Env          []string          `json:"env,omitempty"` // KEY=VALUE
	WorkingDir   string            `json:"working_dir,omitempty"`
	User         string            `json:"user,omitempty"` // user[:group], names or numbers
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	ExposedPorts []string          `json:"exposed_ports,omitempty"` // 8080/tcp
	Labels       map[string]string `json:"labels,omitempty"`
}

// Reference names an image: name:tag or name@digest.
type Reference struct {
	Name     string
	Platform string
	Pull     Pull
	// Username and Password are for the registry; both empty, the usual files are looked at.
	Username, Password string
}

// Container is what Start runs.
type Container struct {
	Image      Image
	Env        map[string]string
	Hostname   string
	Network    Network
	Privileged bool
	CapAdd     []string
	CapDrop    []string
	Runtime    string  // OCI runtime; "" the engine's
	Mounts     []Mount // only engines on this host
	Limits     Limits
}

// Mount makes a path of the host visible in a container.
type Mount struct {
	Source, Destination string // absolute
	ReadOnly            bool
}

// Session is a running container. Close ends and removes it, also after the context of Start is over.
type Session interface {
	// CopyIn unpacks a tar archive below / of the container.
	CopyIn(ctx context.Context, archive io.Reader) error
	// Exec runs a command to its end. Another code than 0 is not an error.
	Exec(ctx context.Context, c Command) (code int, err error)
	// Export writes the container's root file system as Engine.Export does.
	Export(ctx context.Context, w io.Writer) error
	io.Closer
}

// Command is one process in a container.
type Command struct {
	Args           []string
	Env            map[string]string // besides the image's and the container's
	Dir            string            // "" the image's
	User           string            // user[:group]; "" the image's
	Privileged     bool
	Timeout        time.Duration // 0 none
	Stdout, Stderr io.Writer     // may be nil
}
