package memory

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestDirtyEntry(t *testing.T) {
	for _, c := range []struct {
		name  string
		entry uint64
		dirty bool
	}{
		{"never touched", 0, false},
		{"page of the file", pagemapPresent | pagemapFile, false},
		{"own page", pagemapPresent, true},
		{"own page, written, with frame number", pagemapPresent | 1<<55 | 12345, true},
		{"swapped out", pagemapSwapped | 7, true},
		{"swap entry of something in migration", pagemapSwapped | pagemapFile, true},
		{"soft-dirty bit alone", 1 << 55, false},
		{"file bit alone", pagemapFile, false},
	} {
		if got := dirtyEntry(c.entry); got != c.dirty {
			t.Errorf("%s: dirty %v", c.name, got)
		}
	}
}

// flatFile makes a file of pages with the pattern of seed 1 in data and holes elsewhere.
func flatFile(t testing.TB, dir, name string, pages int64, data ...span) string {
	t.Helper()
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(pages*PageSize))
	for _, s := range data {
		buf := make([]byte, (s.end-s.start)*PageSize)
		for p := s.start; p < s.end; p++ {
			pattern(buf[(p-s.start)*PageSize:][:PageSize], p, 1)
		}
		_, err := f.WriteAt(buf, s.start*PageSize)
		must(t, err)
	}
	return path
}

// pagesOf gives the page numbers of a snapshot by what they hold: zero or the pattern of a seed.
func pagesOf(t testing.TB, s *Snapshot, seeds ...int64) (zero []int64, bySeed map[int64][]int64) {
	t.Helper()
	bySeed = map[int64][]int64{}
	want := make([]byte, PageSize)
	must(t, s.Range(func(page int64, data []byte) error {
		if isZero(data) {
			zero = append(zero, page)
			return nil
		}
		for _, seed := range seeds {
			if pattern(want, page, seed); bytes.Equal(want, data) {
				bySeed[seed] = append(bySeed[seed], page)
				return nil
			}
		}
		t.Errorf("page %d holds neither zeroes nor a pattern", page)
		return nil
	}))
	return zero, bySeed
}

func numbers(from, to, step int64) (list []int64) {
	for ; from < to; from += step {
		list = append(list, from)
	}
	return list
}

// scanners runs a test with PAGEMAP_SCAN and with plain page map reads.
func scanners(t *testing.T, test func(t *testing.T, slow bool)) {
	t.Run("scan", func(t *testing.T) { test(t, false) })
	t.Run("read", func(t *testing.T) { test(t, true) })
}

func (c *child) captureWith(slow bool) *Snapshot {
	c.t.Helper()
	capturer, err := Prepare(c.pid, c.address, c.size)
	must(c.t, err)
	defer capturer.Close()
	capturer.scan.slow.Store(slow)
	defer c.stop()()
	s, err := capturer.Copy(context.Background())
	must(c.t, err)
	c.t.Cleanup(s.Release)
	return s
}

// Only what the process wrote is dirty, not what it read of the file; a page it zeroed is dirty and zero.
func TestCapturePrivateFile(t *testing.T) {
	scanners(t, func(t *testing.T, slow bool) {
		base := flatFile(t, t.TempDir(), "base.ram", 4096, span{0, 1000}, span{3000, 3010})
		c := startChild(t, 4096*PageSize, base, "-")
		if s := c.captureWith(slow); s.Pages() != 0 || s.Bytes() != 0 {
			t.Errorf("untouched: %d pages, %d bytes", s.Pages(), s.Bytes())
		}
		c.do("read 0 4096")
		c.do("every 10 500 7 2")    // over data
		c.do("fill 2000 100 2")     // over a hole
		c.do("zero 700 20")         // the zeroed page trap
		c.do("zero 2500 5")         // zero over a hole
		c.do("every 4095 4096 1 2") // the very last page
		s := c.captureWith(slow)
		zero, by := pagesOf(t, s, 2)
		if want := append(numbers(700, 720, 1), numbers(2500, 2505, 1)...); !slices.Equal(zero, want) {
			t.Errorf("zero pages %v, want %v", zero, want)
		}
		want := slices.Concat(numbers(10, 500, 7), numbers(2000, 2100, 1), []int64{4095})
		if !slices.Equal(by[2], want) {
			t.Errorf("pages with data %v, want %v", by[2], want)
		}
		if s.Pages() != len(want)+25 || s.Bytes() != int64(len(want))*PageSize || s.Size() != 4096*PageSize {
			t.Errorf("%d pages, %d bytes of %d", s.Pages(), s.Bytes(), s.Size())
		}
		// Dropped pages show the file again: not dirty any more.
		c.do("drop 2000 100")
		if private, err := PrivateBytes(c.pid, c.address, c.size); err != nil || private != int64(len(want)+25-100)*PageSize {
			t.Errorf("private bytes %d, %v", private, err)
		}
	})
}

