package commit

import (
	"context"
	"fmt"
	"os"
	"time"

	"vers/internal/catalog"
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
	if s.usable(ctx, id) {
		return s.FlatPath(id), release, nil
	}
	if err := s.rebuild(ctx, c); err != nil {
		release()
		return "", nil, fmt.Errorf("prepare memory of commit %s: %w", id, err)
	}
	return s.FlatPath(id), release, nil
}

// usable reports whether the flat file can be mapped. One that was never synced is only good in the host boot that
// wrote it: after a power cut it may have holes where data was.
func (s *Store) usable(ctx context.Context, id string) bool {
	f, err := s.catalog.Flat(ctx, id)
	if err != nil || (!f.Synced && f.BootID != s.bootID) {
		return false
	}
	if _, err := os.Stat(s.FlatPath(id)); err != nil {
		return false
	}
	if s.now().Sub(f.UsedAt) > time.Minute { // recency need not be exact; a write per restore would cost an fsync
		if err := s.catalog.TouchFlat(ctx, catalog.Flat{CommitID: id, UsedAt: s.now()}); err != nil {
			s.log.Warn("flat file's recency not noted", "commit", id, "error", err)
		}
	}
	return true
}

// rebuild makes a flat file from deltas: from the nearest ancestor with a usable flat file, or from zeroes.
func (s *Store) rebuild(ctx context.Context, c catalog.Commit) error {
	defer s.Hold()()
	s.log.Info("rebuilding flat file", "commit", c.ID)
	var deltas []string // newest first
	base, at := "", c
	for {
		deltas = append(deltas, at.ID)
		if at.MemoryBase == "" {
			break
		}
		if s.usable(ctx, at.MemoryBase) {
			base = s.FlatPath(at.MemoryBase)
			break
		}
		next, err := s.catalog.Commit(ctx, at.MemoryBase)
		if err != nil {
			return err
		}
		at = next
	}
	m, err := s.Manifest(c)
	if err != nil {
		return err
	}
	path := s.FlatPath(c.ID)
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	flat, err := memory.NewFlat(ctx, path, base, m.Hardware.MemoryBytes)
	if err != nil {
		return err
	}
	defer flat.Abort()
	for i := len(deltas) - 1; i >= 0; i-- {
		if err := memory.ApplyDelta(ctx, flat, s.delta(deltas[i])); err != nil {
			return err
		}
	}
	org, err := s.catalog.Organisation(ctx, c.OrgID)
	if err != nil {
		return err
	}
	if err := s.share(flat.Path(), org.GID); err != nil {
		return err
	}
	if err := flat.Finish(); err != nil {
		return err
	}
	return s.catalog.PutFlat(ctx, catalog.Flat{CommitID: c.ID, BootID: s.bootID, UsedAt: s.now()})
}

// SyncFlat brings a flat file to stable storage, so that it is still good after the host restarts. It may take long and
// is nobody's condition for anything.
func (s *Store) SyncFlat(ctx context.Context, id string) error {
	_, release, err := s.Lease(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	f, err := os.Open(s.FlatPath(id))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	return s.catalog.PutFlat(ctx, catalog.Flat{CommitID: id, BootID: s.bootID, Synced: true, UsedAt: s.now()})
}

func (s *Store) verifyDelta(id string, m Manifest) error {
	info, err := memory.VerifyDelta(s.delta(id))
	if err != nil {
		return fmt.Errorf("commit %s: %w", id, err)
	}
	if info != m.Memory {
		return fault.New(fault.Internal, "commit %s: memory delta is not the one the manifest names", id)
	}
	return nil
}
