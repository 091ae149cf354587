package commit

import (
	"context"
	"os"
	"time"

	"vers/internal/catalog"
	"vers/internal/disk"
	"vers/internal/ident"
)

// maxLayers is how many layers a commit's disk may have above its image: QEMU opens every one of them on a restore.
const maxLayers = 8

// Flatten copies the disk layers of a commit into one, if there are too many, and puts the commit on top of it. The old
// layers are only read; they go when no commit and no VM stands on them. The commit can be restored meanwhile.
func (s *Store) Flatten(ctx context.Context, id string) (err error) {
	defer s.Hold()()
	c, release, err := s.Lease(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	files, image, err := s.mergeable(ctx, c.LayerID)
	if err != nil || len(files) <= maxLayers {
		return err
	}
	org, err := s.catalog.Organisation(ctx, c.OrgID)
	if err != nil {
		return err
	}
	merged := catalog.Layer{ID: ident.New(), OrgID: c.OrgID, ImageFile: image, Frozen: true, CreatedAt: time.Now()}
	if err := disk.Merge(ctx, s.LayerPath(merged.ID), files, s.ImagePath(image), "raw"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(s.LayerPath(merged.ID))
		}
	}()
	if err := s.FreezeFile(merged.ID, org.GID); err != nil {
		return err
	}
	s.log.Debug("disk layers merged", "commit", id, "layers", len(files))
	return s.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		if err := tx.InsertLayer(ctx, merged); err != nil {
			return err
		}
		return tx.SetCommitBase(ctx, id, merged.ID, c.MemoryBase)
	})
}

// mergeable gives the files of a layer chain, the lowest first, and the image they stand on.
func (s *Store) mergeable(ctx context.Context, id string) (files []string, image string, err error) {
	layers, image, err := s.Chain(ctx, id)
	for _, l := range layers {
		files = append(files, s.LayerPath(l.ID))
	}
	return files, image, err
}
