package commit

import (
	"context"
	"fmt"
	"sort"

	"vers/internal/disk"
	"vers/internal/ext4"
	"vers/internal/fault"
)

// Diff compares the file systems on the disks of two commits, from their files: nothing boots, nothing is mounted. It
// calls yield for each path that differs, see ext4.Diff; below is one path to compare, "" for all.
//
// It sees a disk as it was at the commit's instant. What a guest had written and not yet flushed is in the commit's memory,
// not on its disk, and does not count. What the file system's journal has, counts.
//
// Errors: fault.NotFound if a commit is gone, fault.Conflict if a disk holds no sound ext4 file system.
func (s *Store) Diff(ctx context.Context, from, to, below string, yield func(ext4.Entry) error) (ext4.Totals, error) {
	var disks [2]*disk.Reader
	var systems [2]*ext4.FS
	for i, id := range []string{from, to} {
		d, release, err := s.openDisk(ctx, id)
		if err != nil {
			return ext4.Totals{}, err
		}
		defer release()
		disks[i] = d
		if systems[i], err = ext4.Open(d, d.Size()); err != nil {
			return ext4.Totals{}, fmt.Errorf("commit %s: %w", id, err)
		}
	}
	changed, err := disk.Changed(disks[0], disks[1])
	if err != nil {
		return ext4.Totals{}, err
	}
	same := func(offset, length int64) bool {
		i := sort.Search(len(changed), func(i int) bool { return changed[i].End > offset })
		return i == len(changed) || changed[i].Start >= offset+length
	}
	totals, err := ext4.Diff(ctx, systems[0], systems[1], ext4.Options{Below: below, Same: same}, yield)
	if err != nil {
		return totals, fmt.Errorf("compare commits %s and %s: %w", from, to, err)
	}
	return totals, nil
}

// openDisk opens the disk of a commit, which stays until release is called.
func (s *Store) openDisk(ctx context.Context, id string) (d *disk.Reader, release func(), err error) {
	c, unlease, err := s.Lease(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	files, err := s.Files(ctx, c.LayerID)
	if err == nil {
		d, err = disk.OpenChain(files[0], files[1:])
	}
	if err != nil {
		unlease()
		if _, gone := s.catalog.Commit(ctx, id); fault.Is(gone, fault.NotFound) {
			return nil, nil, gone // collected before the lease counted
		}
		return nil, nil, fmt.Errorf("open the disk of commit %s: %w", id, err)
	}
	return d, func() {
		d.Close()
		unlease()
	}, nil
}