// Anonymous memory: with small pages, with huge pages (of which one written byte dirties 512), and where the zero page
// is mapped because the process only read.
func TestCaptureAnonymous(t *testing.T) {
	scanners(t, func(t *testing.T, slow bool) {
		for _, advice := range []string{"small", "huge"} {
			c := startChild(t, 64<<20, "-", advice)
			c.do("fill 0 3 5")
			c.do("every 1024 4096 512 5")
			c.do("read 8192 100")
			s := c.captureWith(slow)
			_, by := pagesOf(t, s, 5)
			if want := append([]int64{0, 1, 2}, numbers(1024, 4096, 512)...); !slices.Equal(by[5], want) {
				t.Errorf("%s: pages %v, want %v", advice, by[5], want)
			}
			if s.Bytes() != int64(len(by[5]))*PageSize {
				t.Errorf("%s: %d bytes", advice, s.Bytes())
			}
		}
	})
}

// Alternating pages: more regions than one call returns, and than the kernel gathers at a time.
func TestCaptureManyRegions(t *testing.T) {
	scanners(t, func(t *testing.T, slow bool) {
		c := startChild(t, 128<<20, "-", "small")
		for _, to := range []int64{3, 1023, 1025, 2051, 16383, 32768} {
			c.do("drop 0 32768")
			c.do("every 0 %d 2 4", to)
			s := c.captureWith(slow)
			if _, by := pagesOf(t, s, 4); !slices.Equal(by[4], numbers(0, to, 2)) {
				t.Errorf("up to %d: %d pages", to, len(by[4]))
			}
			s.Release()
		}
	})
}

// A large sparse mapping costs what is in it, not what it spans.
func TestCaptureSparse(t *testing.T) {
	scanners(t, func(t *testing.T, slow bool) {
		c := startChild(t, 2<<30, "-", "small")
		c.do("every 0 524288 5000 3")
		s := c.captureWith(slow)
		_, by := pagesOf(t, s, 3)
		if want := numbers(0, 524288, 5000); !slices.Equal(by[3], want) {
			t.Errorf("%d pages, want %d", len(by[3]), len(want))
		}
	})
}

// What is dirtied after Prepare is captured too, however much it is.
func TestCaptureGrows(t *testing.T) {
	c := startChild(t, 256<<20, "-", "small")
	c.do("fill 0 1000 1")
	capturer, err := Prepare(c.pid, c.address, c.size)
	must(t, err)
	defer capturer.Close()
	c.do("fill 500 20000 2")
	c.do("every 30000 60000 2 2")
	resume := c.stop()
	s, err := capturer.Copy(context.Background())
	resume()
	must(t, err)
	defer s.Release()
	_, by := pagesOf(t, s, 1, 2)
	if !slices.Equal(by[1], numbers(0, 500, 1)) || !slices.Equal(by[2], append(numbers(500, 20500, 1), numbers(30000, 60000, 2)...)) {
		t.Errorf("%d old pages, %d new ones", len(by[1]), len(by[2]))
	}
	if _, err := capturer.Copy(context.Background()); err == nil {
		t.Error("a second Copy succeeded")
	}
}

// process_vm_readv fails in the middle where a page cannot be had; the way round must give the same bytes.
func TestCaptureFallsBackToMem(t *testing.T) {
	c := startChild(t, 8<<20, "-", "small")
	c.do("fill 0 600 1")
	capturer, err := Prepare(c.pid, c.address, c.size)
	must(t, err)
	defer capturer.Close()
	defer c.stop()()
	capturer.readv = func(int, []localRange, []remoteRange) (int, error) { return 0, os.ErrPermission }
	s, err := capturer.Copy(context.Background())
	must(t, err)
	defer s.Release()
	if _, by := pagesOf(t, s, 1); len(by[1]) != 600 {
		t.Errorf("%d pages", len(by[1]))
	}
}

