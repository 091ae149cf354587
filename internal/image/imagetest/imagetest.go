// Package imagetest gives tests the kernel and the default image, made once per machine.
package imagetest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gofrs/flock"

	"vers/internal/image"
)

// Base gives a data directory that holds the kernel default.bin and the image default, and nothing else: the one named
// by $VERS_TEST_BASE, or .cache/base in the repository. It is shared: tests MUST NOT change it. What is missing is made,
// which needs Debian's package sources and takes about a minute; other test processes wait meanwhile.
func Base(ctx context.Context) (string, error) {
	dir, err := folder()
	if err != nil {
		return "", err
	}
	if _, err := image.PrepareKernel(ctx, dir, os.Stderr); err != nil {
		return "", fmt.Errorf("prepare the kernel for tests in %s: %w", dir, err)
	}
	if _, err := image.PrepareDefaultImage(ctx, dir, os.Stderr); err != nil {
		return "", fmt.Errorf("prepare the image for tests in %s: %w", dir, err)
	}
	return dir, nil
}

func folder() (string, error) {
	if dir := os.Getenv("VERS_TEST_BASE"); dir != "" {
		return dir, nil
	}
	top, err := repository()
	return filepath.Join(top, ".cache", "base"), err
}

// systemdPackages are those of Systemd's tree: an init, its bus, an SSH server of its own, devices, network.
const systemdPackages = "systemd-sysv,dbus,udev,openssh-server,procps,iproute2,iputils-ping,curl"

// systemdHook marks the tree as up to date, which systemd would bring it up to at the first boot for most of a minute without
// an accelerator, and leaves out a job about LVM.
const systemdHook = `rm "$1/etc/systemd/system/multi-user.target.wants/e2scrub_reap.service"; touch "$1/etc/.updated" "$1/var/.updated"`

// Systemd gives a root file system with systemd as an archive, the way many users' images are: Debian 12's minbase and
// systemdPackages, without documentation. It lies beside Base's folder, and the same holds for it.
func Systemd(tb testing.TB) (path string) {
	tb.Helper()
	dir, err := folder()
	if err != nil {
		tb.Fatal(err)
	}
	arguments := []string{"--quiet", "--variant=minbase", "--include=" + systemdPackages}
	for _, folder := range []string{"doc", "man", "info", "locale"} {
		arguments = append(arguments, "--dpkgopt=path-exclude=/usr/share/"+folder+"/*")
	}
	arguments = append(arguments, "--customize-hook="+systemdHook)
	key := sha256.Sum256([]byte(strings.Join(arguments, " ")))
	path = fmt.Sprintf("%s.systemd-%x.tar", dir, key[:4])
	lock := flock.New(dir + ".systemd.lock")
	if err := errors.Join(os.MkdirAll(filepath.Dir(dir), 0o755), lock.Lock()); err != nil {
		tb.Fatal(err)
	}
	defer lock.Close()
	if _, err := os.Stat(path); err == nil {
		return path
	}
	unfinished := dir + ".systemd-new.tar"
	if out, err := exec.CommandContext(tb.Context(), "mmdebstrap", append(arguments, "bookworm", unfinished)...).CombinedOutput(); err != nil {
		tb.Fatalf("mmdebstrap: %v\n%s", err, out)
	}
	if err := os.Rename(unfinished, path); err != nil {
		tb.Fatal(err)
	}
	return path
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
