package choice

import (
	"strings"
	"testing"

	"vers/internal/build/engine/embedded"
	"vers/internal/fault"
)

func TestOpenErrors(t *testing.T) {
	if _, err := Open(t.Context(), Options{Engine: "rocket"}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "embedded") {
		t.Errorf("an engine that does not exist: %v", err)
	}
	o := Options{Embedded: embedded.Options{Dir: t.TempDir(), Program: "/nonexistent/vers-builder"}}
	if _, err := Open(t.Context(), o); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a program that is not there: %v", err)
	}
}
