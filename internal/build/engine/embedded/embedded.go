// Package embedded is the container engine that needs no daemon: the program vers-builder, one process for each build,
// each other request and each session, in namespaces of its own. What it does is in the module vers/builder; how the two
// talk is in package wire.
package embedded

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"vers/internal/build/engine"
	"vers/internal/build/engine/embedded/wire"
	"vers/internal/egress"
	"vers/internal/fault"
)

// Defaults of what one build or container may use.
const (
	DefaultMemoryMiB = 2048
	DefaultProcesses = 4096
	DefaultDiskMiB   = 20480
)

// Egress is what steps, pulls and ADD may reach, as in the server's configuration (docs/network.md).
type Egress = wire.Egress

// Options of New.
type Options struct {
	// Dir is the engine's folder, absolute. It needs a file system that overlay mounts work on.
	Dir string
	// Store is the name of the store below Dir: one for each organisation, since whoever can use a store can use all
	// images in it, also those that were pulled with somebody's password.
	Store string
	// Program is vers-builder's path. "": beside this program, or in PATH.
	Program string
	Egress  Egress
	// Organisation gives what the organisation may reach of that, at the beginning of each build; nil, or a nil policy: all.
	Organisation func() *egress.Policy
	// Registries are host:port of registries that are reached whatever Egress says, also on the host's loopback, by
	// pulls but not by steps. They may speak HTTP without TLS.
	Registries []string
	// AuthFile holds passwords of registries, as Docker and Podman write it. "" or missing: none.
	AuthFile string
	// Limits of builds and containers that have none of their own. Zero values are the defaults above.
	Limits engine.Limits
	// Runtime is the OCI runtime, a name in PATH or a path. "": runc.
	Runtime string
}

// Engine implements engine.Engine.
type Engine struct {
	o Options
}

var (
	_ engine.Engine   = (*Engine)(nil)
	_ engine.Recaller = (*Engine)(nil)
)

// New finds vers-builder. Nothing is started; Capabilities tells whether it works here.
func New(o Options) (*Engine, error) {
	if !filepath.IsAbs(o.Dir) {
		return nil, fault.New(fault.Internal, "the container engine's folder %q is not absolute", o.Dir)
	}
	program, err := FindProgram(o.Program)
	if err != nil {
		return nil, err
	}
	o.Program = program
	set := func(value *int64, preset int64) {
		if *value == 0 {
			*value = preset
		}
	}
	set(&o.Limits.MemoryMiB, DefaultMemoryMiB)
	set(&o.Limits.Processes, DefaultProcesses)
	set(&o.Limits.DiskMiB, DefaultDiskMiB)
	return &Engine{o: o}, nil
}

// Name is engine.Embedded.
func (e *Engine) Name() string { return engine.Embedded }

// Close does nothing: no process outlives its request or session.
func (e *Engine) Close() error { return nil }

// Capabilities asks vers-builder about this host.
func (e *Engine) Capabilities(ctx context.Context) (engine.Capabilities, error) {
	start := e.start()
	start.Probe = true
	verdict, err := e.control(ctx, start)
	if err != nil {
		return engine.Capabilities{}, err
	}
	host := verdict.Host
	if host == nil {
		return engine.Capabilities{}, fault.New(fault.Internal, "%s does not say what this host can do", e.o.Program)
	}
	if err := host.Err.Unpack(); err != nil {
		return engine.Capabilities{}, err
	}
	return engine.Capabilities{
		Engine: engine.Embedded, Version: host.EngineVersion, Isolation: host.RuntimeVersion,
		Heredocs: true, CacheMount: true, FileCapabilities: true, OwnImages: true, NoNetwork: true, Egress: true, Cancel: true,
		Memory: host.Limits, Limits: host.Limits, Notes: append([]string{engine.NoDevices, engine.NoSecrets}, host.Notes...),
	}, nil
}

// Sweep removes what killed builds left.
func (e *Engine) Sweep(ctx context.Context) error {
	start := e.start()
	start.Sweep = true
	_, err := e.control(ctx, start)
	return err
}

func (e *Engine) start() wire.Start {
	start := wire.Start{
		Version: wire.Version, Dir: e.o.Dir, Store: e.o.Store, Network: engine.NetworkDefault, Egress: e.o.Egress,
		Registries: e.o.Registries, Limits: e.o.Limits, Runtime: e.o.Runtime,
	}
	if e.o.Organisation != nil {
		start.Egress.Organisation = e.o.Organisation()
	}
	if e.o.AuthFile != "" {
		start.Auth, _ = os.ReadFile(e.o.AuthFile) // it need not be there
	}
	return start
}

