// Package enginetest is what every container engine must do, as tests. Its base images are made of Debian's
// busybox-static, so nothing is fetched from anywhere.
package enginetest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vers/internal/build/engine"
)

// Options say how an engine is tried.
type Options struct {
	// Open gives the engine, which may reach a registry at an address of the host's loopback, host:port. Its
	// capabilities say what is left out.
	Open func(t *testing.T, registry string) engine.Engine
	// AuthFile is where the engine looks for passwords of registries. The suite writes it.
	AuthFile string
	// Leftovers lists what belongs to builds and containers on this host: processes, mounts, containers. After every
	// test it must be what it was before.
	Leftovers func(t *testing.T) []string
}

// baseName is the image that tests start from.
const baseName = "vers-test/base:1"

// suite is one run of the tests.
type suite struct {
	Options
	Engine       engine.Engine
	registry     string
	capabilities engine.Capabilities
	base         engine.Image
}

// Run tries an engine.
func Run(t *testing.T, o Options) {
	s := &suite{Options: o, registry: serveRegistry(t)}
	s.Engine = o.Open(t, s.registry)
	var err error
	if s.capabilities, err = s.Engine.Capabilities(soon(t)); err != nil {
		t.Fatal(err)
	}
	if s.capabilities.Engine != s.Engine.Name() || s.capabilities.Version == "" {
		t.Errorf("capabilities: %+v", s.capabilities)
	}
	t.Run("Documented", s.documented)
	s.base, err = s.Engine.Load(soon(t), baseName, bytes.NewReader(Base(t)), engine.Config{
		Env: []string{"PATH=/bin", "BASE=yes"}, Cmd: []string{"/bin/sh"}, Labels: map[string]string{"made.by": "test"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"LoadResolveExport", s.loadResolveExport},
		{"Names", s.names},
		{"Config", s.config},
		{"Stages", s.stages},
		{"Language", s.language},
		{"Files", s.files},
		{"Cache", s.cache},
		{"Recall", s.recall},
		{"Failures", s.failures},
		{"Cancel", s.cancel},
		{"Memory", s.memory},
		{"Limits", s.limits},
		{"Refused", s.refused},
		{"Isolation", s.isolation},
		{"Registry", s.pulls},
		{"Session", s.session},
		{"SessionEnds", s.sessionEnds},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := s.leftovers(t)
			test.run(t)
			if after := s.leftovers(t); after != before {
				t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

func (s *suite) leftovers(t *testing.T) string {
	if s.Leftovers == nil {
		return ""
	}
	return strings.Join(s.Leftovers(t), "\n")
}

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// Base is a root file system of a shell with its tools, as a tar archive.
func Base(t *testing.T) []byte {
	t.Helper()
	const program = "/bin/busybox"
	busybox, err := os.ReadFile(program)
	if err != nil {
		t.Fatalf("%v: apt-get install busybox-static", err)
	}
	list, err := exec.Command(program, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(h tar.Header, content string) {
		h.Size, h.ModTime = int64(len(content)), time.Unix(1700000000, 0)
		if h.Typeflag == tar.TypeDir && h.Mode == 0 || h.Typeflag == tar.TypeReg && h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	for _, folder := range []string{"bin", "dev", "etc", "home", "home/user", "proc", "root", "sys", "var"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: folder}, "")
	}
	add(tar.Header{Typeflag: tar.TypeDir, Name: "tmp", Mode: 0o1777}, "")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox"}, string(busybox))
	for _, name := range strings.Fields(string(list)) {
		if name != "busybox" {
			add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox"}, "")
		}
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, "root:x:0:\nuser:x:1000:\nstaff:x:50:user\n")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// write makes the files of a build's context: path and content.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// run builds a Dockerfile and returns its log.
func (s *suite) run(ctx context.Context, t *testing.T, dockerfile string, change func(*engine.Build)) (engine.Image, string, error) {
	t.Helper()
	var log bytes.Buffer
	b := engine.Build{Context: write(t, map[string]string{"Dockerfile": dockerfile}), Pull: engine.PullNever, Log: &log}
	if !s.capabilities.NoNetwork {
		b.Network = engine.NetworkDefault
	}
	if change != nil {
		change(&b)
	}
	image, err := s.Engine.Build(ctx, b)
	return image, log.String(), err
}

// build is run where nothing may fail.
func (s *suite) build(t *testing.T, dockerfile string, change func(*engine.Build)) (engine.Image, string) {
	t.Helper()
	image, log, err := s.run(soon(t), t, dockerfile, change)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	return image, log
}

// entry is what an archive says about a file.
type entry struct {
	header  *tar.Header
	content string
}

// tree reads the archive of an image by clean names, "/" for the root.
func (s *suite) tree(t *testing.T, image engine.Image) map[string]entry {
	t.Helper()
	var buf bytes.Buffer
	if err := s.Engine.Export(soon(t), image, &buf); err != nil {
		t.Fatal(err)
	}
	return readTree(t, &buf)
}

func readTree(t *testing.T, r io.Reader) map[string]entry {
	t.Helper()
	tree := map[string]entry{}
	for archive := tar.NewReader(r); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return tree
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		tree[filepath.Join("/", header.Name)] = entry{header, string(content)}
	}
}

// expect compares the content of a file of a tree.
func expect(t *testing.T, tree map[string]entry, path, content string) {
	t.Helper()
	got, ok := tree[path]
	switch {
	case !ok:
		t.Errorf("%s is missing", path)
	case got.content != content:
		t.Errorf("%s holds %q, want %q", path, got.content, content)
	}
}

func absent(t *testing.T, tree map[string]entry, path string) {
	t.Helper()
	if _, ok := tree[path]; ok {
		t.Errorf("%s is there", path)
	}
}

// contains checks a message.
func contains(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(fmt.Sprint(err), part) {
			t.Errorf("error %q does not contain %q", err, part)
		}
	}
}
