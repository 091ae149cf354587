package conformance_test

import (
	"testing"

	"vers/test/conformance"
	"vers/test/rig"
)

func TestConformance(t *testing.T) {
	s := rig.New(t)
	conformance.Run(t, conformance.Target{URL: s.URL, Key: s.Key, OtherKey: s.OtherKey, Fake: true})
}
