package machine

import (
	"context"
	"time"

	"vers/internal/fault"
)

// Terms say how long a VM stays as it is. What is nil is left as it is; for a new VM: as the server says, and no end.
type Terms struct {
	SleepAfter *time.Duration // without use it falls asleep after that; 0 never
	TTL        *time.Duration // it is deleted that long from now, whatever it does; 0 never
}

const (
	minSleepAfter = 10 * time.Second // less would be below what is measured
	maxTerm       = 10 * 365 * 24 * time.Hour
)

// Check refuses times that make no sense.
func (t Terms) Check() error {
	switch {
	case t.SleepAfter != nil && (*t.SleepAfter < 0 || *t.SleepAfter > 0 && *t.SleepAfter < minSleepAfter || *t.SleepAfter > maxTerm):
		return fault.Invalidf("a VM cannot be put to sleep after %v without use: give at least %v, or 0 for never", *t.SleepAfter, minSleepAfter)
	case t.TTL != nil && (*t.TTL < 0 || *t.TTL > 0 && *t.TTL < time.Second || *t.TTL > maxTerm):
		return fault.Invalidf("a VM cannot be deleted after %v: give at least a second, or 0 for never", *t.TTL)
	}
	return nil
}

// apply writes the terms into a record, counted from now.
func (t Terms) apply(r *VM, now time.Time) {
	if t.SleepAfter != nil {
		seconds := int64((*t.SleepAfter + time.Second - 1) / time.Second)
		r.SleepAfter = &seconds
	}
	switch {
	case t.TTL == nil:
	case *t.TTL == 0:
		r.ExpiresAt = nil
	default:
		at := now.Add(*t.TTL)
		r.ExpiresAt = &at
	}
}

// SetTerms changes when a VM falls asleep and when it is deleted. It does not wake a VM that sleeps.
func (m *Manager) SetTerms(ctx context.Context, c Caller, vmID string, t Terms) error {
	if err := t.Check(); err != nil {
		return err
	}
	v, err := m.find(c, vmID)
	if err != nil {
		return err
	}
	unlock, err := v.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	v.touch() // the time without use begins anew
	return m.update(ctx, v, func(r *VM) { t.apply(r, time.Now()) })
}

// SleepsAfter says after how long without use a VM falls asleep; 0 never.
func (m *Manager) SleepsAfter(r VM) time.Duration {
	if r.SleepAfter != nil {
		return time.Duration(*r.SleepAfter) * time.Second
	}
	return m.SleepAfter
}

// Option changes what a new VM is beside what it is made of.
type Option func(*VM)

// WithTerms gives a new VM terms of its own. The caller has checked them.
func WithTerms(t Terms) Option { return func(r *VM) { t.apply(r, r.CreatedAt) } }