// Partial copies, even in the middle of a page, are taken up where they ended.
func TestCapturePartialReads(t *testing.T) {
	c := startChild(t, 8<<20, "-", "small")
	c.do("every 0 1000 2 1")
	capturer, err := Prepare(c.pid, c.address, c.size)
	must(t, err)
	defer capturer.Close()
	defer c.stop()()
	readv, calls := capturer.readv, 0
	capturer.workers = 1
	capturer.readv = func(pid int, local []localRange, remote []remoteRange) (int, error) {
		calls++
		local = []localRange{local[0]}
		local[0].Len = min(local[0].Len, 5000)
		return readv(pid, local, remote)
	}
	s, err := capturer.Copy(context.Background())
	must(t, err)
	defer s.Release()
	if _, by := pagesOf(t, s, 1); len(by[1]) != 500 || calls < 400 {
		t.Errorf("%d pages in %d calls", len(by[1]), calls)
	}
}

func TestPrepareRefuses(t *testing.T) {
	base := flatFile(t, t.TempDir(), "base.ram", 16)
	shared := startChild(t, 16*PageSize, base, "-")
	refuse := func(what, part string, pid int, address uintptr, size int64) {
		t.Helper()
		if _, err := Prepare(pid, address, size); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refuse("half pages", "whole pages", shared.pid, shared.address, 100)
	refuse("no memory there", "not the guest memory", shared.pid, PageSize, 16*PageSize)
	refuse("process that is none", "process", 1<<22, shared.address, PageSize)
	must(t, os.Chmod(base, 0o600))
	anonymous := startChild(t, 16*PageSize, "-", "shared")
	refuse("shared memory", "is shared", anonymous.pid, anonymous.address, anonymous.size)
}

// The process ends between Prepare and Copy: an error, never the memory of whoever gets the pid next.
func TestCaptureOfDeadProcess(t *testing.T) {
	c := startChild(t, 8<<20, "-", "small")
	c.do("fill 0 100 1")
	capturer, err := Prepare(c.pid, c.address, c.size)
	must(t, err)
	defer capturer.Close()
	must(t, c.in.Close())
	for c.out.Size() > 0 { // its end of output is its end
		if _, err := c.out.ReadByte(); err != nil {
			break
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for capturer.alive() && time.Now().Before(deadline) {
		capturer.awaitEnd(100)
	}
	if s, err := capturer.Copy(context.Background()); err == nil {
		t.Errorf("%d pages of a dead process", s.Pages())
	}
}

func TestCaptureCancelled(t *testing.T) {
	c := startChild(t, 8<<20, "-", "small")
	c.do("fill 0 100 1")
	capturer, err := Prepare(c.pid, c.address, c.size)
	must(t, err)
	defer capturer.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := capturer.Copy(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// Several captures of several processes at once, and several users of one snapshot (run with -race).
func TestCaptureConcurrently(t *testing.T) {
	var group sync.WaitGroup
	for range 4 {
		c := startChild(t, 32<<20, "-", "small")
		c.do("fill 0 3000 9")
		s := c.capture()
		for range 3 {
			group.Go(func() {
				if s.Bytes() != 3000*PageSize {
					t.Errorf("%d bytes", s.Bytes())
				}
				_ = s.Range(func(page int64, data []byte) error {
					if isZero(data) {
						t.Errorf("page %d is zero", page)
					}
					return nil
				})
			})
		}
	}
	group.Wait()
}

func TestRelease(t *testing.T) {
	c := startChild(t, 64<<20, "-", "small")
	c.do("fill 0 10000 9")
	s := c.capture()
	segment := s.buf.segments[0]
	s.Release()
	s.Release()
	if s.Pages() != 0 || s.Bytes() != 0 {
		t.Error("a released snapshot has pages")
	}
	// The addresses are not mapped any more.
	if err := populate(segment); err == nil {
		t.Error("the memory is still there")
	}
	var none *Snapshot
	none.Release()
}

func TestNewSnapshot(t *testing.T) {
	page := bytes.Repeat([]byte{7}, PageSize)
	s := NewSnapshot(16*PageSize, map[int64][]byte{9: page, 2: nil, 3: make([]byte, PageSize), 8: page})
	if s.Pages() != 4 || s.Bytes() != 2*PageSize {
		t.Errorf("%d pages, %d bytes", s.Pages(), s.Bytes())
	}
	var order []int64
	must(t, s.Range(func(n int64, data []byte) error {
		order = append(order, n)
		if isZero(data) != (n < 8) {
			t.Errorf("page %d: wrong data", n)
		}
		return nil
	}))
	if !slices.Equal(order, []int64{2, 3, 8, 9}) {
		t.Errorf("order %v", order)
	}
	stop := errors.New("stop")
	if err := s.Range(func(int64, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
}
