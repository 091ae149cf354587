package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vers/internal/audit"
	"vers/internal/catalog"
	"vers/internal/config"
	"vers/internal/fault"
	"vers/internal/image"
)

// Kernels are the kernels of a data directory, for the operator's commands. versd looks a kernel up whenever a VM asks for it,
// so what is added or removed counts at once.
type Kernels struct {
	dataDir string
	catalog *catalog.Catalog // nil: no versd has run here yet
	audit   *audit.Log
}

// OpenKernels opens the kernels of a data directory, whether a versd has run on it or not.
func OpenKernels(ctx context.Context, c config.Server) (*Kernels, error) {
	k := &Kernels{dataDir: c.DataDir}
	if err := os.MkdirAll(c.DataDir, 0o711); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	path := filepath.Join(c.DataDir, "catalog.db")
	_, err := os.Stat(path)
	if err == nil {
		if k.catalog, err = catalog.Open(ctx, path); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if k.audit, err = audit.Open(filepath.Join(c.DataDir, audit.Name), audit.Options{}); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

// Close lets go of catalogue and audit log.
func (k *Kernels) Close() error {
	var errs []error
	if k.audit != nil {
		errs = append(errs, k.audit.Close())
	}
	if k.catalog != nil {
		errs = append(errs, k.catalog.Close())
	}
	return errors.Join(errs...)
}

// Kernel is one kernel, with the number of those who need it.
type Kernel struct {
	image.Kernel
	VMs, Commits int
}

// List gives all kernels by name.
func (k *Kernels) List(ctx context.Context) ([]Kernel, error) {
	found, err := image.Kernels(k.dataDir)
	if err != nil {
		return nil, err
	}
	uses, err := k.uses(ctx)
	if err != nil {
		return nil, err
	}
	kernels := make([]Kernel, len(found))
	for i, f := range found {
		kernels[i].Kernel = f
		for _, u := range uses {
			switch {
			case u.Kernel != f.Name:
			case u.Kind == "VM":
				kernels[i].VMs++
			default:
				kernels[i].Commits++
			}
		}
	}
	return kernels, nil
}

func (k *Kernels) uses(ctx context.Context) ([]catalog.KernelUse, error) {
	if k.catalog == nil {
		return nil, nil
	}
	return k.catalog.KernelUses(ctx)
}

// Add makes a kernel.
func (k *Kernels) Add(ctx context.Context, name string, source image.KernelSource, progress io.Writer) (image.Kernel, error) {
	made, err := image.AddKernel(ctx, k.dataDir, name, source, progress)
	return made, k.record("kernel add", name, err)
}

// Remove removes a kernel that nobody needs.
func (k *Kernels) Remove(ctx context.Context, name string) error {
	err := image.RemoveKernel(ctx, k.dataDir, name, func() error { return k.unused(ctx, name) })
	if err == nil && k.catalog != nil {
		_, err = k.catalog.DropKernelStates(ctx, name)
	}
	return k.record("kernel remove", name, err)
}

// namedUses is how many users of a kernel a refusal names.
const namedUses = 5

func (k *Kernels) unused(ctx context.Context, name string) error {
	uses, err := k.uses(ctx)
	if err != nil {
		return err
	}
	uses = slices.DeleteFunc(uses, func(u catalog.KernelUse) bool { return u.Kernel != name })
	if len(uses) == 0 {
		return nil
	}
	var who []string
	for _, u := range uses[:min(len(uses), namedUses)] {
		text := u.Kind + " " + u.ID
		if u.Name != "" {
			text += " (" + u.Name + ")"
		}
		who = append(who, text+" of organisation "+u.Org)
	}
	if more := len(uses) - len(who); more > 0 {
		who = append(who, fmt.Sprintf("%d more", more))
	}
	return fault.Conflictf("kernel '%s' is needed by %s: they could not be started again without it; delete them first", name, strings.Join(who, ", "))
}

// record writes into the audit log that an operator did something, with its result.
func (k *Kernels) record(action, object string, err error) error {
	e := audit.Entry{Time: time.Now().UTC(), Actor: operator(), Address: "local", Action: "versd " + action, Object: object, Result: "ok"}
	if err != nil {
		e.Result = fault.KindOf(err).String()
	}
	return errors.Join(err, k.audit.Append(e))
}
