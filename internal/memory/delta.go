package memory

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"lukechampine.com/blake3"
)

// The delta format, version 1 (docs/formats.md). Little endian.
const (
	deltaMagic   = "VERSMEM\x01"
	deltaVersion = 1
	deltaHeader  = 64
	deltaRun     = 16
	deltaTrailer = 32 // BLAKE3 of everything before it

	maxRuns = 1 << 28 // 4 TiB of single pages: what a header says is not allocated for before it is checked
)

// Kinds of run.
const (
	runData = 0
	runZero = 1
)

// DeltaInfo describes a delta file. Two files with equal infos have equal contents.
type DeltaInfo struct {
	Version   int    `json:"version"`
	RAMBytes  int64  `json:"ram_bytes"`
	Runs      int64  `json:"runs"`
	DataPages int64  `json:"data_pages"`
	ZeroPages int64  `json:"zero_pages"`
	FileBytes int64  `json:"file_bytes"`
	BLAKE3    string `json:"blake3"` // the trailer, hexadecimal
}

// WriteDelta writes a snapshot relative to the flat file base ("": zeroes) to a new file and syncs it. Pages that are zero in
// both are left out; pages that are zero now and were not are recorded as such. On error nothing is left behind.
func WriteDelta(path string, s *Snapshot, base string) (info DeltaInfo, err error) {
	runs, err := deltaRuns(s, base)
	if err != nil {
		return info, err
	}
	info = DeltaInfo{Version: deltaVersion, RAMBytes: s.size, Runs: int64(len(runs))}
	for _, r := range runs {
		if r.data == nil {
			info.ZeroPages += r.count
		} else {
			info.DataPages += r.count
		}
	}
	info.FileBytes = deltaHeader + info.Runs*deltaRun + info.DataPages*PageSize + deltaTrailer
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return info, fmt.Errorf("write memory delta: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(path)
			err = fmt.Errorf("write memory delta (%d bytes): %w", info.FileBytes, err)
		}
	}()
	err = unix.Fallocate(int(f.Fd()), 0, 0, info.FileBytes)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return info, err
	}
	sum := blake3.New(deltaTrailer, nil)
	if err := writeDelta(io.MultiWriter(f, sum), info, runs); err != nil {
		return info, err
	}
	digest := sum.Sum(nil)
	info.BLAKE3 = fmt.Sprintf("%x", digest)
	if _, err := f.Write(digest); err != nil {
		return info, err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return info, err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return info, err
	}
	defer dir.Close()
	return info, dir.Sync()
}

// deltaRuns drops zero pages that the base has as zeroes too.
func deltaRuns(s *Snapshot, base string) ([]run, error) {
	var src *os.File
	if base != "" {
		f, err := os.Open(base)
		if err != nil {
			return nil, fmt.Errorf("write memory delta: open its base: %w", err)
		}
		defer f.Close()
		src = f
	}
	var runs []run
	page := make([]byte, PageSize)
	for _, r := range s.classified() {
		if r.data != nil {
			runs = append(runs, r)
			continue
		}
		if src == nil {
			continue
		}
		for i := range r.count {
			if _, err := src.ReadAt(page, (r.page+i)*PageSize); err != nil {
				return nil, fmt.Errorf("write memory delta: read its base: %w", err)
			}
			if isZero(page) {
				continue
			}
			if n := len(runs); n > 0 && runs[n-1].data == nil && runs[n-1].page+runs[n-1].count == r.page+i {
				runs[n-1].count++
				continue
			}
			runs = append(runs, run{page: r.page + i, count: 1})
		}
	}
	return runs, nil
}

func writeDelta(w io.Writer, info DeltaInfo, runs []run) error {
	out := bufio.NewWriterSize(w, 1<<20)
	header := make([]byte, deltaHeader)
	copy(header, deltaMagic)
	le := binary.LittleEndian
	le.PutUint32(header[8:], deltaVersion)
	le.PutUint32(header[12:], PageSize)
	le.PutUint64(header[16:], uint64(info.RAMBytes))
	le.PutUint64(header[24:], uint64(info.Runs))
	le.PutUint64(header[32:], uint64(info.DataPages))
	if _, err := out.Write(header); err != nil {
		return err
	}
	entry := make([]byte, deltaRun)
	for _, r := range runs {
		kind := uint32(runData)
		if r.data == nil {
			kind = runZero
		}
		le.PutUint64(entry, uint64(r.page))
		le.PutUint32(entry[8:], uint32(r.count))
		le.PutUint32(entry[12:], kind)
		if _, err := out.Write(entry); err != nil {
			return err
		}
	}
	for _, r := range runs {
		if _, err := out.Write(r.data); err != nil {
			return err
		}
	}
	return out.Flush()
}

// VerifyDelta reads a whole delta file and checks structure and hash.
func VerifyDelta(path string) (DeltaInfo, error) {
	return readDeltaFile(context.Background(), path, func(DeltaInfo) error { return nil }, func(int64, int64, []byte) error { return nil })
}

// ApplyDelta writes the pages of a delta file to a flat file in the making. If the delta turns out to be damaged, the
// flat file is not to be used: abort it.
func ApplyDelta(ctx context.Context, flat *Flat, path string) error {
	f := *flat
	f.hasBase = true // an earlier delta may have written where this one has zeroes
	_, err := readDeltaFile(ctx, path, func(info DeltaInfo) error {
		if info.RAMBytes != flat.size {
			return fmt.Errorf("it is for %d bytes of memory, the flat file has %d", info.RAMBytes, flat.size)
		}
		return nil
	}, f.put)
	return err
}

