package netstack

import (
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"vers/internal/egress"
)

// refusalsKept is how many refusals are shown.
const refusalsKept = 50

// refusals remembers the latest refusals and writes some of them into the log: a guest that tries a thousand addresses
// does not fill it.
type refusals struct {
	log   *slog.Logger
	lines *rate.Limiter

	mu       sync.Mutex
	latest   []egress.Refusal // the oldest first
	unlogged uint64           // since the last line
}

func (r *refusals) add(protocol, destination string, reason error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	text := reason.Error()
	same := func(e egress.Refusal) bool {
		return e.Protocol == protocol && e.Destination == destination && e.Reason == text
	}
	e := egress.Refusal{Time: now, Protocol: protocol, Destination: destination, Reason: text, Count: 1}
	if i := slices.IndexFunc(r.latest, same); i >= 0 {
		e.Count += r.latest[i].Count
		r.latest = slices.Delete(r.latest, i, i+1)
	} else if len(r.latest) >= refusalsKept {
		r.latest = slices.Delete(r.latest, 0, 1)
	}
	r.latest = append(r.latest, e)
	if !r.lines.AllowN(now, 1) {
		r.unlogged++
		return
	}
	r.log.Info("egress refused", "protocol", protocol, "destination", destination, "reason", text, "not_logged_before", r.unlogged)
	r.unlogged = 0
}

func (r *refusals) list() []egress.Refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := slices.Clone(r.latest)
	slices.Reverse(list)
	return list
}
