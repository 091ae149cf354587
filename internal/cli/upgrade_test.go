package cli

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
)

// TestUpgrade replaces a copy of the real program by what a release server has.
func TestUpgrade(t *testing.T) {
	vers, err := exec.LookPath("vers") // testscript.Main put it there
	if err != nil {
		t.Fatal(err)
	}
	release := []byte("#!/bin/sh\necho I am the new one\n")
	right := fmt.Sprintf("%x  vers\n", sha256.Sum256(release))
	var sum atomic.Value // what the release server says
	sum.Store(strings.Repeat("0", 64))
	name := fmt.Sprintf("/v2.0.0/vers-%s-%s", runtime.GOOS, runtime.GOARCH)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, ok := map[string]string{"/latest": "v2.0.0\n", "/prerelease": "<html>", name: string(release), name + ".sha256": sum.Load().(string)}[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(body))
	}))
	defer server.Close()
	data, err := os.ReadFile(vers)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "vers")
	if err := os.WriteFile(program, data, 0o755); err != nil {
		t.Fatal(err)
	}
	run := func(wantCode int, args ...string) string {
		t.Helper()
		cmd := exec.Command(program, args...)
		cmd.Env = append(os.Environ(), "VERS_RELEASE_URL="+server.URL, "HOME="+t.TempDir())
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != wantCode {
			t.Fatalf("%v: exit code %d, want %d: %s", args, code, wantCode, out)
		}
		return string(out)
	}
	if out := run(0, "upgrade", "--check-only"); !strings.Contains(out, "vers v2.0.0 is there; this is 1.2.3-test") {
		t.Error(out)
	}
	if out := run(1, "upgrade", "--prerelease"); !strings.Contains(out, "no version") {
		t.Error(out)
	}
	if out := run(1, "upgrade"); !strings.Contains(out, "nothing was changed") {
		t.Error(out)
	}
	if out := run(0, "--version"); out != "1.2.3-test\n" {
		t.Errorf("a wrong checksum was taken: %s", out)
	}
	sum.Store(right)
	if out := run(0, "upgrade", "--json"); !strings.Contains(out, `"upgraded": true`) {
		t.Error(out)
	}
	if out := run(0); out != "I am the new one\n" {
		t.Errorf("the program is still the old one: %s", out)
	}
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(program), "*"))
	if len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}
