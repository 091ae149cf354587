// Package program runs programs of the host, such as mke2fs, to their end.
package program

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"vers/internal/fault"
)

// maxSaid is how much of what a program printed is kept for its error message, in bytes.
const maxSaid = 1500

// systemFolders hold programs that file systems are made with; an ordinary user's PATH lacks them.
var systemFolders = []string{"/usr/sbin", "/sbin"}

// Find is the path of a program. fault.Unavailable, with the Debian package to install, if the host lacks it.
func Find(name, debianPackage string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range systemFolders {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fault.Unavailablef("%s is not installed: install the Debian package %s: %w", name, debianPackage, err)
}

// Run runs a command to its end and gives its standard output. The error carries the end of what the command printed
// as errors, unless that goes elsewhere.
func Run(ctx context.Context, cmd *exec.Cmd) ([]byte, error) {
	var out, errs bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &errs
	}
	err := cmd.Run()
	if err == nil {
		return out.Bytes(), nil
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s: stopped: %w", filepath.Base(cmd.Path), ctx.Err())
	}
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fault.Unavailablef("%s is not installed: run 'versd doctor' for the package to install: %w", cmd.Args[0], err)
	}
	text := strings.TrimSpace(errs.String())
	if len(text) > maxSaid {
		text = "…" + text[len(text)-maxSaid:]
	}
	return nil, fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, text)
}
