package memory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Capturer takes the dirty pages of one pause. Whatever can be done while the guest runs is done by Prepare; Copy is
// what the guest waits for.
type Capturer struct {
	pid     int
	address uintptr
	size    int64
	workers int
	scan    *scanner
	mem     *os.File // /proc/<pid>/mem, for what process_vm_readv refuses
	pidfd   int      // tells that pid still is the process we prepared for
	buf     *buffer
	readv   func(pid int, local []localRange, remote []remoteRange) (int, error)
}

// The two sides of process_vm_readv.
type (
	localRange  = unix.Iovec
	remoteRange = unix.RemoteIovec
)

const (
	// unitBytes is what one worker copies with one system call: large enough to make the call's own cost vanish,
	// small enough to share the work evenly.
	unitBytes = 1 << 20
	// unitRanges is the kernel's limit of ranges per call (IOV_MAX).
	unitRanges = 1024
	// spareBytes is room for pages dirtied between Prepare and the pause, beside a tenth of those dirty already.
	spareBytes = 8 << 20
)

// Prepare looks at size bytes of private memory at address in process pid, and gets ready to copy its dirty pages:
// it allocates and populates a buffer for what is dirty now and a little more. The process goes on. The caller must
// Close the Capturer, also after Copy.
//
// It needs the right to trace the process. Errors: fault.Exhausted if the host lacks memory for the buffer.
func Prepare(pid int, address uintptr, size int64) (_ *Capturer, err error) {
	if err := checkRange(address, size); err != nil {
		return nil, err
	}
	c := &Capturer{pid: pid, address: address, size: size, workers: runtime.GOMAXPROCS(0), pidfd: -1, buf: &buffer{}, readv: readProcess}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if c.pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	if err := checkMapping(pid, address, size); err != nil {
		return nil, err
	}
	if c.scan, err = newScanner(pid, address, size); err != nil {
		return nil, err
	}
	if c.mem, err = os.Open(fmt.Sprintf("/proc/%d/mem", pid)); err != nil {
		return nil, fmt.Errorf("open memory of process %d: %w", pid, err)
	}
	dirty, err := c.scan.scan(c.workers)
	if err != nil {
		return nil, fmt.Errorf("dirty pages of process %d: %w", pid, err)
	}
	bytes := countPages(dirty, false) * PageSize
	if err := c.buf.reserve(min(bytes+bytes/10+spareBytes, size), c.workers); err != nil {
		return nil, err
	}
	return c, nil
}

// Copy copies the pages that are dirty now. The process must stand still: pages written meanwhile would be torn. It
// can be called once. Zero pages are found later, when the snapshot is used, since the guest need not wait for that.
func (c *Capturer) Copy(ctx context.Context) (*Snapshot, error) {
	if c.buf == nil {
		return nil, errors.New("capture of memory: Copy was called twice, or after Close")
	}
	dirty, err := c.scan.scan(c.workers)
	if err != nil {
		return nil, fmt.Errorf("dirty pages of process %d: %w", c.pid, err)
	}
	runs, units, err := c.layout(dirty)
	if err != nil {
		return nil, err
	}
	err = parallel(c.workers, len(units), func(i int) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return c.copyUnit(units[i])
	})
	if err != nil {
		return nil, fmt.Errorf("copy memory of process %d: %w", c.pid, err)
	}
	if !c.alive() {
		return nil, fmt.Errorf("copy memory of process %d: it ended meanwhile", c.pid)
	}
	s := &Snapshot{size: c.size, pages: countPages(dirty, true), runs: runs, buf: c.buf}
	c.buf = nil // the snapshot's from now on
	return s, nil
}

// Close gives back what Prepare allocated and Copy did not hand to a snapshot. Idempotent.
func (c *Capturer) Close() {
	if c.scan != nil {
		c.scan.close()
	}
	if c.mem != nil {
		_ = c.mem.Close()
	}
	if c.pidfd >= 0 {
		_ = unix.Close(c.pidfd)
		c.pidfd = -1
	}
	if c.buf != nil {
		c.buf.release()
		c.buf = nil
	}
}

