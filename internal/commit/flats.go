package commit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"vers/internal/catalog"
	"vers/internal/disk"
	"vers/internal/fault"
	"vers/internal/memory"
)

// Flat makes sure that the flat file of a commit exists and gives its path. It stays until release is called or, after
// that, as long as a VM in the catalogue names the commit as its memory base.
func (s *Store) Flat(ctx context.Context, id string) (path string, release func(), err error) {
	c, release, err := s.Lease(ctx, id)
	if err != nil {
		return "", nil, err
	}
	for {
		s.mu.Lock()
		wait, busy := s.building[id]
		if !busy {
			s.building[id] = make(chan struct{})
		}
		s.mu.Unlock()
		if !busy {
			break
		}
		select {
		case <-wait:
		case <-ctx.Done():
			release()
			return "", nil, ctx.Err()
		}
	}
	defer func() {
		s.mu.Lock()
		close(s.building[id])
		delete(s.building, id)
		s.mu.Unlock()
	}()
	ok, err := s.usable(ctx, id)
	if err == nil && !ok {
		err = s.rebuild(ctx, c)
	}
	if err != nil {
		release()
		return "", nil, fmt.Errorf("prepare memory of commit %s: %w", id, err)
	}
	return s.FlatPath(id), release, nil
}

// usable reports whether the flat file can be mapped. One that was never synced is only good in the host boot that
// wrote it: after a power cut it may have holes where data was. On an error nobody knows: it may be mapped.
func (s *Store) usable(ctx context.Context, id string) (bool, error) {
	f, err := s.catalog.Flat(ctx, id)
	if fault.Is(err, fault.NotFound) || err == nil && !f.Synced && f.BootID != s.bootID {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if _, err := os.Stat(s.FlatPath(id)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return false, err
	}
	if s.now().Sub(f.UsedAt) > time.Minute { // recency need not be exact; a write per restore would cost an fsync
		if err := s.catalog.TouchFlat(ctx, catalog.Flat{CommitID: id, UsedAt: s.now()}); err != nil {
			s.log.Warn("flat file's recency not noted", "commit", id, "error", err)
		}
	}
	return true, nil
}

// rebuild makes a flat file from deltas.
func (s *Store) rebuild(ctx context.Context, c catalog.Commit) error {
	defer s.Hold()()
	s.log.Info("rebuilding flat file", "commit", c.ID)
	base, deltas, err := s.deltas(ctx, c)
	if err != nil {
		return err
	}
	m, err := s.Manifest(c)
	if err != nil {
		return err
	}
	org, err := s.catalog.Organisation(ctx, c.OrgID)
	if err != nil {
		return err
	}
	path := s.FlatPath(c.ID)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	flat, err := memory.Rebuild(ctx, path, base, m.Hardware.MemoryBytes, deltas)
	if err != nil {
		return err
	}
	defer flat.Abort()
	if err := s.share(flat.Path(), org.GID); err != nil {
		return err
	}
	if err := flat.Finish(); err != nil {
		return err
	}
	return s.catalog.PutFlat(ctx, catalog.Flat{CommitID: c.ID, BootID: s.bootID, UsedAt: s.now()})
}

// deltas gives the paths of the deltas that make a commit's memory, oldest first, and the flat file they stand on: that
// of the nearest ancestor with a usable one, or "" for zeroes.
func (s *Store) deltas(ctx context.Context, c catalog.Commit) (base string, paths []string, err error) {
	for {
		paths = append(paths, s.delta(c.ID))
		if c.MemoryBase == "" {
			break
		}
		ok, err := s.usable(ctx, c.MemoryBase)
		if err != nil {
			return "", nil, err
		}
		if ok {
			base = s.FlatPath(c.MemoryBase)
			break
		}
		if c, err = s.catalog.Commit(ctx, c.MemoryBase); err != nil {
			return "", nil, err
		}
	}
	slices.Reverse(paths)
	return base, paths, nil
}

// SyncFlat brings a flat file to stable storage, so that it is still good after the host restarts. It may take long and
// is nobody's condition for anything. fault.NotFound if there is none, or none that is good.
func (s *Store) SyncFlat(ctx context.Context, id string) error {
	_, release, err := s.Lease(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	ok, err := s.usable(ctx, id)
	if err != nil {
		return err
	}
	if !ok {
		return fault.NotFoundf("commit %s has no flat file", id)
	}
	if err := disk.Sync(s.FlatPath(id)); err != nil {
		return err
	}
	return s.catalog.PutFlat(ctx, catalog.Flat{CommitID: id, BootID: s.bootID, Synced: true, UsedAt: s.now()})
}
