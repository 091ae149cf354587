package choice

import (
	"strings"
	"testing"

	"vers/internal/build/engine"
	"vers/internal/build/engine/embedded"
	"vers/internal/build/engine/enginetest"
	"vers/internal/fault"
)

// Who answers behind a socket is asked, not believed; Auto finds a Docker where $DOCKER_HOST says, if it may look (B33).
func TestOpenDaemon(t *testing.T) {
	socket, _ := enginetest.Daemon{Name: engine.Docker, Isolated: true}.Start(t)
	nowhere := embedded.Options{Dir: t.TempDir(), Program: "/nonexistent/vers-builder"}
	for name, o := range map[string]Options{
		"by name": {Engine: engine.Docker, Socket: socket}, "by address": {Engine: engine.Docker, Socket: "unix://" + socket}, "automatic": {Socket: socket},
	} {
		e, err := Open(t.Context(), o)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if c, err := e.Capabilities(t.Context()); err != nil || c.Engine != engine.Docker {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
		_ = e.Close()
	}
	if _, err := Open(t.Context(), Options{Engine: engine.Podman, Socket: socket}); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "answers docker, not podman") {
		t.Errorf("Podman wanted, Docker there: %v", err)
	}
	t.Setenv("DOCKER_HOST", "unix://"+socket)
	e, err := Open(t.Context(), Options{Look: true, Embedded: nowhere})
	if err != nil || e.Name() != engine.Docker {
		t.Fatalf("by $DOCKER_HOST: %v", err)
	}
	_ = e.Close()
	if _, err := Open(t.Context(), Options{Embedded: nowhere}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a server looks at $DOCKER_HOST: %v", err)
	}
}

func TestOpenErrors(t *testing.T) {
	if _, err := Open(t.Context(), Options{Engine: "rocket"}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "embedded") {
		t.Errorf("an engine that does not exist: %v", err)
	}
	o := Options{Embedded: embedded.Options{Dir: t.TempDir(), Program: "/nonexistent/vers-builder"}}
	if _, err := Open(t.Context(), o); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a program that is not there: %v", err)
	}
}
