// Package imagetest gives tests the kernel and the default image, made once per machine.
package imagetest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"vers/internal/image"
)

// Base is a data directory that holds a kernel and an image, and nothing else. It is shared: tests MUST NOT change it.
type Base struct {
	Dir    string
	Kernel image.Kernel
	Image  image.File
}

// Prepare gives the base of $VERS_TEST_BASE, or of .cache/base in the repository. What is missing is made there, which
// needs Debian's package sources and takes about a minute; other test processes wait meanwhile.
func Prepare(tb testing.TB) Base {
	tb.Helper()
	b := Base{Dir: os.Getenv("VERS_TEST_BASE")}
	if b.Dir == "" {
		b.Dir = filepath.Join(repository(tb), ".cache", "base")
	}
	progress := testLog{tb}
	var err error
	if b.Kernel, err = image.PrepareKernel(tb.Context(), b.Dir, progress); err != nil {
		tb.Fatalf("prepare the kernel for tests in %s: %v", b.Dir, err)
	}
	if b.Image, err = image.PrepareDefaultImage(tb.Context(), b.Dir, progress); err != nil {
		tb.Fatalf("prepare the image for tests in %s: %v", b.Dir, err)
	}
	return b
}

// LinkInto puts the kernel and the image into a test's own data directory, without copying where the file system
// allows hard links.
func (b Base) LinkInto(tb testing.TB, dataDir string) {
	tb.Helper()
	for _, part := range []string{"kernels", "images"} {
		err := filepath.WalkDir(filepath.Join(b.Dir, part), func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(b.Dir, path)
			if err != nil {
				return err
			}
			target := filepath.Join(dataDir, rel)
			switch {
			case entry.IsDir() && entry.Name()[0] == '.':
				return fs.SkipDir
			case entry.IsDir():
				return os.MkdirAll(target, 0o755)
			case entry.Name()[0] == '.':
				return nil
			}
			if err := os.Link(path, target); err != nil {
				return os.Symlink(path, target) // another file system
			}
			return nil
		})
		if err != nil {
			tb.Fatalf("link %s of the test base: %v", part, err)
		}
	}
}

// repository is the folder of go.mod above the test's own.
func repository(tb testing.TB) string {
	tb.Helper()
	dir, err := os.Getwd()
	if err != nil {
		tb.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		} else if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			tb.Fatalf("no go.mod above the test's folder: %v", err)
		}
		dir = filepath.Dir(dir)
	}
}

// testLog writes progress lines into the test's log.
type testLog struct{ tb testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.tb.Helper()
	l.tb.Logf("%s", p)
	return len(p), nil
}
