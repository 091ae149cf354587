package netstack

import (
	"bytes"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// The first segment of a connection to a guest that has just been started or resumed is often lost, and TCP repeats
// it only after a second. So it is repeated here, sooner, as the same frame: the guest takes a repeated SYN for what
// it is (RFC 9293, 3.10.7.4) and no second connection comes to be, as it would with several attempts in a race.
const (
	synFirst  = 5 * time.Millisecond   // first repetition
	synSoon   = 20 * time.Millisecond  // longest pause in the first second
	synLater  = 100 * time.Millisecond // longest pause afterwards
	synSoonTo = time.Second
)

// synPause gives the pause before the next repetition, which comes elapsed after the first segment.
func synPause(last, elapsed time.Duration) time.Duration {
	if last == 0 {
		return synFirst
	}
	if elapsed < synSoonTo {
		return min(last*2, synSoon)
	}
	return min(last*2, synLater)
}

// synTable remembers the SYN frames of the connections that are being opened, by source port.
type synTable struct {
	waiting atomic.Int32 // so that note costs nothing in the common case
	mu      sync.Mutex
	frames  map[uint16][]byte
}

// expect announces that a SYN from port is to be remembered. The caller calls forget afterwards.
func (t *synTable) expect(port uint16) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.frames == nil {
		t.frames = make(map[uint16][]byte)
	}
	if _, ok := t.frames[port]; !ok {
		t.frames[port] = nil
		t.waiting.Add(1)
	}
}

func (t *synTable) forget(port uint16) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.frames[port]; ok {
		delete(t.frames, port)
		t.waiting.Add(-1)
	}
}

// frame returns the SYN sent from port, nil if there was none yet.
func (t *synTable) frame(port uint16) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.frames[port]
}

// note looks at an outgoing frame of the stack, which is well formed.
func (t *synTable) note(frame []byte) {
	if t.waiting.Load() == 0 || len(frame) < header.EthernetMinimumSize+header.IPv4MinimumSize ||
		header.Ethernet(frame).Type() != header.IPv4ProtocolNumber {
		return
	}
	ip := header.IPv4(frame[header.EthernetMinimumSize:])
	if ip.TransportProtocol() != header.TCPProtocolNumber || ip.FragmentOffset() != 0 {
		return
	}
	segment := ip[ip.HeaderLength():]
	if len(segment) < header.TCPMinimumSize ||
		header.TCP(segment).Flags()&(header.TCPFlagSyn|header.TCPFlagAck) != header.TCPFlagSyn {
		return
	}
	port := binary.BigEndian.Uint16(segment)
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.frames[port]; ok {
		t.frames[port] = bytes.Clone(frame)
	}
}
