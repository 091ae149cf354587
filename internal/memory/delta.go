package memory

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"lukechampine.com/blake3"
)

// The delta format, version 1 (docs/formats.md). Little endian.
const (
	deltaMagic   = "VERSMEM\x01"
	deltaVersion = 1
	deltaHeader  = 64
	deltaRun     = 16
	deltaTrailer = 32 // BLAKE3 of everything before it

	maxMemory   = 16 << 40 // bytes of guest memory that a file may be for; keeps a run's length in 32 bits
	maxRunPages = 1<<32 - 1
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
	Base      string `json:"base,omitempty"` // id of the commit it is relative to, if recorded
	BLAKE3    string `json:"blake3"`         // the trailer, hexadecimal
}

// WriteDelta writes a snapshot relative to the flat file base ("": zeroes) to a new file and brings file and name to
// stable storage. Pages that are zero in both are left out; pages that are zero now and were not are recorded as such.
// If base is named after its commit, the delta records that id.
//
// Errors: fault.Exhausted if the disk is full. On error nothing is left behind.
func WriteDelta(path string, s *Snapshot, base string) (info DeltaInfo, err error) {
	if err := s.check(s.size); err != nil {
		return info, fmt.Errorf("write memory delta %s: %w", path, err)
	}
	runs, err := deltaRuns(s, base)
	if err != nil {
		return info, fmt.Errorf("write memory delta %s: %w", path, err)
	}
	info = deltaInfo(s.size, runs, baseID(base))
	return publishDelta(path, info, func(out io.Writer) error {
		if err := writeDeltaHead(out, info, runs); err != nil {
			return err
		}
		for _, r := range runs {
			if _, err := out.Write(r.data); err != nil {
				return err
			}
		}
		return nil
	})
}

// publishDelta makes the file, lets write fill it, and adds the trailer. On error nothing is left behind.
func publishDelta(path string, info DeltaInfo, write func(io.Writer) error) (_ DeltaInfo, err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return info, writeError(path, info.FileBytes, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(path)
			err = writeError(path, info.FileBytes, err)
		}
	}()
	if err := reserve(f, 0, info.FileBytes); err != nil {
		return info, err
	}
	sum := blake3.New(deltaTrailer, nil)
	out := bufio.NewWriterSize(hashingWriter{f, sum}, deltaChunk)
	if err := errors.Join(write(out), out.Flush()); err != nil {
		return info, err
	}
	digest := sum.Sum(nil)
	info.BLAKE3 = hex.EncodeToString(digest)
	if _, err := f.Write(digest); err != nil {
		return info, err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return info, err
	}
	return info, syncDir(path)
}

// hashingWriter hashes what it writes, both at the same time. It wants large pieces: the hash of single pages is eight
// times slower.
type hashingWriter struct {
	io.Writer
	sum hash.Hash
}

func (w hashingWriter) Write(p []byte) (int, error) {
	hashed := make(chan struct{})
	go func() {
		w.sum.Write(p)
		close(hashed)
	}()
	defer func() { <-hashed }()
	return w.Writer.Write(p)
}

func deltaInfo(size int64, runs []run, base string) DeltaInfo {
	info := DeltaInfo{Version: deltaVersion, RAMBytes: size, Runs: int64(len(runs)), Base: base}
	for _, r := range runs {
		if r.data == nil {
			info.ZeroPages += r.count
		} else {
			info.DataPages += r.count
		}
	}
	info.FileBytes = deltaHeader + info.Runs*deltaRun + info.DataPages*PageSize + deltaTrailer
	return info
}

// baseID is the commit that a flat file belongs to by its name (<commit id>.ram), or "".
func baseID(path string) string {
	name := filepath.Base(path)
	id, err := uuid.Parse(strings.TrimSuffix(name, filepath.Ext(name)))
	if path == "" || err != nil {
		return ""
	}
	return id.String()
}

