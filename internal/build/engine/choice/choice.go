// Package choice opens the container engine that a configuration, a flag or a build script names.
package choice

import (
	"context"

	"vers/internal/build/engine"
	"vers/internal/build/engine/embedded"
	"vers/internal/fault"
)

// Options of Open.
type Options struct {
	Engine   string // engine.Auto or the name of one; "" is engine.Auto
	Embedded embedded.Options
}

// Open opens an engine that answers.
func Open(ctx context.Context, o Options) (engine.Engine, error) {
	switch o.Engine {
	case engine.Auto, engine.Embedded, "":
		return answering(ctx, func() (engine.Engine, error) { return embedded.New(o.Embedded) })
	}
	return nil, fault.Invalidf("there is no container engine %q; %s or %s is possible", o.Engine, engine.Auto, engine.Embedded)
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
