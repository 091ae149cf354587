package steps

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"time"

	"golang.org/x/sys/unix"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/machine"
)

// keyVersion is part of every key: another one where the same step is carried out in another way.
const keyVersion = 1

// key identifies the outcome of a step: the state before it, the step itself with all that shapes it, and where it runs.
func (s *stage) key(parts ...any) string {
	data, err := json.Marshal(struct {
		Version       int
		Parent        string
		Step          []any
		Env, Args     []string
		Workdir, User string
	}{keyVersion, s.identity, parts, list(s.env), list(s.args), s.image.WorkingDir, s.image.User})
	if err != nil {
		panic(err) // strings, numbers and lists of them
	}
	return hexOf(sha256.Sum256(data))
}

// hit makes the known outcome of a step the stage's state, if there is one.
func (s *stage) hit(ctx context.Context, key string) (bool, error) {
	if s.b.req.NoCache {
		return false, nil
	}
	found, err := s.b.r.Catalog.BuildStep(ctx, s.b.by.OrgID, key, s.b.r.Now())
	if fault.Is(err, fault.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	release, err := s.b.r.Machines.HoldCommit(ctx, s.b.caller, found.ID)
	if fault.Is(err, fault.NotFound) {
		return false, nil // collected just now
	}
	if err != nil {
		return false, err
	}
	s.advance(found.ID, release)
	s.b.result.Steps++
	s.b.result.CachedSteps++
	s.b.tell(EventCached, func(e *Event) { e.Commit = found.ID })
	return true, s.release(ctx) // a VM would be in the state before
}

// cached takes the outcome of a step from an earlier build, or carries the step out and keeps what comes of it under all
// keys. Builds that come to the same step at the same time wait for the first.
func (s *stage) cached(ctx context.Context, keys []string, work func(ctx context.Context, g Guest) error) (hit bool, err error) {
	settled, err := s.b.alone(ctx, keys[0])
	if err != nil {
		return false, err
	}
	defer settled()
	for n, key := range keys {
		if hit, err := s.hit(ctx, key); hit || err != nil {
			return hit, s.remember(ctx, err, append(keys[:n:n], keys[n+1:]...))
		}
	}
	began := time.Now()
	g, err := s.live(ctx)
	if err == nil {
		err = s.workdir(ctx, g)
	}
	if err == nil {
		err = work(ctx, g)
	}
	if err != nil {
		return false, err
	}
	id, err := s.commitStep(ctx, keys)
	if err != nil {
		return false, err
	}
	s.b.result.Steps++
	s.b.tell(EventDone, func(e *Event) { e.Commit, e.Took = id, time.Since(began) })
	return false, nil
}

// remember gives the stage's state more keys.
func (s *stage) remember(ctx context.Context, err error, keys []string) error {
	for _, key := range keys {
		if err == nil {
			err = s.b.r.Catalog.PutBuildStep(ctx, s.b.by.OrgID, key, s.commit, s.b.r.Now())
		}
	}
	return err
}

// commitStep takes the commit after a step.
func (s *stage) commitStep(ctx context.Context, keys []string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	made, _, err := s.b.r.Machines.Commit(ctx, s.b.caller, s.vm, machine.CommitRequest{Step: true, Name: "step of build " + s.b.id[:8],
		Publish: func(ctx context.Context, tx *catalog.Tx, c catalog.Commit) error {
			for _, key := range keys {
				if err := tx.PutBuildStep(ctx, c.OrgID, key, c.ID, s.b.r.Now()); err != nil {
					return err
				}
			}
			return nil
		}})
	if err != nil {
		return "", err
	}
	release, err := s.b.r.Machines.HoldCommit(ctx, s.b.caller, made.ID)
	if err != nil {
		return "", err
	}
	s.advance(made.ID, release)
	return made.ID, nil
}

// alone waits until no other build makes what a key stands for, and keeps others waiting until settled is called. Builds
// that use nothing of others do not wait for them.
func (b *build) alone(ctx context.Context, key string) (settled func(), err error) {
	if b.req.NoCache {
		return func() {}, nil
	}
	for {
		settled, pending := b.r.claim(b.by.OrgID + " " + key)
		if pending == nil {
			return settled, nil
		}
		b.notice("another build is at the same step: waiting for its outcome")
		select {
		case <-pending:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// claim notes that the caller carries a step out, until settled is called. Where somebody else does, pending is closed when
// that has come to an end, and settled does nothing.
func (r *Runner) claim(key string) (settled func(), pending <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if pending, ok := r.making[key]; ok {
		return func() {}, pending
	}
	done := make(chan struct{})
	r.making[key] = done
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.making, key)
		close(done)
	}, nil
}

// trimSoon asks for the cache to be trimmed when there is time.
func (r *Runner) trimSoon() {
	select {
	case r.trim <- struct{}{}:
	default:
	}
}

// lowDisk is how little room there may be on the disk before all steps are given up, in bytes.
const lowDisk = 2 << 30

// budget is what the steps of an organisation may take.
func (r *Runner) budget() int64 {
	var fs unix.Statfs_t
	if r.Dir != "" && unix.Statfs(r.Dir, &fs) == nil && int64(fs.Bavail)*fs.Bsize < lowDisk {
		return 0
	}
	return r.CacheBytes
}

// Trim gives up steps that no build has used for long, and the least recently used ones of organisations whose steps take too
// much of the disk.
func (r *Runner) Trim(ctx context.Context) error {
	if err := r.Machines.MeasureCommits(ctx); err != nil {
		return err
	}
	steps, err := r.Catalog.CachedSteps(ctx)
	if err != nil {
		return err
	}
	taken := map[string]int64{}
	for _, s := range steps {
		taken[s.OrgID] += s.Bytes
	}
	budget, forgotten := r.budget(), 0
	for _, s := range steps {
		if !s.Unused && r.Now().Sub(s.UsedAt) <= r.CacheAge && taken[s.OrgID] <= budget {
			continue
		}
		taken[s.OrgID] -= s.Bytes
		if err := r.Catalog.InTx(ctx, func(tx *catalog.Tx) error { return tx.ForgetStep(ctx, s.CommitID) }); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		forgotten++
	}
	if forgotten > 0 {
		r.Logger.Info("steps of builds forgotten", "steps", forgotten)
		r.Machines.CollectSoon()
	}
	return nil
}
