package embedded_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"vers/internal/build/engine"
	"vers/internal/build/engine/embedded"
	"vers/internal/build/engine/enginetest"
	"vers/internal/fault"
)

// A build that fetched its base is known again until the base is fetched anew and has become another one; another store
// knows nothing of it; and one whose images somebody removed builds again.
func TestRecall(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug))))
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	base := address + "/base:1"
	push := func(content string) {
		t.Helper()
		var layer bytes.Buffer
		w := tar.NewWriter(&layer)
		err := w.WriteHeader(&tar.Header{Name: "moved", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))})
		if err == nil {
			_, err = w.Write([]byte(content))
		}
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		enginetest.Push(t, server.URL, "base", "1", layer.Bytes())
	}
	push("1")
	o := embedded.Options{Program: program(t), Dir: t.TempDir(), Registries: []string{address}}
	e := open(t, o)
	dir := t.TempDir()
	for file, text := range map[string]string{"Dockerfile": "FROM " + base + "\nCOPY file /file\n", "file": "1"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	this := engine.Build{Context: dir, Inputs: "sha256:this"}
	build := func() engine.Image {
		t.Helper()
		var log bytes.Buffer
		b := this
		b.Log = &log
		image, err := e.Build(t.Context(), b)
		if err != nil {
			t.Fatalf("%v\n%s", err, log.String())
		}
		return image
	}
	first := build()
	known := func(why string, want engine.Image) {
		t.Helper()
		if image, err := e.Recall(t.Context(), this); err != nil || image.Digest != want.Digest {
			t.Errorf("%s: %+v, %v, want %s", why, image, err, want.Digest)
		}
	}
	known("built", first)
	o.Store = "other"
	if image, err := open(t, o).Recall(t.Context(), this); !fault.Is(err, fault.NotFound) {
		t.Errorf("another store: %+v, %v", image, err)
	}

	push("2")
	known("moved in its registry, which a build does not ask", first)
	if _, err := e.Resolve(t.Context(), engine.Reference{Name: base, Pull: engine.PullAlways}); err != nil {
		t.Fatal(err)
	}
	if image, err := e.Recall(t.Context(), this); !fault.Is(err, fault.NotFound) {
		t.Errorf("fetched anew: %+v, %v", image, err)
	}
	second := build()
	if second.Digest == first.Digest {
		t.Error("the same image on another base")
	}
	known("built on the new base", second)

	if err := os.RemoveAll(filepath.Join(o.Dir, "stores", "test")); err != nil {
		t.Fatal(err)
	}
	if image, err := e.Recall(t.Context(), this); !fault.Is(err, fault.NotFound) {
		t.Errorf("without images: %+v, %v", image, err)
	}
	known("built again", build())
}
