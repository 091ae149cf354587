package memory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PageSize is the unit of dirtiness and of every offset in this package. Hosts with other page sizes are refused by
// Prepare: a page map entry would not mean one of our pages.
const PageSize = 4096

// extent is a run of dirty pages. zero means the kernel maps its zero page there, so nothing need be copied.
type extent struct {
	page, count int64
	zero        bool
}

// Bits of a /proc/<pid>/pagemap entry (Documentation/admin-guide/mm/pagemap.rst).
const (
	pagemapFile    = 1 << 61 // page of a file, or shared
	pagemapSwapped = 1 << 62
	pagemapPresent = 1 << 63
)

// dirtyEntry is the rule of design.md 2.1: in a private mapping, a page is the process's own when it is anonymous, be
// it in memory or swapped out. Pages still shared with the file are present with the file bit, or not present at all.
func dirtyEntry(e uint64) bool {
	return e&pagemapSwapped != 0 || e&pagemapPresent != 0 && e&pagemapFile == 0
}

// The PAGEMAP_SCAN ioctl of Linux 6.7 and later (include/uapi/linux/fs.h); golang.org/x/sys does not have it.
const (
	pagemapScan = 0xc0606610 // _IOWR('f', 16, struct pm_scan_arg)

	scanFile    = 1 << 2
	scanPresent = 1 << 3
	scanSwapped = 1 << 4
	scanZero    = 1 << 5

	scanRegions = 4096 // regions fetched by one call
)

// scanArg is struct pm_scan_arg.
type scanArg struct {
	size, flags, start, end, walkEnd uint64

	vec                                                       unsafe.Pointer
	vecLen, maxPages                                          uint64
	categoryInverted, categoryMask, categoryAny, returnedMask uint64
}

// scanRegion is struct page_region.
type scanRegion struct{ start, end, categories uint64 }

// scanner finds the dirty pages of one mapping. The open page map pins the address space, so a scan can never see
// another process that got the same pid.
type scanner struct {
	pagemap *os.File
	address uint64
	pages   int64
	slow    atomic.Bool // the kernel has no PAGEMAP_SCAN
}

func newScanner(pid int, address uintptr, size int64) (*scanner, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, fmt.Errorf("read page map of process %d: %w", pid, err)
	}
	return &scanner{pagemap: f, address: uint64(address), pages: size / PageSize}, nil
}

func (s *scanner) close() { _ = s.pagemap.Close() }

// scanChunk is how many pages one worker scans at a time: 64 MiB.
const scanChunk = 64 << 20 / PageSize

// scan lists the dirty pages in ascending order, neighbours merged.
func (s *scanner) scan(workers int) ([]extent, error) {
	chunks := int((s.pages + scanChunk - 1) / scanChunk)
	found := make([][]extent, chunks)
	err := parallel(min(workers, chunks), chunks, func(i int) error {
		from := int64(i) * scanChunk
		var err error
		found[i], err = s.scanRange(from, min(from+scanChunk, s.pages))
		return err
	})
	if err != nil {
		return nil, err
	}
	var all []extent
	for _, part := range found {
		for _, e := range part {
			all = appendExtent(all, e)
		}
	}
	return all, nil
}

func (s *scanner) scanRange(from, to int64) ([]extent, error) {
	if !s.slow.Load() {
		list, err := s.scanFast(from, to)
		if !errors.Is(err, unix.ENOTTY) {
			return list, err
		}
		s.slow.Store(true)
	}
	return s.scanSlow(from, to)
}

