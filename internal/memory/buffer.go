package memory

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
)

const hugePage = 2 << 20

// buffer is memory outside the Go heap: the collector neither scans nor keeps it, and it goes back to the system at
// once. It grows by segments, so that what was copied never moves.
type buffer struct {
	segments [][]byte
	current  int // segment to take from
	used     int // bytes taken of it
}

// reserve maps and populates one more segment of at least n bytes.
func (b *buffer) reserve(n int64, workers int) error {
	n = (n + hugePage - 1) &^ (hugePage - 1)
	if available, ok := availableMemory(); ok && n > available-available/10 {
		return fault.Exhaustedf("capturing the memory of this VM needs %d MiB of host memory, %d MiB are available: stop or delete other VMs",
			n>>20, available>>20)
	}
	segment, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return fault.Exhaustedf("map %d MiB of host memory for a capture: %w", n>>20, err)
	}
	// Without huge pages everything works, only slower.
	_ = unix.Madvise(segment, unix.MADV_HUGEPAGE)
	const part = 8 * hugePage
	err = parallel(workers, int((n+part-1)/part), func(i int) error {
		return populate(segment[i*part : min((i+1)*part, len(segment))])
	})
	if err != nil {
		_ = unix.Munmap(segment)
		return fault.Exhaustedf("populate %d MiB of host memory for a capture: %w", n>>20, err)
	}
	b.segments = append(b.segments, segment)
	return nil
}

// populate makes pages present and writable, so that no page fault happens in the pause.
func populate(part []byte) error {
	err := unix.Madvise(part, unix.MADV_POPULATE_WRITE)
	if errors.Is(err, unix.EINVAL) { // before Linux 5.14
		for i := 0; i < len(part); i += PageSize {
			part[i] = 0
		}
		return nil
	}
	return err
}

// place is a piece of a buffer.
type place struct{ segment, start, end int }

// take hands out the next up to n bytes; fewer at the end of a segment, none at the end of the last.
func (b *buffer) take(n int64) place {
	for b.current < len(b.segments) {
		if free := len(b.segments[b.current]) - b.used; free > 0 {
			start := b.used
			b.used += int(min(n, int64(free)))
			return place{b.current, start, b.used}
		}
		b.current, b.used = b.current+1, 0
	}
	return place{}
}

func (b *buffer) bytes(p place) []byte { return b.segments[p.segment][p.start:p.end:p.end] }

// left says how many bytes can be taken.
func (b *buffer) left() int64 {
	var n int64
	for i := b.current; i < len(b.segments); i++ {
		n += int64(len(b.segments[i]))
	}
	return n - int64(b.used)
}

func (b *buffer) release() {
	for _, s := range b.segments {
		_ = unix.Munmap(s)
	}
	*b = buffer{}
}

// availableMemory is MemAvailable of /proc/meminfo in bytes.
func availableMemory() (int64, bool) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, false
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "MemAvailable:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
			return kib << 10, err == nil
		}
	}
	return 0, false
}

// checkMapping makes sure that a range of another process is mapped privately. In a shared mapping no page would ever
// look dirty, and a capture would silently be empty.
func checkMapping(pid int, address uintptr, size int64) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return fmt.Errorf("read mappings of process %d: %w", pid, err)
	}
	defer f.Close()
	at, end := uint64(address), uint64(address)+uint64(size)
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() && at < end {
		bounds, rest, _ := strings.Cut(lines.Text(), " ")
		low, high, _ := strings.Cut(bounds, "-")
		start, err1 := strconv.ParseUint(low, 16, 64)
		stop, err2 := strconv.ParseUint(high, 16, 64)
		if err1 != nil || err2 != nil || len(rest) < 4 {
			return fmt.Errorf("mappings of process %d: cannot read %q", pid, lines.Text())
		}
		switch {
		case stop <= at:
			continue
		case start > at:
			return fmt.Errorf("process %d has no memory at %#x: not the guest memory", pid, at)
		case rest[3] != 'p':
			return fmt.Errorf("memory of process %d at %#x is shared: its dirty pages cannot be told; start it with share=off", pid, at)
		}
		at = stop
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read mappings of process %d: %w", pid, err)
	}
	if at < end {
		return fmt.Errorf("process %d has no memory at %#x: not the guest memory", pid, at)
	}
	return nil
}
