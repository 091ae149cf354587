// Package rootfs makes file system images out of tar archives that nobody vouches for: names are resolved below the
// root whatever they say, and bytes and entries are counted against limits. Owners, modes, times, extended attributes,
// hard links, devices and holes are kept where the file system can hold them.
package rootfs

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"vers/internal/fault"
)

// Type is a kind of file system.
type Type string

// The file systems that can be made. VMs boot from Ext4.
const (
	Ext4     Type = "ext4"
	Btrfs    Type = "btrfs"
	XFS      Type = "xfs"
	Squashfs Type = "squashfs"
	Erofs    Type = "erofs"
	VFAT     Type = "vfat"
)

// Options of Write.
type Options struct {
	Type Type // "": Ext4
	// SizeBytes is the size of the image. 0: as large as the content needs, and HeadroomBytes more.
	SizeBytes     int64
	HeadroomBytes int64
	Label         string // "": root
	UUID          string // "": derived from the content, so that equal trees have equal ones
	// MkfsArgs are passed on to the mkfs program. Options that would have it read or write other files are refused.
	MkfsArgs []string
	// Bootable mends what engines leave behind and a machine needs: /etc/hostname and resolv.conf are the machine's,
	// /etc/hosts knows localhost, /.dockerenv and /run/.containerenv are gone, /dev is empty, and /proc, /sys, /run, /tmp and / are folders with
	// their usual modes.
	Bootable bool
	// Keep are those of Mended that Bootable leaves as they are: /etc/resolv.conf, when somebody wants his own.
	Keep []string
	// Lossy allows a type that loses most of what a root file system needs: VFAT.
	Lossy  bool
	Limits Limits
}

// Limits of what an archive may hold. Zero values are the package's defaults: 64 GiB and two million.
type Limits struct {
	Bytes   int64 // of all files' data, blocks of zeroes not counted
	Entries int64
}

// Result describes an image that was written.
type Result struct {
	SizeBytes int64
	UsedBytes int64 // allocated
	Entries   int64 // names in the tree, the root included
	// Tree is the digest of names, modes, owners, times, extended attributes and contents: equal for equal trees,
	// whatever the order of the archive and whatever the file system.
	Tree     string
	Warnings []string // what this file system or a missing privilege could not keep
}

// Write makes the file system image path of a tar archive, plain or compressed with gzip or zstd, which is found out by
// looking. A file that is there is replaced. path is complete when it appears: until then the image has another name
// beside it, .new-*, which only a killed process leaves behind. Reading the archive is not interrupted: its Read must end
// when ctx does. Names of the archive are taken below the root whatever they say: "/a", "../a" and "a" are the same, and
// symbolic links on the way are followed as in a machine with that root. Of entries with the same name the last counts.
// Blocks of zeroes become holes. Folders that the archive does not mention belong to root and are from 1970.
//
// Errors are fault.Invalid for what is wrong in the archive or the options, fault.Exhausted for limits, a file system
// that is too small and a disk of the host that is full, fault.Unavailable for a program that the host lacks.
func Write(ctx context.Context, archive io.Reader, path string, o Options) (Result, error) {
	return run(ctx, &job{archive: archive, dir: filepath.Dir(path), options: o}, path)
}

func run(ctx context.Context, j *job, path string) (result Result, err error) {
	o := &j.options
	if o.Type == "" {
		o.Type = Ext4
	}
	if o.Label == "" {
		o.Label = ext4Label
	}
	k, err := o.check()
	if err != nil {
		return Result{}, err
	}
	j.image, err = os.CreateTemp(j.dir, ".new-*")
	if err != nil {
		return Result{}, fmt.Errorf("make %s: %w", path, err)
	}
	defer func() {
		j.image.Close()
		if err != nil {
			err = errors.Join(hostFull(j.dir, err), os.Remove(j.image.Name()))
		}
	}()
	if err := k.write(ctx, j); err != nil {
		return Result{}, err
	}
	return j.publish(path)
}

// check finds out what can be found out before anything is done.
func (o Options) check() (kind, error) {
	if o.SizeBytes < 0 || o.HeadroomBytes < 0 {
		return kind{}, fault.Invalidf("a file system of %d bytes with %d bytes of headroom makes no sense", o.SizeBytes, o.HeadroomBytes)
	}
	if o.UUID != "" {
		if _, err := uuid.Parse(o.UUID); err != nil {
			return kind{}, fault.Invalidf("%q is no UUID: %w", o.UUID, err)
		}
	}
	k, ok := kindOf(o.Type)
	if !ok {
		return kind{}, fault.Invalidf("unknown type of file system %q: ext4, btrfs, xfs, squashfs, erofs or vfat", o.Type)
	}
	if k.maxLabel > 0 && len(o.Label) > k.maxLabel || strings.HasPrefix(o.Label, "-") {
		return kind{}, fault.Invalidf("the label %q cannot be one of %s, which has at most %d bytes", o.Label, o.Type, k.maxLabel)
	}
	return k, checkMkfsArgs(k.tool, o.MkfsArgs, k.options)
}

// job is one run of Write.
type job struct {
	archive  io.Reader
	image    *os.File
	dir      string // where the image will be; temporary files are there too
	options  Options
	warnings warnings
	// unprivileged: neither root nor loop devices are used, whether or not there are some.
	unprivileged bool
	tree         string
	entries      int64
}

// open opens the archive, and measures it where that is needed, or costs nothing.
func (j *job) open(ctx context.Context) (content, *stream, error) {
	s, err := openStream(ctx, j.archive)
	if err != nil {
		return content{}, nil, err
	}
	if j.options.SizeBytes != 0 {
		if _, _, ok := rewindable(j.archive, s); !ok {
			return content{}, s, nil
		}
	}
	return measured(ctx, j.archive, s, j.dir, j.options.Limits)
}

// fill extracts the archive below the open folder root.
func (j *job) fill(ctx context.Context, s *stream, root int) error {
	t := newTree(root, j.options, false, &j.warnings)
	err := t.fill(ctx, s)
	if err == nil {
		j.tree, j.entries, err = t.finish(ctx)
	}
	return err
}

// uuid is made of the tree's digest, in the form that is for such (RFC 9562, version 8).
func (j *job) uuid() string {
	var id uuid.UUID
	sum, err := hex.DecodeString(j.tree)
	if err != nil || copy(id[:], sum) < len(id) {
		return ext4Seed
	}
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80
	return id.String()
}

// publish makes the image durable and gives it its name.
func (j *job) publish(path string) (Result, error) {
	if err := punch(j.image); err != nil {
		return Result{}, fmt.Errorf("make holes in %s: %w", path, err)
	}
	if err := errors.Join(j.image.Chmod(0o644), j.image.Sync()); err != nil {
		return Result{}, fmt.Errorf("write %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(j.image.Fd()), &st); err != nil {
		return Result{}, err
	}
	if err := os.Rename(j.image.Name(), path); err != nil {
		return Result{}, err
	}
	d, err := os.Open(j.dir)
	if err != nil {
		return Result{}, err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return Result{}, fmt.Errorf("write %s: %w", path, err)
	}
	return Result{
		SizeBytes: st.Size, UsedBytes: st.Blocks * 512, Entries: j.entries, Tree: j.tree, Warnings: j.warnings.lines(),
	}, nil
}

// hostFull tells a full disk of the host from other errors: behind a loop device it looks like a broken disk.
func hostFull(dir string, err error) error {
	if !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ENOSPC) {
		return err
	}
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil || int64(st.Bavail)*st.Bsize > 16<<20 {
		return err
	}
	return fault.Exhaustedf("the disk with %s is full: %w", dir, err)
}
