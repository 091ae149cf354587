package steps

import (
	"context"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/machine"
)

// finish makes the commit of a build's owner, unless an earlier build has made the same one, and names it.
func (b *build) finish(ctx context.Context, s *stage) error {
	b.result.Image, b.result.Tag = s.image, b.req.Tag
	// What COPY --from read is needed no more, and its memory may be.
	for _, other := range b.stages {
		if other != s {
			if err := other.release(ctx); err != nil {
				return err
			}
		}
	}
	key := s.key("commit", s.image, b.req.Ready, s.shell)
	id, err := b.madeOrCommit(ctx, s, key)
	if err != nil {
		return err
	}
	b.result.CommitID = id
	if b.req.Keep {
		if s.vm == "" {
			s.commit, s.parent = id, id
		}
		if _, err := s.live(ctx); err != nil {
			return err
		}
		b.result.BuilderVMID = b.keep(ctx)
	}
	if b.req.Tag != "" {
		return b.r.Registry.PutBuildTag(ctx, b.by, b.req.Tag, id)
	}
	return nil
}

func (b *build) madeOrCommit(ctx context.Context, s *stage, key string) (string, error) {
	settled, err := b.alone(ctx, key)
	if err != nil {
		return "", err
	}
	defer settled()
	id, err := b.made(ctx, key)
	if err != nil || id != "" {
		return id, err
	}
	return b.commit(ctx, s, key)
}

// made finds the commit that an earlier build ended in, if its owner has not deleted it.
func (b *build) made(ctx context.Context, key string) (string, error) {
	if b.req.NoCache {
		return "", nil
	}
	found, err := b.r.Catalog.BuildStep(ctx, b.by.OrgID, key, b.r.Now())
	if fault.Is(err, fault.NotFound) {
		return "", nil
	}
	b.result.Cached = err == nil
	return found.ID, err
}

func (b *build) commit(ctx context.Context, s *stage, key string) (string, error) {
	g, err := s.live(ctx)
	if err != nil {
		return "", err
	}
	if err := s.workdir(ctx, g); err != nil {
		return "", err
	}
	if b.req.Ready != "" {
		if err := s.ready(ctx, g); err != nil {
			return "", err
		}
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	name := "build-" + b.id[:8]
	if b.req.Tag != "" {
		name = b.req.Tag
	}
	image := s.image
	made, _, err := b.r.Machines.Commit(ctx, b.caller, s.vm, machine.CommitRequest{Name: name, Image: &image,
		Publish: func(ctx context.Context, tx *catalog.Tx, c catalog.Commit) error {
			return tx.PutBuildStep(ctx, c.OrgID, key, c.ID, b.r.Now())
		}})
	return made.ID, err
}

// Pauses between tries of the ready command.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = time.Second
)

// ready tries the ready command until it succeeds.
func (s *stage) ready(ctx context.Context, g Guest) error {
	limit := s.b.req.ReadyTimeout
	if limit == 0 {
		limit = defaultReady
	}
	s.b.notice("waiting until the machine is ready: " + s.b.req.Ready)
	shell, err := s.shellOf(ctx, g)
	if err != nil {
		return err
	}
	req := s.request(append(append([]string{}, shell...), s.b.req.Ready))
	end := time.Now().Add(limit)
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		var last []byte
		left := time.Until(end)
		req.TimeoutSecs = int64(left/time.Second) + 1
		stream, err := g.Exec(ctx, req)
		if err != nil {
			return err
		}
		code, err := follow(stream, func(_ string, data []byte) {
			last = append(last, data...)
			last = last[max(0, len(last)-tailLimit):]
		})
		if err != nil || code == 0 {
			return err
		}
		if time.Until(end) < pause {
			return fault.New(fault.Timeout, "the machine was not ready within %v: %q ended with %d the last time%s", limit, s.b.req.Ready, code, said(last))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

func said(tail []byte) string {
	if line := lastLine(tail); line != "" {
		return ": " + line
	}
	return ""
}
