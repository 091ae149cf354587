package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"time"

	"github.com/gofrs/flock"

	"vers/internal/fault"
	"vers/internal/ident"
)

// Aliases are names for VMs, kept in ~/.vers/aliases.json on this machine.
type Aliases struct{ Home string }

func (a Aliases) path() string { return filepath.Join(a.Home, ".vers", "aliases.json") }

// All reads the aliases: name to VM id.
func (a Aliases) All() (map[string]string, error) {
	all := map[string]string{}
	data, err := os.ReadFile(a.path())
	if errors.Is(err, os.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the aliases: %w", err)
	}
	if len(data) == 0 {
		return all, nil
	}
	if err := json.Unmarshal(data, &all); err != nil || all == nil {
		return nil, fault.Invalidf("the alias file %s is damaged (%v); repair or remove it", a.path(), err)
	}
	return all, nil
}

// Names gives the aliases of one VM, sorted.
func Names(all map[string]string, id string) []string {
	var names []string
	for name, target := range all {
		if canonical, ok := ident.Parse(target); ok && canonical == id {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names
}

// Set lets name mean the VM id and returns the VM it meant before, or "".
func (a Aliases) Set(ctx context.Context, name, id string) (previous string, err error) {
	err = a.update(ctx, func(all map[string]string) bool {
		previous = all[name]
		all[name] = id
		return previous != id
	})
	return previous, err
}

// Remove forgets an alias and reports whether there was one.
func (a Aliases) Remove(ctx context.Context, name string) (found bool, err error) {
	err = a.update(ctx, func(all map[string]string) bool {
		_, found = all[name]
		delete(all, name)
		return found
	})
	return found, err
}

// RemoveVM forgets all aliases of a VM, because it was deleted.
func (a Aliases) RemoveVM(ctx context.Context, id string) error {
	all, err := a.All()
	if err != nil || len(Names(all, id)) == 0 {
		return err
	}
	return a.update(ctx, func(all map[string]string) bool {
		for _, name := range Names(all, id) {
			delete(all, name)
		}
		return true
	})
}

// update changes the file under a lock, since CI runs several of us at once. change reports whether to write.
func (a Aliases) update(ctx context.Context, change func(map[string]string) bool) error {
	if err := os.MkdirAll(filepath.Dir(a.path()), 0o755); err != nil {
		return fmt.Errorf("make the folder of the aliases: %w", err)
	}
	lock := flock.New(a.path() + ".lock")
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := lock.TryLockContext(ctx, 5*time.Millisecond); err != nil {
		return fmt.Errorf("lock the aliases (%s): %w", lock.Path(), err)
	}
	defer func() { _ = lock.Unlock() }()
	all, err := a.All()
	if err != nil || !change(all) {
		return err
	}
	return writeJSON(a.path(), all, 0o644)
}