func readProcess(pid int, local []localRange, remote []remoteRange) (int, error) {
	return unix.ProcessVMReadv(pid, local, remote, 0)
}

// alive reports whether the process of the pidfd has not ended: then pid meant that process all the time.
func (c *Capturer) alive() bool { return !c.awaitEnd(0) }

// awaitEnd waits until the process has ended, or so many milliseconds.
func (c *Capturer) awaitEnd(milliseconds int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.pidfd), Events: unix.POLLIN}}, milliseconds)
	return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
}

// unit is one system call's worth of copying: several ranges of the process into one contiguous piece of the buffer.
type unit struct {
	to   place
	from []remoteRange
}

// layout gives every dirty page its place in the buffer and cuts the work into units.
func (c *Capturer) layout(dirty []extent) ([]run, []unit, error) {
	need := countPages(dirty, false) * PageSize
	if left := c.buf.left(); need > left {
		// More is dirty than prepared for. Only the rest is allocated; a run is cut where a segment ends.
		if err := c.buf.reserve(need-left, c.workers); err != nil {
			return nil, nil, err
		}
	}
	runs := make([]run, 0, len(dirty)+1)
	remote := make([]remoteRange, 0, len(dirty)+int(need/unitBytes)+2)
	var units []unit
	var u unit
	first := 0 // of the current unit's ranges
	flush := func() {
		if u.to.end > u.to.start {
			u.from = remote[first:len(remote):len(remote)]
			units = append(units, u)
		}
		u, first = unit{}, len(remote)
	}
	for _, e := range dirty {
		if e.zero {
			runs = append(runs, run{page: e.page, count: e.count})
			continue
		}
		for e.count > 0 {
			if u.to.end-u.to.start >= unitBytes || len(remote)-first >= unitRanges {
				flush()
			}
			p := c.buf.take(min(e.count*PageSize, unitBytes-int64(u.to.end-u.to.start)))
			n := int64(p.end - p.start)
			if u.to.end > u.to.start && p.segment != u.to.segment {
				flush()
			}
			if u.to.end == u.to.start {
				u.to = p
			}
			u.to.end = p.end
			remote = append(remote, remoteRange{Base: c.address + uintptr(e.page)*PageSize, Len: int(n)})
			runs = appendRun(runs, run{page: e.page, count: n / PageSize, at: p})
			e.page, e.count = e.page+n/PageSize, e.count-n/PageSize
		}
	}
	flush()
	for i := range runs {
		if runs[i].at.end > 0 {
			runs[i].data = c.buf.bytes(runs[i].at)
		}
	}
	return runs, units, nil
}

// copyUnit copies one unit, in as many system calls as the kernel wants.
func (c *Capturer) copyUnit(u unit) error {
	to := c.buf.bytes(u.to)
	from := u.from
	for len(to) > 0 {
		local := []localRange{{Base: &to[0], Len: uint64(len(to))}}
		n, err := c.readv(c.pid, local, from)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			// The first range cannot be read this way (EFAULT), or the whole call is forbidden here (EPERM under
			// some confinements, ENOSYS). The memory file works in more cases; it was opened with its own check.
			r := from[0]
			if _, memErr := c.mem.ReadAt(to[:r.Len], int64(r.Base)); memErr != nil {
				return fmt.Errorf("%d bytes at %#x: %w", r.Len, r.Base, errors.Join(err, memErr))
			}
			n = r.Len
		}
		to = to[n:]
		// A partial copy may end inside a range.
		for n > 0 {
			if n < from[0].Len {
				from[0].Base, from[0].Len = from[0].Base+uintptr(n), from[0].Len-n
				break
			}
			n -= from[0].Len
			from = from[1:]
		}
	}
	return nil
}
