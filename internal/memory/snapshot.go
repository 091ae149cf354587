package memory

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"sync"
)

// Snapshot is the dirty memory of one instant: pages with data, and pages that are zero now whatever they were in the
// base. The caller must Release it. It may be read by several goroutines.
type Snapshot struct {
	size  int64
	pages int64
	runs  []run   // ascending, apart; use classified
	buf   *buffer // what runs point into; nil for NewSnapshot

	sortZeroes sync.Once
}

// run is consecutive pages. data is nil if all of them are zero.
type run struct {
	page, count int64
	data        []byte
	at          place // while a capture is laid out
}

// appendRun adds a run behind the others and merges it with its neighbour if their data are neighbours as well.
func appendRun(runs []run, r run) []run {
	if n := len(runs); n > 0 {
		last := &runs[n-1]
		if last.page+last.count == r.page && last.at.segment == r.at.segment && last.at.end == r.at.start && r.at.end > 0 {
			last.count, last.at.end = last.count+r.count, r.at.end
			return runs
		}
	}
	return append(runs, r)
}

// NewSnapshot makes a snapshot of guest memory of size bytes from pages of PageSize bytes by page number; a nil page is
// zero. For drivers that keep their memory elsewhere than in a process, such as the fake.
func NewSnapshot(size int64, pages map[int64][]byte) *Snapshot {
	numbers := make([]int64, 0, len(pages))
	for n := range pages {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	s := &Snapshot{size: size, pages: int64(len(pages))}
	for _, n := range numbers {
		r := run{page: n, count: 1}
		if pages[n] != nil {
			r.data = make([]byte, PageSize)
			copy(r.data, pages[n])
		}
		s.runs = append(s.runs, r)
	}
	return s
}

// Size is the size of the guest's memory in bytes.
func (s *Snapshot) Size() int64 { return s.size }

// Pages is the number of dirty pages, zero ones included.
func (s *Snapshot) Pages() int { return int(s.pages) }

// Bytes is the size of the dirty pages that are not zero.
func (s *Snapshot) Bytes() int64 {
	var n int64
	for _, r := range s.classified() {
		if r.data != nil {
			n += r.count
		}
	}
	return n * PageSize
}

// Range calls fn for every dirty page in ascending order, zero pages included. data has PageSize bytes, is only valid
// during the call, and must not be changed. Range ends with fn's first error.
func (s *Snapshot) Range(fn func(page int64, data []byte) error) error {
	zero := make([]byte, PageSize)
	for _, r := range s.classified() {
		for i := range r.count {
			data := zero
			if r.data != nil {
				data = r.data[i*PageSize : (i+1)*PageSize]
			}
			if err := fn(r.page+i, data); err != nil {
				return err
			}
		}
	}
	return nil
}

// Release returns the memory to the system. The snapshot is empty afterwards. Idempotent.
func (s *Snapshot) Release() {
	if s == nil {
		return
	}
	s.sortZeroes.Do(func() {}) // whoever uses it now finds nothing
	s.runs, s.pages = nil, 0
	if s.buf != nil {
		s.buf.release()
		s.buf = nil
	}
}

// classified gives the runs with zero pages split off. It is done once, on first use and not in the pause.
func (s *Snapshot) classified() []run {
	s.sortZeroes.Do(func() {
		workers := runtime.GOMAXPROCS(0)
		// Pieces of similar size, in order, so that the parts can be put together again.
		var pieces []run
		for _, r := range s.runs {
			for r.count > scanPiece && r.data != nil {
				pieces = append(pieces, run{page: r.page, count: scanPiece, data: r.data[:scanPiece*PageSize]})
				r = run{page: r.page + scanPiece, count: r.count - scanPiece, data: r.data[scanPiece*PageSize:]}
			}
			pieces = append(pieces, r)
		}
		parts := (len(pieces) + piecesPerPart - 1) / piecesPerPart
		found := make([][]run, parts)
		_ = parallel(workers, parts, func(i int) error {
			for _, r := range pieces[i*piecesPerPart : min((i+1)*piecesPerPart, len(pieces))] {
				found[i] = splitZeroes(found[i], r)
			}
			return nil
		})
		var runs []run
		for _, part := range found {
			for _, r := range part {
				runs = mergeRun(runs, r)
			}
		}
		s.runs = runs
	})
	return s.runs
}

const (
	scanPiece     = 1 << 20 / PageSize
	piecesPerPart = 8
)

// splitZeroes appends r to runs, cut where pages with data and zero pages meet.
func splitZeroes(runs []run, r run) []run {
	if r.data == nil {
		return mergeRun(runs, r)
	}
	for i := range r.count {
		page := run{page: r.page + i, count: 1}
		if data := r.data[i*PageSize : (i+1)*PageSize]; !isZero(data) {
			page.data = data
		}
		runs = mergeRun(runs, page)
	}
	return runs
}

// mergeRun appends r and merges it with its neighbour: both zero, or with data side by side in memory.
func mergeRun(runs []run, r run) []run {
	n := len(runs)
	if n == 0 || runs[n-1].page+runs[n-1].count != r.page {
		return append(runs, r)
	}
	last := &runs[n-1]
	switch {
	case last.data == nil && r.data == nil:
		last.count += r.count
	case last.data != nil && r.data != nil && follows(last.data, r.data):
		last.data = last.data[:len(last.data)+len(r.data)]
		last.count += r.count
	default:
		return append(runs, r)
	}
	return runs
}

// follows reports whether b begins where a ends, in the same allocation.
func follows(a, b []byte) bool {
	return cap(a) >= len(a)+len(b) && &a[:len(a)+1][len(a)] == &b[0]
}

// zeroPage is compared with, never written.
var zeroPage [PageSize]byte

func isZero(page []byte) bool { return bytes.Equal(page, zeroPage[:len(page)]) }

// check finds out before a file is written that a snapshot is in order and fits it.
func (s *Snapshot) check(size int64) error {
	if s.size != size {
		return fmt.Errorf("snapshot of %d bytes of memory does not fit a file for %d bytes", s.size, size)
	}
	var next int64
	for _, r := range s.classified() {
		if r.page < next || r.count <= 0 || r.page > size/PageSize-r.count {
			return fmt.Errorf("snapshot has %d pages at page %d, behind page %d and of %d", r.count, r.page, next, size/PageSize)
		}
		next = r.page + r.count
	}
	return nil
}
