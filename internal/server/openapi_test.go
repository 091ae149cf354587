package server

import (
	"flag"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write api/openapi.yaml anew")

//go:generate go test -run ^TestOpenAPI$ . -update

const openAPIFile = "../../api/openapi.yaml"

// The description that is checked in is the one the code gives.
func TestOpenAPI(t *testing.T) {
	got, err := New(Options{}).openAPI()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(openAPIFile, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(openAPIFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Fatalf("api/openapi.yaml differs from the code; run 'go generate ./internal/server' (-checked in, +code):\n%s", diff)
	}
}
