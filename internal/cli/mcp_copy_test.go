package cli

import (
	"os"
	"path/filepath"
	"testing"

	"vers/internal/cli/mcp"
)

// An agent copies both ways; what fails is told.
func TestAgentCopy(t *testing.T) {
	a := newAgent(t)
	call[runResult](a, "vers.run", nil)
	vm := t.TempDir()
	path := filepath.Join(a.app.Dir, "tree", "file")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	up := call[copyResult](a, "vers.copy", toolArguments{"source": "tree", "destination": ":" + vm + "/tree", "recursive": true})
	if up.Files != 1 || up.Folders != 1 || up.Bytes != 7 || up.Direction != "upload" {
		t.Errorf("%+v", up)
	}
	down := call[copyResult](a, "vers.copy", toolArguments{"source": ":" + vm + "/tree/file", "destination": "back/"})
	if data, err := os.ReadFile(filepath.Join(a.app.Dir, "back", "file")); err != nil || string(data) != "content" {
		t.Errorf("%q, %v; %+v", data, err, down)
	}
	a.fails(mcp.Invalid, "vers.copy", toolArguments{"source": "tree", "destination": ":" + vm + "/tree"})
	a.fails(mcp.Invalid, "vers.copy", toolArguments{"source": "tree", "destination": "tree2", "recursive": true})
	a.fails(mcp.Invalid, "vers.copy", toolArguments{"source": ":/a", "destination": ":/b"})
	a.fails(mcp.NotFound, "vers.copy", toolArguments{"source": ":" + vm + "/nosuch", "destination": "x"})
}
