package commit

import "context"

// Generations counts the commits that a memory stands on and that are kept for it alone: id and what is below it, up to
// the first one that its owner has not deleted.
func (s *Store) Generations(ctx context.Context, id string) (n int, err error) {
	for id != "" {
		c, err := s.catalog.Commit(ctx, id)
		if err != nil {
			return n, err
		}
		if !c.Deleted {
			break
		}
		n++
		id = c.MemoryBase
	}
	return n, nil
}
