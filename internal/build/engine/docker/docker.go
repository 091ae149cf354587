// Package docker is the container engine of a daemon that speaks Docker's API: Docker's own, or Podman's. What of it the
// two do not do is in Capabilities, and in docs/builds.md.
package docker

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"vers/internal/build/engine"
	"vers/internal/fault"
)

// Options of New.
type Options struct {
	// Socket is a path, or an address as in $DOCKER_HOST.
	Socket string
	// Shared says that people who do not trust each other use the engine: bases are then asked for at their registries
	// for every build, so that nobody builds on what somebody else pulled with a password.
	Shared bool
	// AuthFile holds names and passwords of registries, as Docker writes it; it is read for every request. "" or missing:
	// none.
	AuthFile string
	Limits   engine.Limits // of builds and containers that have none of their own
}

// Engine implements engine.Engine.
type Engine struct {
	o       Options
	api     *client.Client
	podman  bool
	version string // of the engine
}

var _ engine.Engine = (*Engine)(nil)

// New connects, and asks who answers.
func New(ctx context.Context, o Options) (*Engine, error) {
	host := o.Socket
	if strings.HasPrefix(host, "/") {
		host = "unix://" + host
	}
	api, err := client.New(client.WithHost(host), client.WithUserAgent("vers"))
	if err != nil {
		return nil, fault.Invalidf("container engine at %s: %w", o.Socket, err)
	}
	e := &Engine{o: o, api: api}
	if err := e.identify(ctx); err != nil {
		_ = api.Close()
		return nil, err
	}
	return e, nil
}

func (e *Engine) identify(ctx context.Context) error {
	answer, err := e.api.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return fault.Unavailablef("no container engine answers at %s: %w", e.o.Socket, err)
	}
	e.version = answer.Version
	for _, component := range answer.Components {
		if component.Name == "Podman Engine" {
			e.podman, e.version = true, component.Version
		}
	}
	return nil
}

// Name is engine.Docker or engine.Podman, as the daemon says.
func (e *Engine) Name() string {
	if e.podman {
		return engine.Podman
	}
	return engine.Docker
}

// Close closes the connections.
func (e *Engine) Close() error { return e.api.Close() }

// major is the first number of the version, 0 if there is none.
func (e *Engine) major() int {
	first, _, _ := strings.Cut(e.version, ".")
	n, _ := strconv.Atoi(first)
	return n
}

// Capabilities asks the daemon who it is, which is also the check that it answers.
func (e *Engine) Capabilities(ctx context.Context) (engine.Capabilities, error) {
	if err := e.identify(ctx); err != nil {
		return engine.Capabilities{}, err
	}
	c := engine.Capabilities{Engine: e.Name(), Version: e.version, Isolation: e.Name()}
	note := func(text string) { c.Notes = append(c.Notes, text) }
	note("Steps of builds reach what containers of this engine reach, addresses of its host among them; the server's egress policy does not hold for them.")
	note("All organisations share this engine's images and its cache of steps.")
	note("Of the limits only that of memory holds for steps; there is none of processes or disk space.")
	note("Bases that are not here are asked for at their registries, also in builds that should not.")
	note("COPY --from loses the capabilities of files.")
	note(engine.NoSecrets)
	c.Memory = true
	if e.podman {
		c.Heredocs, c.CacheMount = e.major() >= 5, true
		note("A cancelled step runs on to its end, in the background.")
		note("Steps of builds cannot be kept off the network.")
		note(engine.NoDevices)
		if !c.Heredocs {
			note("Here-documents in Dockerfiles need Podman 5.")
		}
		return c, nil
	}
	c.NoNetwork, c.Cancel = true, true
	note("Here-documents and RUN --mount need BuildKit, which is not used: its protocol has no way to say which step failed.")
	return c, nil
}

// kindOf gives an error of the daemon its kind.
func kindOf(err error, format string, args ...any) error {
	args = append(args, err)
	format += ": %w"
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fault.New(fault.Timeout, format, args...)
	case errors.Is(err, context.Canceled):
		return err
	case errdefs.IsNotFound(err):
		return fault.NotFoundf(format, args...)
	case errdefs.IsInvalidArgument(err):
		return fault.Invalidf(format, args...)
	case client.IsErrConnectionFailed(err):
		return fault.Unavailablef(format, args...)
	}
	return fault.New(fault.Internal, format, args...)
}
