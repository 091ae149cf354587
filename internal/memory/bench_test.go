package memory

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// best times single rounds and reports the fastest as well: on a machine that others use, the mean says little.
type best struct {
	b     *testing.B
	begin time.Time
	least time.Duration
}

func newBest(b *testing.B) *best {
	b.ResetTimer()
	b.StopTimer()
	return &best{b: b, least: time.Hour}
}

func (t *best) start() {
	t.b.StartTimer()
	t.begin = time.Now()
}

func (t *best) stop() {
	t.least = min(t.least, time.Since(t.begin))
	t.b.StopTimer()
	t.b.ReportMetric(float64(t.least.Microseconds())/1000, "ms-best")
}

// What a guest waits for: Copy, with so many MiB dirty. "small" is memory of 4 KiB pages (a VM on a flat file),
// "huge" of 2 MiB pages (a root VM), "scattered" every second page.
func BenchmarkPauseCopy(b *testing.B) {
	for _, mib := range []int64{4, 100, 1000} {
		for _, kind := range []string{"small", "huge", "scattered"} {
			b.Run(fmt.Sprintf("%s/%dMB", kind, mib), func(b *testing.B) {
				advice := kind
				if kind == "scattered" {
					advice = "small"
				}
				c := startChild(b, 2<<30, "-", advice)
				pages := mib << 20 / PageSize
				if kind == "scattered" {
					c.do("every 0 %d 2 1", 2*pages)
				} else {
					c.do("fill 0 %d 1", pages)
				}
				defer c.stop()()
				b.SetBytes(mib << 20)
				best := newBest(b)
				for range b.N {
					capturer, err := Prepare(c.pid, c.address, c.size)
					must(b, err)
					best.start()
					s, err := capturer.Copy(context.Background())
					best.stop()
					must(b, err)
					s.Release()
					capturer.Close()
				}
			})
		}
	}
}

func BenchmarkPrepare(b *testing.B) {
	for _, mib := range []int64{4, 100, 1000} {
		b.Run(fmt.Sprintf("%dMB", mib), func(b *testing.B) {
			c := startChild(b, 2<<30, "-", "small")
			c.do("fill 0 %d 1", mib<<20/PageSize)
			best := newBest(b)
			for range b.N {
				best.start()
				capturer, err := Prepare(c.pid, c.address, c.size)
				must(b, err)
				best.stop()
				capturer.Close()
			}
		})
	}
}

// The zero check, which is done after the pause.
func BenchmarkZeroCheck(b *testing.B) {
	c := startChild(b, 512<<20, "-", "small")
	c.do("fill 0 12800 1")
	c.do("zero 12800 12800")
	defer c.stop()()
	b.SetBytes(100 << 20)
	best := newBest(b)
	for range b.N {
		capturer, err := Prepare(c.pid, c.address, c.size)
		must(b, err)
		s, err := capturer.Copy(context.Background())
		must(b, err)
		best.start()
		_ = s.Bytes()
		best.stop()
		s.Release()
		capturer.Close()
	}
}

// benchDir is where files are made: VERS_BENCH_DIR, to measure another file system, or a temporary folder.
func benchDir(b *testing.B) string {
	dir, err := os.MkdirTemp(os.Getenv("VERS_BENCH_DIR"), "vers-bench-")
	must(b, err)
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// mixedSnapshot is what a booted guest looks like: runs of 1 to 64 pages with small gaps.
func mixedSnapshot(b *testing.B, dir string, bytes int64) (*Snapshot, string) {
	s := &Snapshot{size: 2 << 30, buf: &buffer{}}
	must(b, s.buf.reserve(bytes, 2))
	for page, n := int64(0), int64(1); s.pages < bytes/PageSize; n = n%64 + 1 {
		p := s.buf.take(n * PageSize)
		data := s.buf.bytes(p)
		for i := 0; i < len(data); i += PageSize {
			pattern(data[i:i+PageSize], page, 1)
		}
		count := int64(len(data)) / PageSize
		s.runs = append(s.runs, run{page: page, count: count, data: data})
		page, s.pages = page+count+n%7, s.pages+count
	}
	b.Cleanup(s.Release)
	base := filepath.Join(dir, "base.ram")
	newFlat(b, base, "", s.size, s)
	return s, base
}

var fileSizes = []struct {
	name string
	data int64
}{{"93MB", 93 << 20}, {"1GB", 1 << 30}}

func BenchmarkFlatFromBase(b *testing.B) {
	for _, c := range fileSizes {
		b.Run(c.name, func(b *testing.B) {
			dir := benchDir(b)
			_, base := mixedSnapshot(b, dir, c.data)
			b.SetBytes(c.data)
			best := newBest(b)
			for range b.N {
				best.start()
				f, err := NewFlat(context.Background(), filepath.Join(dir, "x"), base, 2<<30)
				must(b, err)
				best.stop()
				f.Abort()
			}
		})
	}
}

func BenchmarkFlatApply(b *testing.B) {
	for _, c := range fileSizes {
		b.Run(c.name, func(b *testing.B) {
			dir := benchDir(b)
			s, _ := mixedSnapshot(b, dir, c.data)
			b.SetBytes(c.data)
			best := newBest(b)
			for range b.N {
				best.start()
				f, err := NewFlat(context.Background(), filepath.Join(dir, "x"), "", 2<<30)
				must(b, err)
				must(b, f.Apply(s))
				best.stop()
				f.Abort()
			}
		})
	}
}

// Writing a delta, on stable storage when it ends.
func BenchmarkDeltaWrite(b *testing.B) {
	for _, c := range fileSizes {
		b.Run(c.name, func(b *testing.B) {
			dir := benchDir(b)
			s, _ := mixedSnapshot(b, dir, c.data)
			path := filepath.Join(dir, "delta")
			b.SetBytes(c.data)
			best := newBest(b)
			for range b.N {
				best.start()
				_, err := WriteDelta(path, s, "")
				must(b, err)
				best.stop()
				must(b, os.Remove(path))
			}
		})
	}
}

func BenchmarkDeltaRebuild(b *testing.B) {
	for _, c := range fileSizes {
		b.Run(c.name, func(b *testing.B) {
			dir := benchDir(b)
			s, _ := mixedSnapshot(b, dir, c.data)
			path, flat := filepath.Join(dir, "delta"), filepath.Join(dir, "flat")
			_, err := WriteDelta(path, s, "")
			must(b, err)
			b.SetBytes(c.data)
			best := newBest(b)
			for range b.N {
				best.start()
				must(b, rebuild(context.Background(), flat, 2<<30, []string{path}))
				best.stop()
				must(b, os.Remove(flat))
			}
		})
	}
}
