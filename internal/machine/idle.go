package machine

import (
	"context"
	"time"

	"vers/internal/fault"
)

// One caretaker looks at all VMs, a few times a minute: those whose time is over are deleted, those that nobody has used
// for long enough are put to sleep. In use is a VM that somebody is connected to, whose guest opens connections or
// sends and receives more than a trickle, or that computes.

// careEvery is how often the caretaker looks.
const careEvery = 5 * time.Second

// What a guest does by itself while nobody uses it stays below these.
const (
	busyCPU    = 0.05 // of one CPU of the host, on average between two looks
	busyFrames = 4.0  // a second, both directions
)

// Worker is implemented by instances that can say how much CPU time of the host they have used.
type Worker interface {
	// CPUTime only rises while the process runs.
	CPUTime() (time.Duration, error)
}

// seen is what the caretaker saw of a VM at its last look.
type seen struct {
	at            time.Time
	process       Process
	cpu           time.Duration
	flows, frames uint64
}

func (m *Manager) caretaker() {
	ticker := time.NewTicker(careEvery)
	defer ticker.Stop()
	for {
		select {
		case <-m.life.Done():
			return
		case now := <-ticker.C:
			m.tend(now)
		}
	}
}

// tend looks at all VMs once.
func (m *Manager) tend(now time.Time) {
	for _, v := range m.all() {
		r := v.snapshot()
		switch {
		case r.State == string(StateCreating):
		case r.ExpiresAt != nil && !now.Before(*r.ExpiresAt):
			m.see(v, func(ctx context.Context) { m.expire(ctx, v, now) })
		case m.unused(v, r, now):
			m.see(v, func(ctx context.Context) { m.doze(ctx, v, now) })
		}
	}
}

// see does something about a VM in the background, one thing at a time.
func (m *Manager) see(v *vm, do func(ctx context.Context)) {
	v.mu.Lock()
	busy := v.tended
	v.tended = true
	v.mu.Unlock()
	if busy {
		return
	}
	m.background.Go(func() {
		defer func() {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.tended = false
		}()
		do(m.life)
	})
}

// unused says whether a VM has been without use for as long as it may be.
func (m *Manager) unused(v *vm, r VM, now time.Time) bool {
	after := m.SleepsAfter(r)
	if after == 0 || mayTakeSleep(r) != nil {
		return false
	}
	working := v.works(now)
	v.mu.Lock()
	defer v.mu.Unlock()
	if working || v.gate.inside > 0 || v.gate.used.IsZero() {
		v.gate.used = now
	}
	return !v.gate.shut && now.Sub(v.gate.used) >= after
}

// works says whether a guest has done something since the last look. Only the caretaker calls it.
func (v *vm) works(now time.Time) bool {
	live := v.live()
	if live.instance == nil {
		return false
	}
	next := seen{at: now, process: live.instance.Process()}
	if worker, ok := live.instance.(Worker); ok {
		cpu, err := worker.CPUTime()
		if err != nil {
			return false // its end is seen to by watch
		}
		next.cpu = cpu
	}
	if live.network != nil {
		t := live.network.Traffic()
		next.flows, next.frames = t.ConnectionsOut+t.ConnectionsIn, t.PacketsOut+t.PacketsIn
	}
	before := v.seen // the caretaker's own
	v.seen = next
	if before.process != next.process || next.frames < before.frames {
		return true // the first look: what it did before is not known
	}
	span := now.Sub(before.at).Seconds()
	return next.cpu-before.cpu > time.Duration(busyCPU*span*float64(time.Second)) ||
		next.flows != before.flows || float64(next.frames-before.frames) > busyFrames*span
}

// doze puts a VM to sleep that is still without use when its turn comes.
func (m *Manager) doze(ctx context.Context, v *vm, now time.Time) {
	unlock, err := v.lock(ctx)
	if err != nil {
		return
	}
	defer unlock()
	r := v.snapshot()
	if mayTakeSleep(r) != nil || !v.fallAsleep(now, m.SleepsAfter(r)) {
		return
	}
	if err := m.sleep(ctx, v); err != nil {
		m.Logger.Warn("an unused VM stays awake", "vm", r.ID, "error", err) // asked again after as long as the first time
	}
}

// fallAsleep shuts the gate unless somebody came meanwhile.
func (v *vm) fallAsleep(now time.Time, after time.Duration) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.gate.inside > 0 || after == 0 || now.Sub(v.gate.used) < after {
		return false
	}
	v.gate.shut = true
	return true
}

// expire deletes a VM whose time is over.
func (m *Manager) expire(ctx context.Context, v *vm, now time.Time) {
	unlock, err := v.lock(ctx)
	if err != nil {
		return
	}
	defer unlock()
	r := v.snapshot()
	if r.ExpiresAt == nil || now.Before(*r.ExpiresAt) || r.BuildID != "" {
		return // it was given more time
	}
	if err := m.remove(ctx, v); err != nil && !fault.Is(err, fault.NotFound) {
		m.Logger.Error("VM whose time is over is not deleted", "vm", r.ID, "error", err)
		return
	}
	m.Logger.Info("VM deleted: its time is over", "vm", r.ID, "expired", *r.ExpiresAt)
}