// bound replaces the engine's limits by those that a request has.
func bound(start *wire.Start, l engine.Limits) {
	set := func(value *int64, own int64) {
		if own != 0 {
			*value = own
		}
	}
	set(&start.Limits.MemoryMiB, l.MemoryMiB)
	set(&start.Limits.Processes, l.Processes)
	set(&start.Limits.DiskMiB, l.DiskMiB)
}

// Build runs a Dockerfile.
func (e *Engine) Build(ctx context.Context, b engine.Build) (engine.Image, error) {
	if !filepath.IsAbs(b.Context) {
		return engine.Image{}, fault.New(fault.Internal, "the folder %q of a build is not absolute", b.Context)
	}
	start := e.start()
	start.Context = b.Context
	if b.Network != "" {
		start.Network = b.Network
	}
	bound(&start, b.Limits)
	return e.image(ctx, start, wire.Request{Build: packed(b)}, nil, sink{output: b.Log})
}

// Recall finds what an earlier Build made.
func (e *Engine) Recall(ctx context.Context, b engine.Build) (engine.Image, error) {
	return e.image(ctx, e.quiet(), wire.Request{Recall: packed(b)}, nil, sink{})
}

func packed(b engine.Build) *wire.Build {
	return &wire.Build{Dockerfile: b.Dockerfile, Args: b.Args, Target: b.Target, Platform: b.Platform, NoCache: b.NoCache, Pull: b.Pull,
		Network: b.Network, Inputs: b.Inputs}
}

// Resolve finds or pulls an image.
func (e *Engine) Resolve(ctx context.Context, r engine.Reference) (engine.Image, error) {
	return e.image(ctx, e.quiet(), wire.Request{Resolve: &r}, nil, sink{})
}

// Load makes an image of a tar archive.
func (e *Engine) Load(ctx context.Context, name string, rootfs io.Reader, config engine.Config) (engine.Image, error) {
	return e.image(ctx, e.quiet(), wire.Request{Load: &wire.Load{Name: name, Config: config}}, rootfs, sink{})
}

// Export writes an image's root file system.
func (e *Engine) Export(ctx context.Context, image engine.Image, w io.Writer) error {
	_, err := e.do(ctx, e.quiet(), wire.Request{Export: &image}, nil, sink{data: w})
	return err
}

// quiet is the start of requests that run nothing of a tenant's.
func (e *Engine) quiet() wire.Start {
	start := e.start()
	start.Network = engine.NetworkNone
	return start
}

func (e *Engine) image(ctx context.Context, start wire.Start, request wire.Request, body io.Reader, out sink) (engine.Image, error) {
	reply, err := e.do(ctx, start, request, body, out)
	if err != nil {
		return engine.Image{}, err
	}
	if reply.Image == nil {
		return engine.Image{}, fault.New(fault.Internal, "vers-builder answered without an image")
	}
	return *reply.Image, nil
}

// do makes one request to a process of its own.
func (e *Engine) do(ctx context.Context, start wire.Start, request wire.Request, body io.Reader, out sink) (wire.Reply, error) {
	p, err := e.launch(start)
	if err != nil {
		return wire.Reply{}, err
	}
	reply, err := p.ask(ctx, request, body, out)
	verdict := p.wait(ctx, err != nil)
	switch {
	case err != nil:
		return reply, p.explain(ctx, verdict, err)
	case reply.Err != nil:
		return reply, limited(reply.Err.Unpack(), verdict, start.Limits)
	}
	return reply, nil
}

// limited says of a step that failed at a limit why it failed.
func limited(err error, verdict wire.Verdict, limits engine.Limits) error {
	var step *engine.StepError
	switch {
	case !errors.As(err, &step):
		return err
	case verdict.Limit == wire.LimitMemory && step.Code == codeKilled:
		return fault.Exhaustedf("%w: it needed more than %d MiB of memory, the limit (memory_mib in [builder]), and was killed", step, limits.MemoryMiB)
	case verdict.Limit == wire.LimitProcesses:
		return fault.Exhaustedf("%w: it had %d processes, the limit (processes in [builder]), and could not start more", step, limits.Processes)
	}
	return err
}

// codeKilled is the code of a process that SIGKILL ended.
const codeKilled = 128 + 9
