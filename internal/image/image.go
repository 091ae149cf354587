// Package image makes what a VM boots from: the kernel and its modules, the initramfs with the agent, and root file
// systems as sparse ext4 files. Everything is built beside its final place and renamed into it when complete, so a
// path that exists is whole; every Prepare function returns at once when its result is there.
//
// Layout below the data directory:
//
//	kernels/<name>/vmlinuz, modules/, release, digest
//	images/<name>.ext4, images/<name>.digest
//	initrd/<digest>.img
package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// Names of what a new data directory gets.
const (
	DefaultKernel = "default.bin"
	DefaultImage  = "default"
)

// File is a root file system: a raw, sparse ext4 file.
type File struct {
	Path      string
	Digest    string // of the whole file, see DigestFile
	SizeBytes int64  // apparent size
}

// validName reports whether name can be a file name below kernels/ or images/.
func validName(name string) bool {
	return name != "" && !strings.HasPrefix(name, ".") && !strings.ContainsAny(name, "/\\\x00") && len(name) <= 128
}

// withLock runs f while holding a lock file in dir, which is made when missing. It serialises processes that prepare
// the same data directory.
func withLock(ctx context.Context, dir string, f func() error) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	lock := flock.New(filepath.Join(dir, ".lock"))
	if _, err := lock.TryLockContext(ctx, 50*time.Millisecond); err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	return f()
}

// sweep removes what a killed process left half made in dir. Called with the lock held.
func sweep(dir string) {
	old, _ := filepath.Glob(filepath.Join(dir, ".new-*")) // the pattern is valid
	for _, path := range old {
		os.RemoveAll(path) // what cannot be removed only takes space
	}
}

// say writes one progress line; a nil writer is allowed.
func say(progress io.Writer, format string, args ...any) {
	if progress != nil {
		fmt.Fprintf(progress, format+"\n", args...)
	}
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// writeDurable writes a small file completely or not at all: temporary name, fsync, rename, fsync of the directory.
func writeDurable(path string, data []byte, mode os.FileMode) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	_, werr := tmp.Write(data)
	if err := errors.Join(werr, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}
