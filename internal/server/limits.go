package server

import (
	"fmt"
	"sync"
	"time"
)

// errBusy is answered with 429.
type errBusy struct{ wait time.Duration }

func (e *errBusy) Error() string {
	return fmt.Sprintf("too many requests from this address; wait %d s", int(e.wait.Seconds())+1)
}

// limits counts calls that anybody may make, by minute. The zero value is ready.
type limits struct {
	mu     sync.Mutex
	began  time.Time // of the present minute
	counts map[string]int
}

// limitsKept bounds the memory for callers; when more than these come in one minute, all the others wait.
const limitsKept = 10000

// take counts a call under a name, or says how long to wait.
func (l *limits) take(name string, perMinute int, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if age := now.Sub(l.began); age >= time.Minute || age < 0 {
		l.began, l.counts = now, map[string]int{}
	}
	_, known := l.counts[name]
	if l.counts[name] >= perMinute || !known && len(l.counts) >= limitsKept {
		return &errBusy{wait: l.began.Add(time.Minute).Sub(now)}
	}
	l.counts[name]++
	return nil
}
