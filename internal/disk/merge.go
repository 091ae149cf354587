package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// Merge copies several qcow2 layers (lowest first) into one new qcow2 file dst over base. The inputs are read only; the
// names of backing files in their headers are not used. On error or when ctx ends, dst does not exist.
func Merge(ctx context.Context, dst string, layers []string, base, baseFormat string) (err error) {
	if len(layers) == 0 {
		return errors.New("merge layers: none given")
	}
	if _, err := os.Lstat(dst); err == nil {
		return fmt.Errorf("merge layers: %s exists already", dst)
	}
	top, err := Stat(layers[len(layers)-1])
	if err != nil {
		return fmt.Errorf("merge layers: %w", err)
	}
	if err := CreateOverlay(dst, top.VirtualSize, base, baseFormat); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(dst)
		}
	}()
	// An empty overlay on top of the layers is moved onto the base: qemu-img copies into it what differs.
	target := &node{Driver: "qcow2", File: &node{Driver: "file", Name: dst}, Backing: chain(layers, base, baseFormat)}
	source, err := json.Marshal(target)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "qemu-img", "rebase", "-b", base, "-F", baseFormat, "json:"+string(source))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("merge layers into %s: %w: %s", dst, err, strings.TrimSpace(errs.String()))
	}
	return Sync(dst)
}

// node is a block device description of QEMU.
type node struct {
	Driver  string `json:"driver"`
	File    *node  `json:"file,omitempty"`
	Backing *node  `json:"backing,omitempty"`
	Name    string `json:"filename,omitempty"`
	Locking string `json:"locking,omitempty"`
}

// chain describes layers over base explicitly. Locks are off: running VMs have the lower layers open, nobody writes.
func chain(layers []string, base, baseFormat string) *node {
	file := func(path string) *node { return &node{Driver: "file", Name: path, Locking: "off"} }
	below := &node{Driver: baseFormat, File: file(base)}
	for _, path := range layers {
		below = &node{Driver: "qcow2", File: file(path), Backing: below}
	}
	return below
}
