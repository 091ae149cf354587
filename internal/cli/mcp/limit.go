package mcp

import (
	"sync"
	"time"
)

// limit lets perMinute calls begin within any 60 seconds.
type limit struct {
	perMinute int // 0: any number

	mu    sync.Mutex
	begun []time.Time // of the last minute, oldest first
}

// take counts a call that begins now, or says after which time one may begin.
func (l *limit) take(now time.Time) (wait time.Duration, ok bool) {
	if l.perMinute == 0 {
		return 0, true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.begun) > 0 && now.Sub(l.begun[0]) >= time.Minute {
		l.begun = l.begun[1:]
	}
	if len(l.begun) >= l.perMinute {
		return time.Minute - now.Sub(l.begun[0]), false
	}
	l.begun = append(l.begun, now)
	return 0, true
}
