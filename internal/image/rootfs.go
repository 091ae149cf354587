package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"vers/images"
	"vers/internal/fault"
	"vers/internal/program"
	"vers/internal/rootfs"
)

// DefaultDiskBytes is the size of the default image: the smallest disk a VM can have. Larger disks are overlays on it,
// and the guest grows its file system into them while it runs.
const DefaultDiskBytes = 1 << 30

// sourceDate is the time of everything that is made while an image is built (SOURCE_DATE_EPOCH).
const sourceDate = "1735689600" // 1 January 2025

// slimOptions keep manuals, translations and documentation out, now and for packages installed later. Licences stay.
func slimOptions() []string {
	return []string{
		"path-exclude=/usr/share/man/*", "path-exclude=/usr/share/info/*", "path-exclude=/usr/share/locale/*",
		"path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright",
	}
}

// PrepareDefaultImage makes the root file system `default` out of Debian packages. Progress lines go to progress, which
// may be nil. It needs root, or user namespaces with subordinate ids.
func PrepareDefaultImage(ctx context.Context, dataDir string, progress io.Writer) (File, error) {
	if f, err := OpenImage(dataDir, DefaultImage); err == nil {
		return f, nil
	}
	dir := filepath.Join(dataDir, "images")
	err := withLock(ctx, dir, func() error {
		if _, err := OpenImage(dataDir, DefaultImage); err == nil {
			return nil
		}
		final := filepath.Join(dir, DefaultImage+".ext4")
		_, err := os.Stat(final)
		if errors.Is(err, fs.ErrNotExist) {
			os.Remove(digestPath(final)) // of an image that somebody removed
			sweep(dir)
			err = makeImage(ctx, dir, DefaultImage, progress)
		}
		if err == nil {
			err = writeDigest(final) // also of an image put there by hand, or before a crash
		}
		if err != nil {
			return fmt.Errorf("prepare image %s: %w", DefaultImage, err)
		}
		return nil
	})
	if err != nil {
		return File{}, err
	}
	return OpenImage(dataDir, DefaultImage)
}

// OpenImage finds a root file system of the data directory by its file's name. fault.NotFound if there is none.
func OpenImage(dataDir, name string) (File, error) {
	if !validName(name) {
		return File{}, fault.Invalidf("image name %q is not a plain file name", name)
	}
	path := filepath.Join(dataDir, "images", name+".ext4")
	digest, err := os.ReadFile(digestPath(path))
	if err == nil {
		var info os.FileInfo
		if info, err = os.Stat(path); err == nil {
			return File{Path: path, Digest: strings.TrimSpace(string(digest)), SizeBytes: info.Size()}, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return File{}, fault.NotFoundf("image '%s' not found", name)
	}
	return File{}, fmt.Errorf("open image %s: %w", name, err)
}

func digestPath(ext4 string) string { return strings.TrimSuffix(ext4, ".ext4") + ".digest" }

// makeImage builds and publishes <dir>/<name>.ext4. Called with the lock held.
func makeImage(ctx context.Context, dir, name string, progress io.Writer) error {
	work, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o755); err != nil { // apt's own user must be able to pass
		return err
	}
	archive := filepath.Join(work, "root.tar")
	say(progress, "installing Debian packages into a new root file system (about half a minute)")
	if err := bootstrap(ctx, name, work, archive); err != nil {
		return err
	}
	say(progress, "writing the file system")
	built := filepath.Join(work, name+".ext4")
	written, err := writeExt4(ctx, archive, built)
	if err != nil {
		return err
	}
	for _, warning := range written.Warnings {
		say(progress, "note: %s", warning)
	}
	used := written.UsedBytes
	if used > DefaultDiskBytes/2 {
		return fault.Invalidf("the packages of image %s fill %d MiB, more than half of the smallest disk", name, used>>20)
	}
	final := filepath.Join(dir, name+".ext4")
	if err := os.Rename(built, final); err != nil {
		return err
	}
	say(progress, "image %s is ready (%d MiB of %d MiB used)", name, used>>20, int64(DefaultDiskBytes)>>20)
	return syncDir(dir)
}

// writeExt4 makes the file system of a root file system's archive.
func writeExt4(ctx context.Context, archive, path string) (rootfs.Result, error) {
	f, err := os.Open(archive)
	if err != nil {
		return rootfs.Result{}, err
	}
	defer f.Close()
	return rootfs.Write(ctx, f, path, rootfs.Options{Type: rootfs.Ext4, SizeBytes: DefaultDiskBytes, Bootable: true})
}

// writeDigest records the digest of an image beside it.
func writeDigest(path string) error {
	digest, err := DigestFile(path)
	if err != nil {
		return err
	}
	return writeDurable(digestPath(path), []byte(digest+"\n"), 0o644)
}

// bootstrap writes the root file system as a tar archive. What this host needs to reach its package sources is used
// for the build and taken out again by the image's customize script.
func bootstrap(ctx context.Context, name, work, archive string) error {
	packages, err := readPackages(name)
	if err != nil {
		return err
	}
	script, err := images.Definitions.ReadFile(name + "/customize")
	if err != nil {
		return err
	}
	options, err := hostAptOptions(ctx)
	if err != nil {
		return err
	}
	hook, settings := filepath.Join(work, "customize"), filepath.Join(work, "apt.conf")
	if err := errors.Join(os.WriteFile(hook, script, 0o755), os.WriteFile(settings, options, 0o644)); err != nil {
		return err
	}
	args := []string{"--quiet", "--variant=minbase", "--format=tar", "--include=" + strings.Join(packages, ","),
		"--aptopt=" + settings, "--customize-hook=" + hook}
	for _, option := range slimOptions() {
		args = append(args, "--dpkgopt="+option)
	}
	args = append(args, suite, archive)
	args = append(args, hostArchives("/etc/apt").lines()...)
	err = program.Private(ctx, func() *exec.Cmd {
		cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
		cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+sourceDate, "TMPDIR="+work, "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
		return cmd
	})
	return withoutRoot(err)
}

// withoutRoot adds what to do to the error of a step that is only sure to work with root.
func withoutRoot(err error) error {
	if err == nil || os.Geteuid() == 0 || fault.Is(err, fault.Unavailable) {
		return err
	}
	return fault.Unavailablef("making an image without root needs user namespaces and the Debian package uidmap; "+
		"or have root run 'versd prepare' on this data directory once: %w", err)
}

// readPackages reads the package list of an image's definition.
func readPackages(name string) ([]string, error) {
	data, err := images.Definitions.ReadFile(name + "/packages")
	if err != nil {
		return nil, err
	}
	var packages []string
	for _, line := range strings.Split(string(data), "\n") {
		line, _, _ = strings.Cut(line, "#")
		packages = append(packages, strings.Fields(line)...)
	}
	return packages, nil
}
