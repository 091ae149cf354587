package test

import (
	"testing"

	"vers/test/conformance"
)

// TestConformance goes through every operation of the API with real machines; package conformance does it with machines in
// memory.
func TestConformance(t *testing.T) {
	t.Parallel()
	s := newServer(t, "[shell_auth]", `mode = "open"`)
	sh(t, bin+"/versd org create other --config "+s.config())
	conformance.Run(t, conformance.Target{URL: s.url(t), Key: s.newKey(t, "default"), OtherKey: s.newKey(t, "other")})
}