// deltaRuns drops zero pages that the base has as zeroes too.
func deltaRuns(s *Snapshot, base string) ([]run, error) {
	if s.size > maxMemory {
		return nil, fmt.Errorf("%d bytes of memory are more than the %d that a delta can hold", s.size, int64(maxMemory))
	}
	var src *baseReader
	if base != "" {
		f, err := os.Open(base)
		if err != nil {
			return nil, fmt.Errorf("open its base: %w", err)
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return nil, fmt.Errorf("open its base: %w", err)
		}
		if info.Size() != s.size {
			return nil, fmt.Errorf("its base %s has %d bytes, the snapshot is of %d", base, info.Size(), s.size)
		}
		src = &baseReader{file: f, page: make([]byte, PageSize)}
	}
	var runs []run
	for _, r := range s.classified() {
		if r.data != nil {
			for ; r.count > maxRunPages; r = (run{page: r.page + maxRunPages, count: r.count - maxRunPages, data: r.data[maxRunPages*PageSize:]}) {
				runs = append(runs, run{page: r.page, count: maxRunPages, data: r.data[:maxRunPages*PageSize]})
			}
			runs = append(runs, r)
			continue
		}
		if src == nil {
			continue
		}
		var err error
		if runs, err = src.appendChanged(runs, r); err != nil {
			return nil, fmt.Errorf("read its base: %w", err)
		}
	}
	return runs, nil
}

// baseReader looks for data in a flat file, at ascending pages.
type baseReader struct {
	file       *os.File
	page       []byte
	start, end int64 // the range with data at or behind the last page asked for; start is -1 if there is none
}

// appendChanged appends the pages of a zero run that are not zero in the base.
func (b *baseReader) appendChanged(runs []run, r run) ([]run, error) {
	for page := r.page; page < r.page+r.count && b.start >= 0; page++ {
		if page*PageSize >= b.end {
			start, end, ok, err := nextData(b.file, page*PageSize)
			if err != nil {
				return nil, err
			}
			if !ok {
				b.start = -1
				break
			}
			b.start, b.end = start, end
		}
		if first := b.start / PageSize; page < first {
			page = first - 1 // all holes up to there
			continue
		}
		if _, err := b.file.ReadAt(b.page, page*PageSize); err != nil {
			return nil, err
		}
		if !isZero(b.page) {
			runs = mergeRun(runs, run{page: page, count: 1})
		}
	}
	return runs, nil
}

// writeDeltaHead writes everything before the data.
func writeDeltaHead(out io.Writer, info DeltaInfo, runs []run) error {
	header := make([]byte, deltaHeader)
	copy(header, deltaMagic)
	le := binary.LittleEndian
	le.PutUint32(header[8:], deltaVersion)
	le.PutUint32(header[12:], PageSize)
	le.PutUint64(header[16:], uint64(info.RAMBytes))
	le.PutUint64(header[24:], uint64(info.Runs))
	le.PutUint64(header[32:], uint64(info.DataPages))
	if id, err := uuid.Parse(info.Base); err == nil {
		copy(header[40:], id[:])
	}
	if _, err := out.Write(header); err != nil {
		return err
	}
	table := make([]byte, 0, 4096*deltaRun)
	for i, r := range runs {
		kind := uint32(runData)
		if r.data == nil {
			kind = runZero
		}
		table = le.AppendUint64(table, uint64(r.page))
		table = le.AppendUint32(table, uint32(r.count))
		table = le.AppendUint32(table, kind)
		if len(table) == cap(table) || i == len(runs)-1 {
			if _, err := out.Write(table); err != nil {
				return err
			}
			table = table[:0]
		}
	}
	return nil
}

// ApplyDelta writes the pages of a delta file to a flat file in the making. The delta is checked on the way; if it
// turns out to be damaged, the flat file is not to be used: abort it.
func ApplyDelta(ctx context.Context, flat *Flat, delta string) error {
	if flat.file == nil {
		return fmt.Errorf("flat file %s: it is finished or aborted", flat.path)
	}
	return flat.applyDelta(ctx, delta)
}

// VerifyDelta reads a whole delta file and checks structure and hash.
func VerifyDelta(path string) (DeltaInfo, error) {
	return readDeltaFile(context.Background(), path, discard{})
}

// Rebuild begins the flat file path with the content of base, or with zeroes, like NewFlat, and applies deltas to it,
// oldest first. The caller finishes it. Errors as those of NewFlat and ApplyDelta; on error nothing is left behind.
func Rebuild(ctx context.Context, path, base string, size int64, deltas []string) (*Flat, error) {
	flat, err := NewFlat(ctx, path, base, size)
	if err != nil {
		return nil, err
	}
	for _, delta := range deltas {
		if err := ApplyDelta(ctx, flat, delta); err != nil {
			flat.Abort()
			return nil, err
		}
	}
	return flat, nil
}
