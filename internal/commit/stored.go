package commit

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"vers/internal/catalog"
	"vers/internal/disk"
)

// Stored gives the bytes that the commits of an organisation ("" of all) take on disk. Whatever was not measured yet is
// measured first; commits and frozen layers never change, so that is done once for each.
func (s *Store) Stored(ctx context.Context, orgID string) (int64, error) {
	s.measuring.Lock()
	defer s.measuring.Unlock()
	open, err := s.catalog.Unmeasured(ctx)
	if err != nil {
		return 0, err
	}
	for _, u := range open {
		bytes, err := s.measure(u)
		if errors.Is(err, fs.ErrNotExist) {
			continue // just being collected
		}
		if err != nil {
			return 0, err
		}
		if err := s.catalog.SetStoredBytes(ctx, u, bytes); err != nil {
			return 0, err
		}
	}
	return s.catalog.StoredBytes(ctx, orgID)
}

func (s *Store) measure(u catalog.Unmeasured) (int64, error) {
	if u.Layer {
		return disk.Allocated(s.LayerPath(u.ID))
	}
	entries, err := os.ReadDir(s.commitDir(u.ID))
	if err != nil {
		return 0, err
	}
	var total int64
	for _, e := range entries {
		n, err := disk.Allocated(filepath.Join(s.commitDir(u.ID), e.Name()))
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}
