package test

import (
	"strings"
	"testing"
)

// TestOneBootForAll: machines of a kind that come at the same time boot once; the others are restored from the first one's
// state.
func TestOneBootForAll(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	u := newUser(t, s)
	u.run(`for i in 1 2 3 4; do vers run --mem-size 192 --vm-alias vm$i --wait >out$i 2>&1 & done; wait; for i in 1 2 3 4; do vers execute vm$i hostname; done | sort -u | wc -l | grep -qx 4`)
	if n := strings.Count(s.log(), "VM booted"); n != 1 {
		t.Errorf("four machines of one kind, started at once, booted %d times", n)
	}
	u.run(`vers run --mem-size 192 --wait`)
	if n := strings.Count(s.log(), "VM booted"); n != 1 {
		t.Errorf("the fifth machine booted too")
	}
}
