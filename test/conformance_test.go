package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vers/test/conformance"
)

// TestConformance goes through every operation of the API with real machines; package conformance does it with machines in
// memory.
func TestConformance(t *testing.T) {
	s := newServer(t, "[shell_auth]", `mode = "open"`)
	address, err := os.ReadFile(filepath.Join(s.data(), "address"))
	must(t, err)
	versd := bin + "/versd "
	configured := " --config " + s.config()
	key := func(org string) string {
		return strings.TrimSpace(sh(t, versd+"key create --name conformance --org "+org+configured+" --json | jq -r .api_key"))
	}
	sh(t, versd+"org create other"+configured)
	conformance.Run(t, conformance.Target{URL: "http://" + strings.TrimSpace(string(address)), Key: key("default"), OtherKey: key("other")})
}
