package agent

import (
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"vers/internal/fault"
	"vers/internal/guest"
)

// How long and how much is kept of all commands.
const (
	keepFinished   = time.Hour
	recordOverhead = 2 << 10 // memory of a record beside its output, estimated
	chunkOverhead  = 96
	logPage        = 1 << 20 // bytes of output in one page of logs
)

// table holds all commands that run or whose output is still kept.
type table struct {
	budget int64 // bytes; finished commands go when more is used
	used   atomic.Int64

	placing sync.Mutex
	offset  int64 // bytes of output of all commands so far

	mu   sync.Mutex
	byID map[string]*execution
	done []*execution // finished, oldest first
}

func newTable(budget int64) *table {
	return &table{budget: budget, byID: map[string]*execution{}}
}

// use counts memory.
func (t *table) use(n int) { t.used.Add(int64(n)) }

// place gives add the offset for n bytes of output.
func (t *table) place(n int, add func(offset int64)) {
	t.placing.Lock()
	defer t.placing.Unlock()
	add(t.offset)
	t.offset += int64(n)
}

// create makes a record for a new command.
func (t *table) create(id string) (*execution, error) {
	t.sweep()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID[id] != nil {
		return nil, fault.Conflictf("a command with exec id %s exists already in this VM: choose another id, or attach to it", id)
	}
	e := &execution{id: id, table: t, next: 1, readers: map[*reader]struct{}{}}
	t.byID[id] = e
	t.use(recordOverhead)
	return e, nil
}

// find looks a command up.
func (t *table) find(id string) (*execution, error) {
	t.sweep()
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.byID[id]
	if e == nil {
		return nil, fault.NotFoundf("no command with exec id %q in this VM: it was never started here, or ended so long ago that its output is gone", id)
	}
	return e, nil
}

// running lists the processes of commands that have not ended.
func (t *table) running() []*process {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*process
	for _, e := range t.byID {
		if p := e.running(); p != nil {
			all = append(all, p)
		}
	}
	return all
}

// finished queues a command for eviction.
func (t *table) finished(e *execution) {
	t.mu.Lock()
	t.done = append(t.done, e)
	t.mu.Unlock()
	t.sweep()
}

// sweep evicts finished commands, oldest first, that are too old or too much.
func (t *table) sweep() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.done) > 0 && (t.used.Load() > t.budget || time.Since(t.done[0].ended) > keepFinished) {
		e := t.done[0]
		t.done[0] = nil
		t.done = t.done[1:]
		delete(t.byID, e.id)
		e.forget()
	}
}

// logs collects output of all commands in time order, starting at an offset.
func (t *table) logs(req guest.LogsRequest) guest.Logs {
	t.placing.Lock()
	end := t.offset
	t.placing.Unlock()
	t.mu.Lock()
	all := make([]*execution, 0, len(t.byID))
	for _, e := range t.byID {
		all = append(all, e)
	}
	t.mu.Unlock()

	type piece struct {
		chunk
		id string
	}
	var pieces []piece
	for _, e := range all {
		e.mu.Lock()
		for _, c := range e.chunks {
			if c.offset < end && c.offset+int64(len(c.Data)) > req.Offset {
				pieces = append(pieces, piece{c, e.id})
			}
		}
		e.mu.Unlock()
	}
	sort.Slice(pieces, func(i, j int) bool { return pieces[i].offset < pieces[j].offset })

	logs := guest.Logs{Entries: []guest.LogEntry{}, NextOffset: max(req.Offset, end), EOF: true}
	size := 0
	for _, p := range pieces {
		if req.Stream != "" && p.Stream != req.Stream {
			continue
		}
		data := p.Data[:min(int64(len(p.Data)), end-p.offset)] // a chunk may have grown since
		if skip := req.Offset - p.offset; skip > 0 {
			data = data[skip:]
		}
		full := req.MaxEntries > 0 && len(logs.Entries) == req.MaxEntries
		if full || len(logs.Entries) > 0 && size+len(data) > logPage {
			logs.NextOffset, logs.EOF = max(req.Offset, p.offset), false
			break
		}
		size += len(data)
		logs.Entries = append(logs.Entries, guest.LogEntry{Time: p.Time, Stream: p.Stream, Data: data, ExecID: p.id})
	}
	return logs
}
