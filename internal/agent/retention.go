package agent

import (
	"context"
	"sort"
	"sync"
	"time"

	"vers/internal/fault"
	"vers/internal/guest"
)

// What is kept of each command's output.
const (
	keepBytes  = 1 << 20 // newest output of one command
	keepChunks = 1 << 16 // the same, for commands that write single bytes
	joinBelow  = 4 << 10 // small pieces that nobody has seen yet are joined up to this size
)

// chunk is a kept piece of output.
type chunk struct {
	guest.Chunk
	offset int64 // of its first byte, among the output of all commands
}

// execution is a command, running or finished, with its newest output.
type execution struct {
	id    string
	table *table

	mu        sync.Mutex
	proc      *process // nil if it could not be started
	chunks    []chunk  // oldest first
	size      int      // bytes in chunks
	next      int64    // cursor of the next chunk
	handed    int64    // highest cursor that a reader has been given
	exit      *guest.Exit
	ended     time.Time // when exit was set, for retention: runs on when the wall clock is stepped
	readers   map[*reader]struct{}
	waiting   chan struct{} // closed at the next change; nil if nobody waits
	forgotten bool          // evicted: later output goes nowhere
}

// reader is an attached consumer. Output that it has not taken is not dropped.
type reader struct {
	pos  int64 // everything up to this cursor is done with
	last int64 // given out by the latest next
}

// changed wakes everybody who waits. The caller holds e.mu.
func (e *execution) changed() {
	if e.waiting != nil {
		close(e.waiting)
		e.waiting = nil
	}
}

// wait gives a channel that is closed at the next change. The caller holds e.mu.
func (e *execution) wait() <-chan struct{} {
	if e.waiting == nil {
		e.waiting = make(chan struct{})
	}
	return e.waiting
}

// append keeps a copy of data. It waits while an attached reader has not taken what would have to go.
func (e *execution) append(stream string, data []byte) {
	e.mu.Lock()
	for !e.forgotten && !e.makeRoom(len(data)) {
		change := e.wait()
		e.mu.Unlock()
		<-change
		e.mu.Lock()
	}
	defer e.mu.Unlock()
	if e.forgotten || len(data) == 0 {
		return
	}
	e.table.place(len(data), func(offset int64) {
		if e.join(stream, data, offset) {
			return
		}
		e.chunks = append(e.chunks, chunk{
			Chunk:  guest.Chunk{Stream: stream, Cursor: e.next, Time: time.Now(), Data: append([]byte(nil), data...)},
			offset: offset,
		})
		e.next++
		e.table.use(chunkOverhead)
	})
	e.size += len(data)
	e.table.use(len(data))
	e.changed()
}

// join adds data to the last chunk if that is small and unseen, and directly before it in time.
func (e *execution) join(stream string, data []byte, offset int64) bool {
	if len(e.chunks) == 0 {
		return false
	}
	last := &e.chunks[len(e.chunks)-1]
	if last.Cursor <= e.handed || last.Stream != stream || last.offset+int64(len(last.Data)) != offset ||
		len(last.Data)+len(data) > joinBelow {
		return false
	}
	last.Data = append(last.Data, data...)
	return true
}

// makeRoom drops the oldest chunks until n more bytes fit, and reports whether they do now.
func (e *execution) makeRoom(n int) bool {
	for len(e.chunks) > 0 && (e.size+n > keepBytes+guest.MaxChunk || len(e.chunks) >= keepChunks) {
		oldest := e.chunks[0]
		for r := range e.readers {
			if r.pos < oldest.Cursor {
				return false
			}
		}
		e.size -= len(oldest.Data)
		e.table.use(-len(oldest.Data) - chunkOverhead)
		e.chunks[0] = chunk{}
		e.chunks = e.chunks[1:]
	}
	return true
}

// attach adds a reader of everything after cursor.
func (e *execution) attach(cursor int64) *reader {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := &reader{pos: cursor, last: cursor}
	e.readers[r] = struct{}{}
	return r
}

// latest is the cursor of the newest output, for a reader that wants only what comes.
func (e *execution) latest() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.exit != nil {
		return e.exit.Cursor - 1
	}
	return e.next - 1
}

// detach removes a reader.
func (e *execution) detach(r *reader) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.readers, r)
	e.changed()
}

// read waits for the next chunk or the exit; ok is false when done was closed first. A call says that the chunk
// before is done with.
func (e *execution) read(done <-chan struct{}, r *reader) (c guest.Chunk, exit *guest.Exit, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if r.pos != r.last {
		r.pos = r.last
		e.changed()
	}
	for {
		if found := e.after(r.pos); found != nil && (e.exit == nil || found.Cursor < e.exit.Cursor) {
			r.last = found.Cursor
			e.handed = max(e.handed, found.Cursor)
			return found.Chunk, nil, true
		}
		if e.exit != nil {
			return c, e.exit, true
		}
		change := e.wait()
		e.mu.Unlock()
		select {
		case <-change:
			e.mu.Lock()
		case <-done:
			e.mu.Lock()
			return c, nil, false
		}
	}
}

// after finds the oldest chunk with a higher cursor.
func (e *execution) after(cursor int64) *chunk {
	i := sort.Search(len(e.chunks), func(i int) bool { return e.chunks[i].Cursor > cursor })
	if i == len(e.chunks) {
		return nil
	}
	return &e.chunks[i]
}

// finish notes the exit. The record stays until the table needs its place.
func (e *execution) finish(code int) {
	e.mu.Lock()
	e.exit = &guest.Exit{Code: code, Cursor: e.next, Time: time.Now()}
	e.ended = time.Now()
	e.next++
	e.proc = nil
	e.changed()
	e.mu.Unlock()
	e.table.finished(e)
}

// forget gives all memory back. Readers end with what they have.
func (e *execution) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.table.use(-e.size - len(e.chunks)*chunkOverhead - recordOverhead)
	e.chunks, e.size, e.forgotten = nil, 0, true
	e.changed()
}

// begun waits until a command has been started and gives its process; nil if that could not be, or the command has ended.
func (e *execution) begun(ctx context.Context) (*process, error) {
	for {
		e.mu.Lock()
		p, over, changed := e.proc, e.exit != nil || e.forgotten, e.wait()
		e.mu.Unlock()
		if p != nil || over {
			return p, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fault.New(fault.Timeout, "command %s has not started yet: %w", e.id, ctx.Err())
		}
	}
}

// running gives the process of a running command.
func (e *execution) running() *process {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.proc
}
