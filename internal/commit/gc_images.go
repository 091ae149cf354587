package commit

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"vers/internal/ident"
)

// Image files that organisations made are named <id>.ext4, an id for every build: an image that is built anew gets another
// file, and whatever stands on the old one keeps it. The server's own files have other names and are not collected.

// ImageFile is the name of an image file that an organisation makes, below images/.
func ImageFile(id string) string { return id + ".ext4" }

func collectable(file string) bool {
	id, isImage := strings.CutSuffix(file, ".ext4")
	_, isID := ident.Parse(id)
	return isImage && isID
}

// imageFiles says which image files images name.
func (s *Store) imageFiles(ctx context.Context) (map[string]bool, error) {
	names, err := s.catalog.NamedImageFiles(ctx)
	named := make(map[string]bool, len(names))
	for _, name := range names {
		named[name] = true
	}
	return named, err
}

// sweepImages removes image files that neither an image nor a layer names. Files that are still being written have other
// names.
func (s *Store) sweepImages(ctx context.Context) error {
	keep, err := s.imageFiles(ctx)
	if err != nil {
		return err
	}
	layers, err := s.catalog.Layers(ctx)
	if err != nil {
		return err
	}
	for _, l := range layers {
		keep[l.ImageFile] = true
	}
	known, err := s.catalog.ImageFiles(ctx)
	if err != nil {
		return err
	}
	for _, f := range known {
		if keep[f.Name] {
			continue
		}
		if err := s.catalog.RemoveImageFile(ctx, f.Name); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, "images"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if keep[e.Name()] || !collectable(e.Name()) {
			continue
		}
		s.log.Debug("removing", "what", "images", "name", e.Name())
		if err := os.Remove(s.ImagePath(e.Name())); err != nil {
			return err
		}
	}
	return nil
}