func readDeltaFile(ctx context.Context, path string, begin func(DeltaInfo) error, put func(page, count int64, data []byte) error) (DeltaInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return DeltaInfo{}, fmt.Errorf("read memory delta: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return DeltaInfo{}, err
	}
	info, err := readDelta(ctx, f, st.Size(), begin, put)
	if err != nil {
		return info, fmt.Errorf("memory delta %s: %w", path, err)
	}
	return info, nil
}

// hashedReader counts and hashes what is read.
type hashedReader struct {
	r   *bufio.Reader
	sum hash.Hash
	at  int64
}

func (h *hashedReader) full(p []byte, what string) error {
	n, err := io.ReadFull(h.r, p)
	h.sum.Write(p[:n])
	h.at += int64(n)
	if err != nil {
		return fmt.Errorf("%s is cut off at byte %d", what, h.at)
	}
	return nil
}

// readDelta parses a delta of size bytes. Nothing is allocated for what the header claims before the file's size bears
// it out.
func readDelta(ctx context.Context, r io.Reader, size int64, begin func(DeltaInfo) error, put func(page, count int64, data []byte) error) (DeltaInfo, error) {
	in := &hashedReader{r: bufio.NewReaderSize(r, 1<<20), sum: blake3.New(deltaTrailer, nil)}
	info, err := readDeltaHeader(in, size)
	if err != nil {
		return info, err
	}
	if err := begin(info); err != nil {
		return info, err
	}
	runs, err := readDeltaRuns(in, &info)
	if err != nil {
		return info, err
	}
	buf := make([]byte, copyChunk)
	for _, run := range runs {
		if run.zero {
			if err := put(run.page, run.count, nil); err != nil {
				return info, err
			}
			continue
		}
		for page, left := run.page, run.count; left > 0; {
			if err := ctx.Err(); err != nil {
				return info, err
			}
			n := min(left, copyChunk/PageSize)
			if err := in.full(buf[:n*PageSize], "data"); err != nil {
				return info, err
			}
			if err := put(page, n, buf[:n*PageSize]); err != nil {
				return info, err
			}
			page, left = page+n, left-n
		}
	}
	want := in.sum.Sum(nil)
	trailer := make([]byte, deltaTrailer)
	if err := in.full(trailer, "trailer"); err != nil {
		return info, err
	}
	if string(want) != string(trailer) {
		return info, fmt.Errorf("damaged: its BLAKE3 is %x, the trailer says %x", want, trailer)
	}
	info.BLAKE3 = fmt.Sprintf("%x", trailer)
	return info, nil
}

func readDeltaHeader(in *hashedReader, size int64) (DeltaInfo, error) {
	header := make([]byte, deltaHeader)
	if err := in.full(header, "header"); err != nil {
		return DeltaInfo{}, err
	}
	le := binary.LittleEndian
	if string(header[:8]) != deltaMagic {
		return DeltaInfo{}, errors.New("not a memory delta: wrong magic at byte 0")
	}
	info := DeltaInfo{
		Version: int(le.Uint32(header[8:])), RAMBytes: int64(le.Uint64(header[16:])),
		Runs: int64(le.Uint64(header[24:])), DataPages: int64(le.Uint64(header[32:])), FileBytes: size,
	}
	switch page := le.Uint32(header[12:]); {
	case info.Version != deltaVersion:
		return info, fmt.Errorf("version %d is unknown, this program reads %d", info.Version, deltaVersion)
	case page != PageSize:
		return info, fmt.Errorf("page size %d at byte 12 is not %d", page, PageSize)
	case info.RAMBytes <= 0 || info.RAMBytes%PageSize != 0:
		return info, fmt.Errorf("memory size %d at byte 16 is not a whole number of pages", info.RAMBytes)
	case info.Runs < 0 || info.Runs > maxRuns || info.DataPages < 0 || info.DataPages > info.RAMBytes/PageSize:
		return info, fmt.Errorf("%d runs with %d pages are not possible in %d bytes of memory", info.Runs, info.DataPages, info.RAMBytes)
	case size != deltaHeader+info.Runs*deltaRun+info.DataPages*PageSize+deltaTrailer:
		return info, fmt.Errorf("the file has %d bytes, %d runs and %d pages need %d", size, info.Runs, info.DataPages, deltaHeader+info.Runs*deltaRun+info.DataPages*PageSize+deltaTrailer)
	}
	return info, nil
}

type deltaRunEntry struct {
	page, count int64
	zero        bool
}

// readDeltaRuns reads the run table: ascending, apart, inside the memory, with as many data pages as the header says.
func readDeltaRuns(in *hashedReader, info *DeltaInfo) ([]deltaRunEntry, error) {
	runs := make([]deltaRunEntry, 0, info.Runs)
	entry := make([]byte, deltaRun)
	var next, data int64
	for range info.Runs {
		at := in.at
		if err := in.full(entry, "run table"); err != nil {
			return nil, err
		}
		le := binary.LittleEndian
		r := deltaRunEntry{page: int64(le.Uint64(entry)), count: int64(le.Uint32(entry[8:]))}
		kind := le.Uint32(entry[12:])
		if r.page < next || r.count == 0 || r.page > info.RAMBytes/PageSize-r.count || kind > runZero {
			return nil, fmt.Errorf("run at byte %d (page %d, %d pages, kind %d) is not possible here", at, r.page, r.count, kind)
		}
		next = r.page + r.count
		if r.zero = kind == runZero; r.zero {
			info.ZeroPages += r.count
		} else {
			data += r.count
		}
		runs = append(runs, r)
	}
	if data != info.DataPages {
		return nil, fmt.Errorf("the run table has %d data pages, the header says %d", data, info.DataPages)
	}
	return runs, nil
}
