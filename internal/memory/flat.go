package memory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Flat is a flat memory file in the making: the whole RAM of a commit as one sparse file. It has a temporary name until
// Finish; a flat file that has its name is never written to again, since VMs map it.
type Flat struct {
	path    string // final
	temp    string
	file    *os.File
	size    int64
	hasBase bool
}

const (
	copyChunk = 4 << 20
	// reserveFrom is the length from which a range is reserved before it is written: delayed allocation of sparse
	// writes is slow on ext4, but a call per page would be slower.
	reserveFrom = 256 << 10
)

// NewFlat begins a flat file of size bytes as a copy of the flat file base ("": all zeroes): a reflink where the file
// system can, else the data extents are copied and holes stay holes. On error nothing is left behind.
func NewFlat(ctx context.Context, path, base string, size int64) (_ *Flat, err error) {
	if size <= 0 || size%PageSize != 0 {
		return nil, fmt.Errorf("flat file %s: size %d is not a whole number of pages", path, size)
	}
	f := &Flat{path: path, temp: path + ".partial", size: size, hasBase: base != ""}
	if err := os.Remove(f.temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if f.file, err = os.OpenFile(f.temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, fmt.Errorf("make flat file: %w", err)
	}
	defer func() {
		if err != nil {
			f.Abort()
		}
	}()
	if err := f.file.Truncate(size); err != nil {
		return nil, fmt.Errorf("make flat file: %w", err)
	}
	if base != "" {
		if err := f.copyBase(ctx, base); err != nil {
			return nil, fmt.Errorf("make flat file %s from %s: %w", filepath.Base(path), filepath.Base(base), err)
		}
	}
	return f, nil
}

func (f *Flat) copyBase(ctx context.Context, base string) error {
	src, err := os.Open(base)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if info.Size() != f.size {
		return fmt.Errorf("the base has %d bytes, the new file %d", info.Size(), f.size)
	}
	if unix.IoctlFileClone(int(f.file.Fd()), int(src.Fd())) == nil {
		return nil
	}
	extents, err := dataExtents(src, f.size)
	if err != nil {
		return err
	}
	var chunks []span
	for _, e := range extents {
		if err := f.reserve(e); err != nil {
			return err
		}
		for at := e.start; at < e.end; at += copyChunk {
			chunks = append(chunks, span{at, min(at+copyChunk, e.end)})
		}
	}
	return parallel(runtime.GOMAXPROCS(0), len(chunks), func(i int) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return copyRange(f.file, src, chunks[i])
	})
}

// span is a range of bytes in a file.
type span struct{ start, end int64 }

// dataExtents lists where a sparse file has data.
func dataExtents(f *os.File, size int64) ([]span, error) {
	var list []span
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // no data from here on
		}
		if err != nil {
			return nil, fmt.Errorf("look for data: %w", err)
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("look for holes: %w", err)
		}
		list = append(list, span{start, end})
		at = end
	}
	return list, nil
}

func copyRange(dst, src *os.File, r span) error {
	buf := make([]byte, min(r.end-r.start, 1<<20))
	for at := r.start; at < r.end; {
		n, err := src.ReadAt(buf[:min(int64(len(buf)), r.end-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		if _, err := dst.WriteAt(buf[:n], at); err != nil {
			return err
		}
		at += int64(n)
	}
	return nil
}

// reserve allocates a long range before it is written, so that a full disk is noticed first. File systems that cannot
// are written to as they are.
func (f *Flat) reserve(r span) error {
	if r.end-r.start < reserveFrom {
		return nil
	}
	err := unix.Fallocate(int(f.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, r.start, r.end-r.start)
	if err == nil || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return fmt.Errorf("reserve %d bytes for %s: %w", r.end-r.start, filepath.Base(f.path), err)
}

// Apply writes the pages of a snapshot. Pages that are zero now become holes.
func (f *Flat) Apply(s *Snapshot) error {
	if err := s.check(f.size); err != nil {
		return err
	}
	var pieces []run
	for _, r := range s.classified() {
		if r.data != nil {
			if err := f.reserve(span{r.page * PageSize, (r.page + r.count) * PageSize}); err != nil {
				return err
			}
		}
		for r.data != nil && r.count > copyChunk/PageSize {
			pieces = append(pieces, run{page: r.page, count: copyChunk / PageSize, data: r.data[:copyChunk]})
			r = run{page: r.page + copyChunk/PageSize, count: r.count - copyChunk/PageSize, data: r.data[copyChunk:]}
		}
		pieces = append(pieces, r)
	}
	return parallel(runtime.GOMAXPROCS(0), len(pieces), func(i int) error {
		return f.put(pieces[i].page, pieces[i].count, pieces[i].data)
	})
}

// put writes count pages from page on; nil data means zeroes.
func (f *Flat) put(page, count int64, data []byte) error {
	at := page * PageSize
	if data == nil {
		if !f.hasBase {
			return nil // a hole already
		}
		if err := unix.Fallocate(int(f.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, count*PageSize); err == nil {
			return nil
		}
		data = make([]byte, count*PageSize)
	}
	if _, err := f.file.WriteAt(data, at); err != nil {
		return fmt.Errorf("write %d bytes at %d of flat file %s: %w", len(data), at, filepath.Base(f.path), err)
	}
	return nil
}

// Path is the file's present name.
func (f *Flat) Path() string { return f.temp }

// Finish gives the file its final name. Its content need not be on stable storage: it can be made again.
func (f *Flat) Finish() error {
	if err := f.file.Close(); err != nil {
		return fmt.Errorf("finish flat file: %w", err)
	}
	if err := os.Rename(f.temp, f.path); err != nil {
		return fmt.Errorf("finish flat file: %w", err)
	}
	f.temp = f.path
	return nil
}

// Abort removes the file unless it is finished. Idempotent.
func (f *Flat) Abort() {
	if f.temp == f.path {
		return
	}
	f.file.Close()
	os.Remove(f.temp)
}
