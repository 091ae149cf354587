package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Merge copies several qcow2 layers, lowest first, into one new qcow2 file dst over base. The inputs are only read, and
// may be in use below running VMs; the backing files that their headers name are not looked at. dst is complete and on
// stable storage when it has its name. In its header, base is named relative to its folder.
//
// Errors: fault.Conflict if dst exists, fault.Exhausted if the disk is full. On error, or when ctx ends, there is no dst.
func Merge(ctx context.Context, dst string, layers []string, base, baseFormat string) (err error) {
	if len(layers) == 0 {
		return fmt.Errorf("merge layers into %s: none given", dst)
	}
	if _, err := os.Lstat(dst); err == nil {
		return writeError("merge layers into", dst, "", os.ErrExist)
	}
	paths, err := absolute(append([]string{dst, base}, layers...))
	if err != nil {
		return fmt.Errorf("merge layers into %s: %w", dst, err)
	}
	dst, base, layers = paths[0], paths[1], paths[2:]
	relative, err := filepath.Rel(filepath.Dir(dst), base)
	if err != nil {
		return fmt.Errorf("merge layers into %s: %w", dst, err)
	}
	top, err := Stat(layers[len(layers)-1])
	if err != nil {
		return fmt.Errorf("merge layers into %s: %w", dst, err)
	}
	if top.Format != "qcow2" {
		return fmt.Errorf("merge layers into %s: layer %s is %s, not qcow2", dst, layers[len(layers)-1], top.Format)
	}
	temp := dst + TempSuffix
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) { // of a crash
		return fmt.Errorf("merge layers into %s: %w", dst, err)
	}
	if err := CreateOverlay(temp, top.VirtualSize, relative, baseFormat); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp)
			err = writeError("merge layers into", dst, "", err)
		}
	}()
	// An empty overlay on top of the layers is moved onto the base: QEMU copies into it what differs. (convert -B would
	// only copy the topmost layer and take everything else to be in the base.)
	source, err := json.Marshal(&node{
		Driver: "qcow2", File: &node{Driver: "file", Name: temp}, Backing: chain(layers, base, baseFormat),
		DetectZeroes: "unmap", Discard: "unmap", // zeroes over data become zero clusters, not 64 KiB each
	})
	if err != nil {
		return err
	}
	if err := qemuImg(ctx, "rebase", "-b", base, "-F", baseFormat, "json:"+string(source)); err != nil {
		return err
	}
	// Only the name in the header: it was absolute so far.
	if err := qemuImg(ctx, "rebase", "-u", "-f", "qcow2", "-b", relative, "-F", baseFormat, temp); err != nil {
		return err
	}
	if err := Sync(temp); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, dst, unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	return Sync(dst)
}

// TempSuffix ends the names of files in the making. After a crash they are rubbish.
const TempSuffix = ".tmp"

// qemuImg runs qemu-img until it is done or ctx ends. It does not outlive this process.
func qemuImg(ctx context.Context, args ...string) error {
	// The signal at our death is tied to the thread that starts the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return writeError("qemu-img", args[0], strings.TrimSpace(errs.String()), err)
}

func absolute(paths []string) ([]string, error) {
	for i, p := range paths {
		var err error
		if paths[i], err = filepath.Abs(p); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

// node is a block device description of QEMU.
type node struct {
	Driver       string `json:"driver"`
	File         *node  `json:"file,omitempty"`
	Backing      *node  `json:"backing,omitempty"`
	Name         string `json:"filename,omitempty"`
	Locking      string `json:"locking,omitempty"`
	ReadOnly     bool   `json:"read-only,omitempty"`
	Discard      string `json:"discard,omitempty"`
	DetectZeroes string `json:"detect-zeroes,omitempty"`
}

// chain describes layers over base explicitly. Locks are off: running VMs have the lower layers open, nobody writes.
func chain(layers []string, base, baseFormat string) *node {
	file := func(path string) *node { return &node{Driver: "file", Name: path, Locking: "off", ReadOnly: true} }
	below := &node{Driver: baseFormat, File: file(base), ReadOnly: true}
	for _, path := range layers {
		below = &node{Driver: "qcow2", File: file(path), Backing: below, ReadOnly: true}
	}
	return below
}
