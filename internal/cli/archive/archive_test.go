package archive_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vers/internal/build/inputs"
	"vers/internal/cli/archive"
	"vers/internal/fault"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, name, text string, mode fs.FileMode) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(name), 0o755))
	must(t, errors.Join(os.WriteFile(name, []byte(text), 0o600), os.Chmod(name, mode)))
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	long := strings.Repeat("long/", 30) + strings.Repeat("x", 200)
	write(t, filepath.Join(dir, ".hidden"), "h", 0o600)
	write(t, filepath.Join(dir, "bin", "run"), "r", 0o755|fs.ModeSetuid)
	write(t, filepath.Join(dir, long), "l", 0o644)
	write(t, filepath.Join(dir, ".vers", "HEAD"), "x", 0o644)
	write(t, filepath.Join(dir, "sub", ".vers", "HEAD"), "kept", 0o644)
	must(t, os.Symlink("../outside/nowhere", filepath.Join(dir, "dangling")))
	must(t, os.Symlink("/etc", filepath.Join(dir, "folder")))
	must(t, os.Mkdir(filepath.Join(dir, "empty"), 0o700))
	must(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(dir, link)) // the folder itself may be reached through a link
	var warnings []string
	f := archive.Folder{Dir: link, Skip: func(name string, dir bool) bool { return name == ".vers" && dir },
		Warn: func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }}
	var b bytes.Buffer
	must(t, f.Write(t.Context(), &b))
	said := len(warnings)
	digest, err := f.Digest(t.Context())
	must(t, err)
	sum := inputs.New()
	for tape := tar.NewReader(bytes.NewReader(b.Bytes())); ; {
		h, err := tape.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, errors.Join(err, sum.WriteHeader(h)))
		_, err = io.Copy(sum, tape)
		must(t, err)
	}
	if digest != sum.String() || len(warnings) != said {
		t.Errorf("digest %s, of the archive %s; warnings %q", digest, sum, warnings)
	}
	got := map[string]string{}
	for tape := tar.NewReader(&b); ; {
		h, err := tape.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		text, err := io.ReadAll(tape)
		must(t, err)
		if h.Uid != 0 || h.Uname != "" {
			t.Errorf("%s belongs to %d %q", h.Name, h.Uid, h.Uname)
		}
		got[h.Name] = fmt.Sprintf("%o %s%s", h.Mode, text, h.Linkname)
	}
	for name := range got {
		if strings.HasPrefix(name, "long/") && strings.HasSuffix(name, "/") {
			delete(got, name)
		}
	}
	want := map[string]string{".hidden": "600 h", "bin/": "755 ", "bin/run": "4755 r", long: "644 l", "sub/": "755 ", "sub/.vers/": "755 ",
		"sub/.vers/HEAD": "644 kept", "dangling": "777 ../outside/nowhere", "folder": "777 /etc", "empty/": "700 "}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("archive (-want +got):\n%s", diff)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "pipe") {
		t.Errorf("warnings %q", warnings)
	}
	if n := f.Size(); n != 7 {
		t.Errorf("size %d", n)
	}
}

// slow takes what is written, once it is allowed to.
type slow struct {
	first   chan struct{}
	allowed chan struct{}
	once    sync.Once
}

func (s *slow) Write(p []byte) (int, error) {
	s.once.Do(func() {
		close(s.first)
		<-s.allowed
	})
	return len(p), nil
}

// A file that changes while it is read is an error that names it, not a broken archive.
func TestChangingFile(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "log")
	write(t, name, strings.Repeat("x", 1<<20), 0o644)
	w := &slow{first: make(chan struct{}), allowed: make(chan struct{})}
	go func() {
		<-w.first // the header with the size
		_ = os.Truncate(name, 10)
		close(w.allowed)
	}()
	err := archive.Folder{Dir: dir}.Write(t.Context(), w)
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), name+" became shorter") {
		t.Error(err)
	}
}

func TestCancelled(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "x", 0o644)
	ctx, cancel := context.WithCancelCause(t.Context())
	left := errors.New("left")
	cancel(left)
	if err := (archive.Folder{Dir: dir}).Write(ctx, io.Discard); !errors.Is(err, left) {
		t.Error(err)
	}
	if _, err := (archive.Folder{Dir: dir}).Digest(ctx); !errors.Is(err, left) {
		t.Error(err)
	}
	// In the middle of a file that never ends.
	write(t, filepath.Join(dir, "large"), "", 0o644)
	must(t, os.Truncate(filepath.Join(dir, "large"), 1<<40))
	ctx, cancelLater := context.WithCancelCause(t.Context())
	time.AfterFunc(10*time.Millisecond, func() { cancelLater(left) })
	if _, err := (archive.Folder{Dir: dir}).Digest(ctx); !errors.Is(err, left) {
		t.Error(err)
	}
}

// A large folder needs no more memory than a small one.
func TestMemory(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "large"), "", 0o644)
	const size = 1 << 30
	must(t, os.Truncate(filepath.Join(dir, "large"), size)) // a hole
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	must(t, archive.Folder{Dir: dir}.Write(t.Context(), struct{ io.Writer }{io.Discard}))
	_, err := archive.Folder{Dir: dir}.Digest(t.Context())
	must(t, err)
	runtime.ReadMemStats(&after)
	if all := after.TotalAlloc - before.TotalAlloc; all > 2<<20 {
		t.Errorf("%d KiB were allocated in all for %d MiB", all>>10, size>>20)
	}
}
