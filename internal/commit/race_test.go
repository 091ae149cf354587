package commit_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
)

// crowd is the commits that those who race know of.
type crowd struct {
	mu      sync.Mutex
	commits []catalog.Commit
	deleted map[string]bool
}

func (c *crowd) add(made catalog.Commit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.commits = append(c.commits, made)
}

// any gives one that is not deleted yet.
func (c *crowd) any(random *rand.Rand) catalog.Commit {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.commits[random.IntN(len(c.commits))]
}

func (c *crowd) gone(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deleted[id]
}

// drop takes one for whoever deletes it.
func (c *crowd) drop(random *rand.Rand) (catalog.Commit, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.commits) < 3 {
		return catalog.Commit{}, false
	}
	i := random.IntN(len(c.commits))
	gone := c.commits[i]
	c.commits = append(c.commits[:i], c.commits[i+1:]...)
	c.deleted[gone.ID] = true
	return gone, true
}

// Writers, restorers, deleters, mergers and the collector at the same time. Nobody is given what goes, everybody has the
// memory a commit was taken with, and in the end there is what is listed and what that needs.
func TestRace(t *testing.T) {
	t.Parallel()
	const each = 40
	r := newRigIn(t, t.TempDir(), 512<<10)
	ctx := t.Context()
	all := &crowd{deleted: map[string]bool{}}
	for i := range 3 {
		all.add(r.take(nil, map[int64][]byte{int64(i): page(byte(i) + 1)}))
	}
	made := make(chan struct{}, each) // one deletion for two commits
	kick := make(chan chan struct{})  // asks for a collection
	var writers, group sync.WaitGroup
	worker := func(group *sync.WaitGroup, seed uint64, do func(random *rand.Rand, n int) error) {
		group.Go(func() {
			random := rand.New(rand.NewPCG(seed, 9))
			for n := range each {
				if err := do(random, n); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range uint64(2) {
		worker(&writers, 10+i, func(random *rand.Rand, n int) error {
			if n%4 == 3 { // they hold off the collector all the time otherwise
				collected := make(chan struct{})
				kick <- collected
				<-collected
			}
			if n%2 == 0 {
				made <- struct{}{}
			}
			return r.raceWrite(all, random)
		})
	}
	for i := range uint64(4) {
		worker(&group, 20+i, func(random *rand.Rand, _ int) error { return r.raceRestore(all, random) })
	}
	worker(&group, 40, func(random *rand.Rand, _ int) error {
		c := all.any(random)
		if err := r.store.Flatten(ctx, c.ID); err != nil && !fault.Is(err, fault.NotFound) {
			return fmt.Errorf("merge: %w", err)
		}
		return nil
	})
	group.Go(func() {
		random := rand.New(rand.NewPCG(30, 9))
		for range made {
			if c, ok := all.drop(random); ok {
				if err := r.catalog.MarkCommitDeleted(ctx, c.ID); err != nil {
					t.Error(err)
				}
			}
		}
	})
	collections := 0
	group.Go(func() {
		for collected := range kick {
			for done := false; !done; time.Sleep(time.Millisecond) {
				var err error
				if done, err = r.store.Collect(ctx); err != nil {
					t.Errorf("collect: %v", err)
					break
				}
			}
			collections++
			close(collected)
		}
	})
	writers.Wait()
	close(made)
	close(kick)
	group.Wait()
	t.Logf("%d collections, %d commits, %d deleted", collections, len(all.commits), len(all.deleted))
	r.collect()
	r.consistent()
	r.remove(all.commits...)
	r.collect()
	if left := r.files(); len(left) > 0 {
		t.Errorf("everything is deleted, and there are %v", left)
	}
}

// raceWrite takes a commit on top of another one, with or without a flat file, or gives it up.
func (r *rig) raceWrite(all *crowd, random *rand.Rand) error {
	base := all.any(random)
	defer r.store.Hold()()
	now, err := r.catalog.Commit(r.t.Context(), base.ID) // on the layers it has now
	if fault.Is(err, fault.NotFound) && all.gone(base.ID) {
		return nil
	}
	var m *making
	if err == nil {
		m, err = r.begin(r.from, &now, randomPages(random))
	}
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	kind := random.IntN(4)
	if kind == 0 {
		if err := m.draft.BuildFlat(r.t.Context(), m.pages); err != nil {
			return fmt.Errorf("flat file: %w", err)
		}
	}
	if kind == 1 {
		err := m.draft.TakeState(m.state)
		m.draft.Abort()
		return err
	}
	c, err := m.write()
	if err != nil {
		return fmt.Errorf("write: %w", err)
	}
	all.add(c)
	return nil
}

// raceRestore looks at a commit's memory and its files while it has them.
func (r *rig) raceRestore(all *crowd, random *rand.Rand) error {
	c := all.any(random)
	path, release, err := r.store.Flat(r.t.Context(), c.ID)
	if fault.Is(err, fault.NotFound) && all.gone(c.ID) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	defer release()
	for range 2 {
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("a leased flat file: %w", err)
		}
		if !bytes.Equal(data, r.wanted(c.ID)) {
			return fmt.Errorf("commit %s has other memory", c.ID)
		}
		if _, err := os.Stat(r.store.DeviceState(c.ID)); err != nil {
			return fmt.Errorf("a leased device state: %w", err)
		}
	}
	if random.IntN(4) == 0 {
		return r.store.Verify(r.t.Context(), c.ID)
	}
	return nil
}
