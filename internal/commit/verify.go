package commit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"vers/internal/catalog"
	"vers/internal/disk"
	"vers/internal/fault"
	"vers/internal/memory"
)

// Verifier verifies commits. What several of them stand on it reads once.
type Verifier struct {
	store  *Store
	bases  map[string]error // by commit id: what is wrong with its delta or one below
	layers map[string]error // by layer id
}

// Verifier gives a new one.
func (s *Store) Verifier() *Verifier {
	return &Verifier{store: s, bases: map[string]error{}, layers: map[string]error{}}
}

// Verify verifies one commit, see Verifier.Verify.
func (s *Store) Verify(ctx context.Context, id string) error { return s.Verifier().Verify(ctx, id) }

// Verify reads the files of a commit again and compares them with its manifest, and does the same with the deltas that
// its memory stands on. There are no hashes of disk layers, since they are written by QEMU: the structure of these is
// checked, not their content.
func (v *Verifier) Verify(ctx context.Context, id string) error {
	c, release, err := v.store.Lease(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	if err := v.commit(ctx, c); err != nil {
		return fmt.Errorf("commit %s: %w", id, err)
	}
	return nil
}

func (v *Verifier) commit(ctx context.Context, c catalog.Commit) error {
	m, err := v.store.Manifest(c)
	if err != nil {
		return err
	}
	written, err := os.ReadFile(filepath.Join(v.store.commitDir(c.ID), "manifest.json"))
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	if !bytes.Equal(written, c.Manifest) {
		return fault.New(fault.Internal, "manifest.json is damaged: it is not what the catalogue has")
	}
	state, err := hashFile(v.store.DeviceState(c.ID))
	if err != nil {
		return fmt.Errorf("device state: %w", err)
	}
	if state.BLAKE3 != m.DeviceState.BLAKE3 {
		return fault.New(fault.Internal, "device state is damaged: BLAKE3 is %s, manifest says %s", state.BLAKE3, m.DeviceState.BLAKE3)
	}
	if err := v.memory(ctx, c); err != nil {
		return err
	}
	return v.disk(ctx, c.LayerID)
}

// memory verifies a commit's delta and those below. The error names the one that is damaged.
func (v *Verifier) memory(ctx context.Context, c catalog.Commit) error {
	err, known := v.bases[c.ID]
	if known {
		return err
	}
	if err = v.delta(c); err == nil && c.MemoryBase != "" {
		var base catalog.Commit
		if base, err = v.store.catalog.Commit(ctx, c.MemoryBase); err == nil {
			err = v.memory(ctx, base)
		}
	}
	v.bases[c.ID] = err
	return err
}

func (v *Verifier) delta(c catalog.Commit) error {
	m, err := v.store.Manifest(c)
	if err != nil {
		return err
	}
	info, err := memory.VerifyDelta(v.store.delta(c.ID))
	if err != nil {
		return err // names the file
	}
	if info != m.Memory {
		return fault.New(fault.Internal, "memory delta of commit %s is not the one its manifest names", c.ID)
	}
	return nil
}

// disk verifies the image's presence and the structure of layers.
func (v *Verifier) disk(ctx context.Context, layer string) error {
	layers, image, err := v.store.Chain(ctx, layer)
	if err != nil {
		return err
	}
	if _, err := os.Stat(v.store.ImagePath(image)); errors.Is(err, fs.ErrNotExist) {
		return fault.NotFoundf("its image %s is missing", image)
	} else if err != nil {
		return err
	}
	for _, l := range layers {
		err, known := v.layers[l.ID]
		if !known {
			err = disk.Check(ctx, v.store.LayerPath(l.ID))
			v.layers[l.ID] = err
		}
		if errors.Is(err, fs.ErrNotExist) {
			return fault.NotFoundf("its disk layer %s is missing", filepath.Base(v.store.LayerPath(l.ID)))
		}
		if err != nil {
			return fmt.Errorf("its disk layer: %w", err)
		}
	}
	return nil
}
