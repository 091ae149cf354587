package enginetest

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"vers/internal/build/engine"
	"vers/internal/fault"
)

// serveRegistry runs a registry that asks for a password, with one image, "private/app:1".
func serveRegistry(t *testing.T) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	inner := registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != "alice" || password != "right" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
			return
		}
		inner.ServeHTTP(w, r)
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	Push(t, "http://"+listener.Addr().String(), "private/app", "1", Base(t))
	return listener.Addr().String()
}

// Push puts an image of one layer into a registry.
func Push(t *testing.T, url, name, tag string, layer []byte) {
	t.Helper()
	digest := func(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }
	send := func(method, path, kind string, data []byte) {
		request, err := http.NewRequestWithContext(soon(t), method, url+path, bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		request.SetBasicAuth("alice", "right")
		request.Header.Set("Content-Type", kind)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusCreated {
			t.Fatalf("%s %s: %s", method, path, response.Status)
		}
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = w.Write(layer)
	_ = w.Close()
	config, _ := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{"Env": []string{"PATH=/bin"}, "Cmd": []string{"/bin/app"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digest(layer)}},
	})
	manifest, _ := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
		"config": map[string]any{"mediaType": "application/vnd.docker.container.image.v1+json", "size": len(config), "digest": digest(config)},
		"layers": []any{map[string]any{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": packed.Len(), "digest": digest(packed.Bytes())}},
	})
	for _, blob := range [][]byte{config, packed.Bytes()} {
		send(http.MethodPost, "/v2/"+name+"/blobs/uploads/?digest="+digest(blob), "application/octet-stream", blob)
	}
	send(http.MethodPut, "/v2/"+name+"/manifests/"+tag, "application/vnd.docker.distribution.manifest.v2+json", manifest)
}

// pulls from a registry that asks for a password.
func (s *suite) pulls(t *testing.T) {
	address := s.registry
	name := address + "/private/app:1"
	for _, test := range []struct {
		name      string
		reference engine.Reference
		kind      fault.Kind
	}{
		{"never", engine.Reference{Name: name, Pull: engine.PullNever, Username: "alice", Password: "right"}, fault.NotFound},
		{"without password", engine.Reference{Name: name}, fault.Forbidden},
		{"wrong password", engine.Reference{Name: name, Username: "alice", Password: "wrong"}, fault.Forbidden},
		{"no such image", engine.Reference{Name: address + "/private/other:1", Username: "alice", Password: "right"}, fault.NotFound},
		{"nobody there", engine.Reference{Name: "127.0.0.1:1/private/app:1"}, fault.Unavailable},
	} {
		if _, err := s.Engine.Resolve(soon(t), test.reference); !fault.Is(err, test.kind) {
			t.Errorf("%s: %v, want %s", test.name, err, test.kind)
		}
	}
	image, err := s.Engine.Resolve(soon(t), engine.Reference{Name: name, Username: "alice", Password: "right"})
	if err != nil {
		t.Fatal(err)
	}
	if len(image.Config.Cmd) != 1 || image.Config.Cmd[0] != "/bin/app" {
		t.Errorf("%+v", image.Config)
	}
	if tree := s.tree(t, image); tree["/bin/busybox"].header == nil {
		t.Error("the image has no files")
	}
	// It is here now, and a registry is not asked for what is here.
	if again, err := s.Engine.Resolve(soon(t), engine.Reference{Name: name}); err != nil || again.ID != image.ID {
		t.Errorf("the second time: %v", err)
	}
	if _, err := s.Engine.Resolve(soon(t), engine.Reference{Name: name, Pull: engine.PullAlways, Username: "alice", Password: "wrong"}); !fault.Is(err, fault.Forbidden) {
		t.Errorf("always, with a wrong password: %v", err)
	}
	s.passwordFile(t, name)
	built, _ := s.build(t, "FROM "+name+"\nRUN touch /built\n", func(b *engine.Build) { b.Pull = engine.PullMissing })
	expect(t, s.tree(t, built), "/built", "")
}

// passwordFile: without a password in the request, the one in the file counts, for images and for bases of builds.
func (s *suite) passwordFile(t *testing.T, name string) {
	text, err := json.Marshal(map[string]any{"auths": map[string]any{
		s.registry: map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte("alice:right"))}, "other.example": map[string]string{"auth": "YTpi"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.AuthFile, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Engine.Resolve(soon(t), engine.Reference{Name: name, Pull: engine.PullAlways}); err != nil {
		t.Errorf("with a password in the file: %v", err)
	}
	if _, log, err := s.run(soon(t), t, "FROM "+name+"\nRUN touch /x\n", func(b *engine.Build) { b.Pull = engine.PullAlways }); err != nil {
		t.Errorf("a build with a password in the file: %v\n%s", err, log)
	}
	if err := os.Remove(s.AuthFile); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Engine.Resolve(soon(t), engine.Reference{Name: name, Pull: engine.PullAlways}); !fault.Is(err, fault.Forbidden) {
		t.Errorf("without the file: %v", err)
	}
}
