package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"vers/internal/fault"
	"vers/internal/ident"
)

// Folder is a working folder; its .vers holds HEAD. Parent folders are never searched: ~/.vers holds the aliases and
// would be found by mistake.
type Folder struct{ Dir string }

// HeadState says what Head found.
type HeadState int

// The states of HEAD.
const (
	NoProject HeadState = iota // there is no .vers/HEAD
	Empty                      // it is there and holds nothing
	Set                        // it names a VM
)

func (f Folder) headPath() string { return filepath.Join(f.Dir, ".vers", "HEAD") }

// Head reads HEAD. Content that is no VM id is fault.Invalid.
func (f Folder) Head() (id string, state HeadState, err error) {
	data, err := os.ReadFile(f.headPath())
	if errors.Is(err, os.ErrNotExist) {
		return "", NoProject, nil
	}
	if err != nil {
		return "", NoProject, fmt.Errorf("read HEAD: %w", err)
	}
	text := strings.TrimSpace(string(data))
	if text == "" {
		return "", Empty, nil
	}
	id, ok := ident.Parse(text)
	if !ok {
		return "", Set, fault.Invalidf("HEAD (%s) holds %.60q, which is no VM id; set it with 'vers checkout <vm>'", f.headPath(), text)
	}
	return id, Set, nil
}

// SetHead lets HEAD name a VM, making .vers if it is missing.
func (f Folder) SetHead(id string) error {
	if err := WriteFile(f.headPath(), []byte(id), 0o644); err != nil {
		return fmt.Errorf("write HEAD: %w", err)
	}
	return nil
}

// ClearHead empties HEAD if it names id, and reports whether it did.
func (f Folder) ClearHead(id string) (bool, error) {
	head, state, err := f.Head()
	if err != nil || state != Set || head != id {
		return false, nil //nolint:nilerr // a HEAD that cannot be read does not name the VM
	}
	return true, f.SetHead("")
}
