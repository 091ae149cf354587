package server_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"vers/api"
	"vers/internal/build/inputs"
	"vers/internal/machine/machinetest"
	"vers/test/rig"
)

func connect(t *testing.T, s *rig.Server) *api.Client {
	t.Helper()
	client, err := api.NewClient(s.URL, api.WithKey(s.Key))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdle)
	return client
}

// folder begins a folder with a Dockerfile, and goes on with whatever more writes.
func folder(dockerfile string, more func(w *tar.Writer) error) io.Reader {
	r, w := io.Pipe()
	go func() {
		archive := tar.NewWriter(w)
		err := archive.WriteHeader(&tar.Header{Name: "Dockerfile", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(dockerfile))})
		if err == nil {
			_, err = io.WriteString(archive, dockerfile)
		}
		if err == nil && more != nil {
			err = more(archive)
		}
		if err == nil {
			err = archive.Close()
		}
		w.CloseWithError(err)
	}()
	return r
}

func large(size int64) func(w *tar.Writer) error {
	return func(w *tar.Writer) error {
		if err := w.WriteHeader(&tar.Header{Name: "large", Typeflag: tar.TypeReg, Mode: 0o644, Size: size}); err != nil {
			return err
		}
		_, err := io.CopyN(w, zeroes{}, size)
		return err
	}
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// nothingLeft waits until no build goes on and nothing of one is there.
func nothingLeft(t *testing.T, s *rig.Server) {
	t.Helper()
	machinetest.Await(t, "the end of all builds", func() bool {
		builds, err := os.ReadDir(filepath.Join(s.Dir, "builds"))
		if err != nil {
			t.Fatal(err)
		}
		return s.Engine.Running() == 0 && len(builds) == 0
	})
}

// What steps print arrives while later steps have not begun.
func TestBuildLogIsLive(t *testing.T) {
	t.Parallel()
	s := rig.New(t)
	seen := make(chan struct{})
	s.Engine.SetHook(func(ctx context.Context, step string) error {
		if step == "RUN echo second" {
			select {
			case <-seen:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	var log strings.Builder
	first := true
	built, err := connect(t, s).BuildImage(t.Context(), api.BuildOptions{Name: "app"}, folder("FROM base:1\nRUN echo first\nRUN echo second\n", nil), func(text string) {
		log.WriteString(text)
		if first && strings.Contains(log.String(), "first\n") {
			first = false
			close(seen)
		}
	})
	if err != nil || built.RootfsName.RootfsName != "app" || built.Image.ImageName != "app" || !strings.Contains(log.String(), "second\n") {
		t.Errorf("%+v, %v, log %q", built, err, log.String())
	}
	nothingLeft(t, s)
}

// A client that leaves, in the upload or in the build, leaves nothing on the server; the next build works.
func TestClientLeaves(t *testing.T) {
	t.Parallel()
	s := rig.New(t)
	client := connect(t, s)
	leave := errors.New("left")
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := client.BuildImage(ctx, api.BuildOptions{Name: "app"}, folder("FROM base:1\nRUN hang\n", nil), func(text string) {
		if strings.Contains(text, "RUN hang") {
			cancel(leave)
		}
	})
	if !errors.Is(err, leave) {
		t.Errorf("in the build: %v", err)
	}
	nothingLeft(t, s)

	ctx, cancel = context.WithCancelCause(t.Context())
	_, err = client.BuildImage(ctx, api.BuildOptions{Name: "app"}, folder("FROM base:1\n", func(w *tar.Writer) error {
		if err := large(1 << 20)(w); err != nil {
			return err
		}
		if err := w.Flush(); err != nil {
			return err
		}
		machinetest.Await(t, "the begin of the upload", func() bool {
			builds, _ := os.ReadDir(filepath.Join(s.Dir, "builds"))
			return len(builds) == 1
		})
		cancel(leave)
		<-ctx.Done()
		return leave
	}), nil)
	if !errors.Is(err, leave) {
		t.Errorf("in the upload: %v", err)
	}
	nothingLeft(t, s)
	status, err := client.ImageStatus(t.Context(), "app")
	if err != nil || status.Status != api.ImageFailed {
		t.Errorf("status %+v, %v", status, err)
	}
	if _, err := client.BuildImage(t.Context(), api.BuildOptions{Name: "app"}, folder("FROM base:1\n", nil), nil); err != nil {
		t.Error(err)
	}
}

// counting counts what was read of it, which may go on after the answer.
type counting struct {
	io.Reader
	n atomic.Int64
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// What is refused is refused before anything is sent, or, where that shows only on the way, while it is sent: the client
// gets to read why.
func TestRefusedUpload(t *testing.T) {
	t.Parallel()
	s := rig.New(t)
	client := connect(t, s)
	const size = 1 << 30
	body := &counting{Reader: folder("FROM base:1\n", large(size))}
	_, err := client.BuildImage(t.Context(), api.BuildOptions{Name: "default"}, body, nil)
	if api.StatusOf(err) != http.StatusBadRequest || !strings.Contains(err.Error(), "protected") || body.n.Load() > 1<<16 {
		t.Errorf("%v after %d bytes", err, body.n.Load())
	}
	body = &counting{Reader: folder("FROM base:1\n", func(w *tar.Writer) error {
		if err := w.WriteHeader(&tar.Header{Name: "null", Typeflag: tar.TypeChar, Mode: 0o644}); err != nil {
			return err
		}
		return large(size)(w)
	})}
	_, err = client.BuildImage(t.Context(), api.BuildOptions{Name: "app"}, body, nil)
	if api.StatusOf(err) != http.StatusBadRequest || !strings.Contains(err.Error(), "null") || body.n.Load() > size/2 {
		t.Errorf("%v after %d bytes", err, body.n.Load())
	}
	nothingLeft(t, s)
}

// A folder that was built before is not sent; one of which that was only said is.
func TestKnownFolder(t *testing.T) {
	t.Parallel()
	s := rig.New(t)
	client := connect(t, s)
	const dockerfile = "FROM base:1\nRUN echo one\n"
	const size = 64 << 20
	sum := inputs.New()
	for tape := tar.NewReader(folder(dockerfile, large(size))); ; {
		h, err := tape.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = sum.WriteHeader(h)
		}
		if err == nil {
			_, err = io.Copy(sum, tape)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, sends := range []bool{true, false, false} {
		body := &counting{Reader: folder(dockerfile, large(size))}
		var log strings.Builder
		built, err := client.BuildImage(t.Context(), api.BuildOptions{Name: "app", Folder: sum.String()}, body, func(text string) { log.WriteString(text) })
		if err != nil || built.Image.ImageName != "app" || (body.n.Load() > size) != sends || body.n.Load() > 1<<16 && !sends || strings.Contains(log.String(), "STEP") != sends {
			t.Errorf("build %d: %+v, %v, %d bytes sent, log %s", i, built, err, body.n.Load(), log.String())
		}
	}
	_, err := client.BuildImage(t.Context(), api.BuildOptions{Name: "app", Folder: "mine"}, folder(dockerfile, nil), nil)
	if api.StatusOf(err) != http.StatusBadRequest || !strings.Contains(err.Error(), "hexadecimal") {
		t.Error(err)
	}
	nothingLeft(t, s)
}

// Neither client nor server holds what is uploaded.
func TestUploadMemory(t *testing.T) {
	s := rig.New(t)
	client := connect(t, s)
	const size = 256 << 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := client.BuildImage(t.Context(), api.BuildOptions{Name: "app"}, folder("FROM base:1\n", large(size)), nil); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if all := after.TotalAlloc - before.TotalAlloc; all > 24<<20 {
		t.Errorf("%d KiB were allocated in all for a folder of %d MiB", all>>10, size>>20)
	}
	nothingLeft(t, s)
}

// A program that knows nothing of lines gets one answer.
func TestBuildWithoutLines(t *testing.T) {
	t.Parallel()
	s := rig.New(t)
	data, err := io.ReadAll(folder("FROM base:1\nRUN exit 7\n", nil))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.URL+"/api/rootfs/app", bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.Key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), "step 'RUN exit 7' (line 2) failed: exit code 7") {
		t.Errorf("%d %s, %v", resp.StatusCode, text, err)
	}
}
