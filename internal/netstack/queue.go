package netstack

import (
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// queueBytes is how much waits for a guest that does not take frames (it is paused, or slower than we are); more
	// is lost. It is wide because a loss costs TCP far more than waiting, and it costs little: what waits is
	// mostly data that TCP keeps for repetition anyway.
	queueBytes = 8 << 20
	// queueKeep is how many places an empty queue keeps, so that an idle VM costs nothing.
	queueKeep = 256
	// queueBatch is how many frames are taken out at a time.
	queueBatch = 64
)

// queue holds the frames on their way to the guest. The stack must never wait for a guest, since it holds locks
// while it sends; so the waiting is done by a goroutine of the queue.
type queue struct {
	lower stack.LinkWriter
	done  sync.WaitGroup

	mu     sync.Mutex
	wake   sync.Cond
	frames []*stack.PacketBuffer
	bytes  int
	closed bool
}

var _ stack.QueueingDiscipline = (*queue)(nil)

func newQueue(lower stack.LinkWriter) *queue {
	q := &queue{lower: lower}
	q.wake.L = &q.mu
	q.done.Go(q.run)
	return q
}

// WritePacket takes a frame or says that there is no room.
func (q *queue) WritePacket(pkt *stack.PacketBuffer) tcpip.Error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return &tcpip.ErrClosedForSend{}
	}
	if q.bytes+pkt.Size() > queueBytes {
		return &tcpip.ErrNoBufferSpace{}
	}
	q.bytes += pkt.Size()
	q.frames = append(q.frames, pkt.IncRef())
	q.wake.Signal()
	return nil
}

// Close drops what waits and returns when nothing is being sent any more. The cable must be cut before: a guest that
// takes no frames would hold it up.
func (q *queue) Close() {
	q.mu.Lock()
	q.closed = true
	q.wake.Signal()
	q.mu.Unlock()
	q.done.Wait()
}

func (q *queue) run() {
	var batch stack.PacketBufferList
	for q.take(&batch) {
		_, _ = q.lower.WritePackets(batch)
		q.mu.Lock()
		for _, pkt := range batch.AsSlice() {
			q.bytes -= pkt.Size()
		}
		q.mu.Unlock()
		batch.Reset()
	}
}

// take waits for frames and moves the first ones into batch; false when the queue is closed.
func (q *queue) take(batch *stack.PacketBufferList) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.frames) == 0 && !q.closed {
		q.wake.Wait()
	}
	if q.closed {
		for _, pkt := range q.frames {
			pkt.DecRef()
		}
		q.frames = nil
		return false
	}
	n := min(len(q.frames), queueBatch)
	for _, pkt := range q.frames[:n] {
		batch.PushBack(pkt)
	}
	rest := copy(q.frames, q.frames[n:])
	clear(q.frames[rest:])
	q.frames = q.frames[:rest]
	if rest == 0 && cap(q.frames) > queueKeep {
		q.frames = nil
	}
	return true
}
