package commit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"vers/internal/catalog"
	"vers/internal/disk"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/memory"
)

// An import is a copy of another organisation's commit that shares no file with it but the image below: one disk layer,
// a delta that stands alone, an own flat file. Nothing is ever shared between organisations that a process of one of
// them might write to (design 2.1, traps). It is internal like a template: found by its key, never listed. It stays
// while a VM or commit stands on it, and for a while after its last use, since who forks often forks again.

const (
	importPrefix = "import:"
	importKept   = time.Hour
)

// ImportKey is the template key of an organisation's import of a commit.
func ImportKey(orgID, commitID string) string { return importPrefix + orgID + ":" + commitID }

func isImport(c catalog.Commit) bool { return strings.HasPrefix(c.TemplateKey, importPrefix) }

func isTemplate(c catalog.Commit) bool { return c.TemplateKey != "" && !isImport(c) }

// Import gives the organisation's import of a commit, which it makes if there is none. The caller holds off Collect
// (Hold) until something stands on the import, and asks for one import of a key at a time. On error nothing is left.
func (s *Store) Import(ctx context.Context, org catalog.Organisation, sourceID string) (catalog.Commit, error) {
	key := ImportKey(org.ID, sourceID)
	found, err := s.catalog.CommitByTemplate(ctx, key)
	if !fault.Is(err, fault.NotFound) {
		return found, err
	}
	source, release, err := s.Lease(ctx, sourceID)
	if err != nil {
		return source, err
	}
	defer release()
	began := time.Now()
	c, err := s.copyCommit(ctx, org, source, key)
	if err != nil {
		return c, fmt.Errorf("copy commit %s for organisation %s: %w", sourceID, org.Name, err)
	}
	s.log.Info("commit copied for another organisation", "commit", sourceID, "copy", c.ID, "took", time.Since(began))
	return c, nil
}

func (s *Store) copyCommit(ctx context.Context, org catalog.Organisation, source catalog.Commit, key string) (c catalog.Commit, err error) {
	m, err := s.Manifest(source)
	if err != nil {
		return c, err
	}
	c = catalog.Commit{ID: ident.New(), OrgID: org.ID, OwnerID: source.OwnerID, Name: "import", CreatedAt: s.now(), TemplateKey: key, Durable: true}
	layer, err := s.copyDisk(ctx, org, source)
	if err != nil {
		return c, err
	}
	c.LayerID = layer.ID
	m.CommitID, m.CreatedAt, m.MemoryBase = c.ID, c.CreatedAt, ""
	temp, final := s.commitDir(c.ID)+".tmp", s.commitDir(c.ID)
	defer func() {
		os.RemoveAll(temp)
		if err != nil {
			os.Remove(s.LayerPath(layer.ID))
			os.Remove(s.FlatPath(c.ID))
			os.RemoveAll(final)
		}
	}()
	if err := os.Mkdir(temp, 0o700); err != nil {
		return c, err
	}
	if err := copyFile(temp+"/device.state", s.DeviceState(source.ID)); err != nil {
		return c, err
	}
	state, err := hashFile(temp + "/device.state")
	if err != nil {
		return c, err
	}
	if state != m.DeviceState {
		return c, fault.New(fault.Internal, "commit %s: device state is damaged: BLAKE3 is %s, manifest says %s", source.ID, state.BLAKE3, m.DeviceState.BLAKE3)
	}
	if m.Memory, err = s.copyMemory(ctx, org, source.ID, c.ID, temp+"/memory.delta", m.Hardware.MemoryBytes); err != nil {
		return c, err
	}
	if c.Manifest, err = s.seal(temp, m); err != nil {
		return c, err
	}
	return c, s.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		if err := tx.InsertLayer(ctx, layer); err != nil {
			return err
		}
		if err := tx.InsertCommit(ctx, c); err != nil {
			return err
		}
		return tx.PutFlat(ctx, catalog.Flat{CommitID: c.ID, BootID: s.bootID, UsedAt: s.now()})
	})
}

// copyDisk merges the layers of a commit into one that belongs to the organisation. It has no row yet.
func (s *Store) copyDisk(ctx context.Context, org catalog.Organisation, source catalog.Commit) (catalog.Layer, error) {
	files, image, err := s.mergeable(ctx, source.LayerID)
	if err != nil {
		return catalog.Layer{}, err
	}
	l := catalog.Layer{ID: ident.New(), OrgID: org.ID, ImageFile: image, Frozen: true, CreatedAt: s.now()}
	if err := disk.Merge(ctx, s.LayerPath(l.ID), files, s.ImagePath(image), "raw"); err != nil {
		return l, err
	}
	if err := s.FreezeFile(l.ID, org.GID); err != nil {
		os.Remove(s.LayerPath(l.ID))
		return l, err
	}
	return l, nil
}

// copyMemory makes the flat file of a copy and a delta that stands alone. Where the file system can share blocks, the
// flat file costs nothing; QEMU processes of both organisations still have files of their own.
func (s *Store) copyMemory(ctx context.Context, org catalog.Organisation, from, to, delta string, size int64) (memory.DeltaInfo, error) {
	base, release, err := s.Flat(ctx, from)
	if err != nil {
		return memory.DeltaInfo{}, err
	}
	defer release()
	flat, err := memory.NewFlat(ctx, s.FlatPath(to), base, size)
	if err != nil {
		return memory.DeltaInfo{}, err
	}
	defer flat.Abort()
	info, err := memory.WriteFlatDelta(ctx, delta, flat.Path())
	if err != nil {
		return info, err
	}
	if err := s.share(flat.Path(), org.GID); err != nil {
		return info, err
	}
	return info, flat.Finish()
}

// copyFile copies a small file that only we read.
func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}
