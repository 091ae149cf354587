package cli

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vers/api"
	"vers/internal/machine/machinetest"
	"vers/test/rig"
)

// folderOf is a context of just a Dockerfile.
func folderOf(t *testing.T, dockerfile string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.WriteHeader(&tar.Header{Name: "Dockerfile", Mode: 0o644, Size: int64(len(dockerfile))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, dockerfile); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestBuildEndsWithItsClient: a client that leaves while its step runs, or in the middle of its archive, leaves nothing.
func TestBuildEndsWithItsClient(t *testing.T) {
	s := rig.New(t)
	client, err := api.NewClient(s.URL, api.WithKey(s.Key))
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdle()
	gone := func(what string) {
		t.Helper()
		machinetest.Await(t, what, func() bool {
			vms, err := s.Manager.List(t.Context(), s.Acme)
			return err == nil && len(vms) == 0 && s.Driver.Running() == 0
		})
	}
	ctx, leave := context.WithCancelCause(t.Context())
	left := errors.New("enough")
	_, err = client.BuildCommit(ctx, api.CommitBuildOptions{}, bytes.NewReader(folderOf(t, "FROM scratch\nRUN echo begun; sleep 1000\n")), func(e api.CommitBuildEvent) {
		if e.Type == api.CommitBuildLog {
			leave(left)
		}
	})
	if !errors.Is(err, left) {
		t.Errorf("%v", err)
	}
	gone("the VM of a build whose client left is deleted")

	broken := errors.New("the disk broke")
	half := io.MultiReader(bytes.NewReader(folderOf(t, "FROM scratch\nRUN true\n"+strings.Repeat("# comment\n", 1000))[:700]), failing{broken})
	if _, err := client.BuildCommit(t.Context(), api.CommitBuildOptions{}, half, func(api.CommitBuildEvent) {}); err == nil {
		t.Error("half an archive was built")
	}
	gone("nothing is made of half an archive")

	// A connection that is cut does not look like a result.
	if _, err = client.BuildCommit(t.Context(), api.CommitBuildOptions{}, bytes.NewReader(folderOf(t, "FROM scratch\nRUN echo begun; sleep 1000\n")), func(e api.CommitBuildEvent) {
		if e.Type == api.CommitBuildLog {
			s.DropConnections()
		}
	}); !errors.Is(err, api.ErrBuildCut) {
		t.Errorf("%v", err)
	}
	gone("the VM of a build whose connection broke is deleted")
	if _, err := client.BuildCommit(t.Context(), api.CommitBuildOptions{}, strings.NewReader(strings.Repeat("no archive", 200)), func(api.CommitBuildEvent) {}); api.StatusOf(err) != 400 {
		t.Errorf("%v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestLeftOut: what is not sent, and what always is.
func TestLeftOut(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		".dockerignore":               "*.log\nnode_modules\nbuild\n.dockerignore\n",
		"x.Dockerfile.dockerignore":   "all\n!all/this\n",
		"bad.Dockerfile.dockerignore": "[",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		dockerfile, name string
		dir, out         bool
	}{
		{"Dockerfile", "a.log", false, true}, {"Dockerfile", "sub/a.log", false, false}, {"Dockerfile", "node_modules", true, true},
		{"Dockerfile", ".vers", true, true}, {"Dockerfile", "sub/.vers", true, false}, {"Dockerfile", ".env", false, false}, {"Dockerfile", ".dockerignore", false, false},
		{"build/Dockerfile", "build", true, false}, {"build/Dockerfile", "build/Dockerfile", false, false}, {"build/Dockerfile", "build/other", false, true},
		{"x.Dockerfile", "all", true, false}, {"x.Dockerfile", "all/this", false, false}, {"x.Dockerfile", "all/that", false, true}, {"x.Dockerfile", "a.log", false, false},
	} {
		skip, err := leftOut(dir, tt.dockerfile)
		if err != nil {
			t.Fatal(err)
		}
		if got := skip(tt.name, tt.dir); got != tt.out {
			t.Errorf("%s with %s: left out %v", tt.name, tt.dockerfile, got)
		}
	}
	if _, err := leftOut(dir, "bad.Dockerfile"); err == nil {
		t.Error("an ignore file that is no list of patterns")
	}
}
