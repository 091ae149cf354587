// Package choice opens the container engine that a configuration, a flag or a build script names.
package choice

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"vers/internal/build/engine"
	"vers/internal/build/engine/docker"
	"vers/internal/build/engine/embedded"
	"vers/internal/fault"
)

// Options of Open.
type Options struct {
	Engine string // engine.Auto or the name of one; "" is engine.Auto
	// Socket of Docker or Podman. "": where $DOCKER_HOST says, then the usual places.
	Socket string
	// Look lets Auto use a Docker or Podman that answers at a usual place. A server does not look: which engine all its
	// organisations share is for its operator to say.
	Look bool
	// Shared says that people who do not trust each other use the engine.
	Shared   bool
	Embedded embedded.Options
}

// Open opens an engine that answers. The error says for each one that was tried what it lacks.
func Open(ctx context.Context, o Options) (engine.Engine, error) {
	switch o.Engine {
	case engine.Embedded:
		return answering(ctx, func() (engine.Engine, error) { return embedded.New(o.Embedded) })
	case engine.Docker, engine.Podman:
		return connect(ctx, o, o.Engine, sockets(o.Socket, o.Engine))
	case engine.Auto, "":
		return auto(ctx, o)
	}
	return nil, fault.Invalidf("there is no container engine %q; %s, %s, %s or %s is possible", o.Engine, engine.Auto, engine.Embedded, engine.Docker, engine.Podman)
}

func auto(ctx context.Context, o Options) (engine.Engine, error) {
	if o.Socket != "" {
		return connect(ctx, o, "", []string{o.Socket})
	}
	var missing []error
	if o.Look {
		e, err := connect(ctx, o, "", sockets("", ""))
		if err == nil {
			return e, nil
		}
		missing = append(missing, err)
	}
	e, err := answering(ctx, func() (engine.Engine, error) { return embedded.New(o.Embedded) })
	if err == nil {
		return e, nil
	}
	if len(missing) == 0 {
		return nil, err
	}
	return nil, fault.Unavailablef("no container engine can be used here: %w", errors.Join(append(missing, err)...))
}

// answering opens an engine and asks it something.
func answering(ctx context.Context, open func() (engine.Engine, error)) (engine.Engine, error) {
	e, err := open()
	if err != nil {
		return nil, err
	}
	if _, err := e.Capabilities(ctx); err != nil {
		_ = e.Close()
		return nil, err
	}
	return e, nil
}

// connect opens the first socket behind which the engine answers; want "" takes both.
func connect(ctx context.Context, o Options, want string, sockets []string) (engine.Engine, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var errs []error
	for _, socket := range sockets {
		e, err := docker.New(ctx, docker.Options{Socket: socket, Shared: o.Shared, AuthFile: o.Embedded.AuthFile, Limits: o.Embedded.Limits})
		switch {
		case err != nil:
			errs = append(errs, err)
		case want != "" && e.Name() != want:
			_ = e.Close()
			errs = append(errs, fault.Unavailablef("behind %s answers %s, not %s", socket, e.Name(), want))
		default:
			return e, nil
		}
	}
	if len(errs) == 0 {
		return nil, fault.Unavailablef("neither Docker nor Podman has a socket here (%s)", strings.Join(usual(want), ", "))
	}
	return nil, fault.Unavailablef("no container engine answers: %w", errors.Join(errs...))
}

// sockets are those to try for an engine.
func sockets(socket, name string) []string {
	if socket != "" {
		return []string{socket}
	}
	if host := os.Getenv("DOCKER_HOST"); host != "" && name != engine.Podman {
		return []string{host}
	}
	var found []string
	for _, path := range usual(name) {
		if info, err := os.Stat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
			found = append(found, path)
		}
	}
	return found
}

func usual(name string) []string {
	runtime := os.Getenv("XDG_RUNTIME_DIR")
	var list []string
	if name != engine.Podman {
		list = append(list, "/var/run/docker.sock")
		if runtime != "" {
			list = append(list, filepath.Join(runtime, "docker.sock"))
		}
	}
	if name != engine.Docker {
		if runtime != "" {
			list = append(list, filepath.Join(runtime, "podman", "podman.sock"))
		}
		list = append(list, "/run/podman/podman.sock")
	}
	return list
}
