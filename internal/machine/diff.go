package machine

import (
	"context"
	"errors"
	"path"
	"time"

	"vers/internal/ext4"
	"vers/internal/fault"
)

// Bounds of a diff.
const (
	DefaultDiffEntries = 10_000
	MaxDiffEntries     = 100_000
	maxDiffBytes       = 32 << 20 // of paths and link targets in one answer
	diffLimit          = 45 * time.Second
	diffsAtOnce        = 2 // each of them reads a disk at full speed
)

// DiffRequest asks what differs between the disks of two commits.
type DiffRequest struct {
	From, To string // commits; that the caller may read them is decided before
	Path     string // only this file or directory and what is below it, absolute; "": everything
	Limit    int    // most entries; 0: DefaultDiffEntries
}

// Diff is what differs.
type Diff struct {
	Entries   []ext4.Entry
	Truncated bool // Entries has only the first ones; Totals counts all
	Totals    ext4.Totals
}

// Diff compares the disks of two commits without starting anything. Few diffs run at once, others wait for their turn.
// Errors: fault.Invalid for a path or limit that makes no sense, fault.Conflict if a disk cannot be read as ext4,
// fault.Timeout after 45 seconds.
func (m *Manager) Diff(ctx context.Context, r DiffRequest) (Diff, error) {
	if r.Path != "" && (!path.IsAbs(r.Path) || path.Clean(r.Path) != r.Path && path.Clean(r.Path)+"/" != r.Path) {
		return Diff{}, fault.Invalidf("path '%s' must be absolute and without '.', '..' and doubled slashes", r.Path)
	}
	if r.Limit < 0 || r.Limit > MaxDiffEntries {
		return Diff{}, fault.Invalidf("limit is %d; 1 to %d are possible", r.Limit, MaxDiffEntries)
	}
	if r.Limit == 0 {
		r.Limit = DefaultDiffEntries
	}
	ctx, cancel := context.WithTimeout(ctx, diffLimit)
	defer cancel()
	d, err := m.diff(ctx, r)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fault.New(fault.Timeout, "comparing the commits took longer than %v: compare one directory instead, or try again when less is going on", diffLimit)
	}
	return d, err
}

func (m *Manager) diff(ctx context.Context, r DiffRequest) (d Diff, err error) {
	select {
	case m.diffs <- struct{}{}:
		defer func() { <-m.diffs }()
	case <-ctx.Done():
		return d, ctx.Err()
	}
	bytes := 0
	d.Totals, err = m.Commits.Diff(ctx, r.From, r.To, r.Path, func(e ext4.Entry) error {
		if d.Truncated || len(d.Entries) == r.Limit || bytes > maxDiffBytes {
			d.Truncated = true
			return nil
		}
		bytes += len(e.Path)
		for _, n := range []*ext4.Node{e.From, e.To} {
			if n != nil {
				bytes += len(n.Target)
			}
		}
		d.Entries = append(d.Entries, e)
		return nil
	})
	return d, err
}