func (s *scanner) scanFast(from, to int64) ([]extent, error) {
	var list []extent
	regions := make([]scanRegion, scanRegions)
	arg := scanArg{
		size: uint64(unsafe.Sizeof(scanArg{})),
		vec:  unsafe.Pointer(&regions[0]), vecLen: scanRegions,
		// Present or swapped, and not of the file. The zero page is reported apart; in a mapping of a file it is
		// dirty as well, since KSM may have put it where the guest wrote zeroes.
		categoryInverted: scanFile, categoryMask: scanFile, categoryAny: scanPresent | scanSwapped,
		returnedMask: scanZero,
	}
	end := s.address + uint64(to)*PageSize
	for start := s.address + uint64(from)*PageSize; start < end; {
		arg.start, arg.end, arg.walkEnd = start, end, 0
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, s.pagemap.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg)))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return nil, fmt.Errorf("scan page map at %#x: %w", start, errno)
		}
		if n == 0 {
			break
		}
		for _, r := range regions[:n] {
			list = appendExtent(list, extent{
				page: int64((r.start - s.address) / PageSize), count: int64((r.end - r.start) / PageSize),
				zero: r.categories&scanZero != 0,
			})
		}
		// The kernel walks in steps of 512 regions and, when the last step reaches the end, leaves walk_end where the
		// step before it ended (seen in Linux 6.18): going on from there would find pages twice.
		start = max(arg.walkEnd, regions[n-1].end)
	}
	return list, nil
}

func (s *scanner) scanSlow(from, to int64) ([]extent, error) {
	var list []extent
	buf := make([]byte, 8*min(to-from, 32768))
	for page := from; page < to; {
		n := min(to-page, int64(len(buf)/8))
		part := buf[:8*n]
		at := (int64(s.address)/PageSize + page) * 8
		if _, err := s.pagemap.ReadAt(part, at); err != nil {
			return nil, fmt.Errorf("read page map at %#x: %w", s.address+uint64(page)*PageSize, err)
		}
		for i := range n {
			if dirtyEntry(binary.NativeEndian.Uint64(part[8*i:])) {
				list = appendExtent(list, extent{page: page + i, count: 1})
			}
		}
		page += n
	}
	return list, nil
}

// appendExtent adds e, which lies behind all others, and merges it with its neighbour of the same kind.
func appendExtent(list []extent, e extent) []extent {
	if n := len(list); n > 0 && list[n-1].zero == e.zero && list[n-1].page+list[n-1].count == e.page {
		list[n-1].count += e.count
		return list
	}
	return append(list, e)
}

// countPages sums the pages of extents; withZero includes those that map the zero page.
func countPages(list []extent, withZero bool) int64 {
	var n int64
	for _, e := range list {
		if withZero || !e.zero {
			n += e.count
		}
	}
	return n
}

// PrivateBytes says how much of a private mapping of another process is its own: anonymous pages, present or swapped
// out. Pages that map the kernel's zero page cost nothing and are not counted where the kernel can tell.
func PrivateBytes(pid int, address uintptr, size int64) (int64, error) {
	if err := checkRange(address, size); err != nil {
		return 0, err
	}
	s, err := newScanner(pid, address, size)
	if err != nil {
		return 0, err
	}
	defer s.close()
	list, err := s.scan(1)
	if err != nil {
		return 0, fmt.Errorf("private memory of process %d: %w", pid, err)
	}
	return countPages(list, false) * PageSize, nil
}

func checkRange(address uintptr, size int64) error {
	if os.Getpagesize() != PageSize {
		return fmt.Errorf("this host has pages of %d bytes; guest memory can only be captured on hosts with pages of %d", os.Getpagesize(), PageSize)
	}
	if size <= 0 || size%PageSize != 0 || address%PageSize != 0 {
		return fmt.Errorf("memory range %#x+%d is not made of whole pages", address, size)
	}
	return nil
}

// parallel calls do(0) to do(n-1) on several goroutines and returns the first error. After an error no new call
// begins.
func parallel(workers, n int, do func(i int) error) error {
	if workers <= 1 || n <= 1 {
		for i := range n {
			if err := do(i); err != nil {
				return err
			}
		}
		return nil
	}
	var (
		next  atomic.Int64
		once  sync.Once
		first error
		group sync.WaitGroup
	)
	work := func() {
		for {
			i := int(next.Add(1)) - 1
			if i >= n {
				return
			}
			if err := do(i); err != nil {
				once.Do(func() { first = err })
				next.Store(int64(n))
				return
			}
		}
	}
	for range workers - 1 {
		group.Go(work)
	}
	work()
	group.Wait()
	return first
}
