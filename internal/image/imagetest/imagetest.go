// Package imagetest gives tests the kernel and the default image, made once per machine.
package imagetest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"vers/internal/image"
)

// Base gives a data directory that holds the kernel default.bin and the image default, and nothing else: the one named
// by $VERS_TEST_BASE, or .cache/base in the repository. It is shared: tests MUST NOT change it. What is missing is made,
// which needs Debian's package sources and takes about a minute; other test processes wait meanwhile.
func Base(ctx context.Context) (string, error) {
	dir := os.Getenv("VERS_TEST_BASE")
	if dir == "" {
		top, err := repository()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(top, ".cache", "base")
	}
	if _, err := image.PrepareKernel(ctx, dir, os.Stderr); err != nil {
		return "", fmt.Errorf("prepare the kernel for tests in %s: %w", dir, err)
	}
	if _, err := image.PrepareDefaultImage(ctx, dir, os.Stderr); err != nil {
		return "", fmt.Errorf("prepare the image for tests in %s: %w", dir, err)
	}
	return dir, nil
}

// Open gives the kernel and the image of the base to one test.
func Open(tb testing.TB) (image.Kernel, image.File) {
	tb.Helper()
	dir, err := Base(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	kernel, err := image.OpenKernel(dir, image.DefaultKernel)
	if err != nil {
		tb.Fatal(err)
	}
	file, err := image.OpenImage(dir, image.DefaultImage)
	if err != nil {
		tb.Fatal(err)
	}
	return kernel, file
}

// repository is the folder of go.mod above the test's own.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		} else if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod above the test's folder: %w", err)
		}
		dir = filepath.Dir(dir)
	}
}
