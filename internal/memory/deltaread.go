package memory

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/google/uuid"
	"lukechampine.com/blake3"
)

// deltaSink takes what a delta file holds, in this order. Data may still be damaged when it is put: only when the
// whole file has been read is the hash known.
type deltaSink interface {
	begin(info DeltaInfo, runs []fileRun) error
	putData(page int64, data []byte) error
}

// fileRun is an entry of a delta's run table.
type fileRun struct {
	page, count int64
	zero        bool
}

// discard is for reading a delta without using it.
type discard struct{}

func (discard) begin(DeltaInfo, []fileRun) error { return nil }
func (discard) putData(int64, []byte) error      { return nil }

// deltaChunk is how much data is read, hashed and put at once.
const deltaChunk = 1 << 20

func readDeltaFile(ctx context.Context, path string, to deltaSink) (DeltaInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return DeltaInfo{}, fmt.Errorf("read memory delta: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return DeltaInfo{}, fmt.Errorf("read memory delta: %w", err)
	}
	info, err := readDelta(ctx, f, st.Size(), to)
	if err != nil {
		return info, fmt.Errorf("memory delta %s: %w", path, err)
	}
	return info, nil
}

// deltaReader counts and hashes what is read.
type deltaReader struct {
	r   io.Reader
	sum hash.Hash
	at  int64
}

// full reads exactly p, without hashing.
func (d *deltaReader) full(p []byte, what string) error {
	n, err := io.ReadFull(d.r, p)
	d.at += int64(n)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s is cut off at byte %d", what, d.at)
	}
	return fmt.Errorf("read %s at byte %d: %w", what, d.at, err)
}

// readDelta parses a delta of size bytes. Nothing is allocated for what the header claims before the file bears it out.
func readDelta(ctx context.Context, r io.Reader, size int64, to deltaSink) (DeltaInfo, error) {
	in := &deltaReader{r: r, sum: blake3.New(deltaTrailer, nil)}
	info, err := in.header(size)
	if err != nil {
		return info, err
	}
	runs, err := in.runs(&info)
	if err != nil {
		return info, err
	}
	if err := to.begin(info, runs); err != nil {
		return info, err
	}
	if err := in.data(ctx, info, runs, to); err != nil {
		return info, err
	}
	want := in.sum.Sum(nil)
	trailer := make([]byte, deltaTrailer)
	if err := in.full(trailer, "trailer"); err != nil {
		return info, err
	}
	if string(want) != string(trailer) {
		return info, fmt.Errorf("damaged: its BLAKE3 is %x, the trailer at byte %d says %x", want, in.at-deltaTrailer, trailer)
	}
	info.BLAKE3 = hex.EncodeToString(trailer)
	return info, nil
}

func (d *deltaReader) header(size int64) (DeltaInfo, error) {
	header := make([]byte, deltaHeader)
	if err := d.full(header, "header"); err != nil {
		return DeltaInfo{}, err
	}
	d.sum.Write(header)
	le := binary.LittleEndian
	if string(header[:8]) != deltaMagic {
		return DeltaInfo{}, errors.New("not a memory delta: wrong magic at byte 0")
	}
	info := DeltaInfo{
		Version: int(le.Uint32(header[8:])), RAMBytes: int64(le.Uint64(header[16:])),
		Runs: int64(le.Uint64(header[24:])), DataPages: int64(le.Uint64(header[32:])), FileBytes: size,
	}
	if id := uuid.UUID(header[40:56]); id != uuid.Nil {
		info.Base = id.String()
	}
	pages := info.RAMBytes / PageSize
	switch pageSize := le.Uint32(header[12:]); {
	case info.Version != deltaVersion:
		return info, fmt.Errorf("version %d at byte 8 is unknown, this program reads %d: it was written by a newer versd, or is damaged", info.Version, deltaVersion)
	case pageSize != PageSize:
		return info, fmt.Errorf("page size %d at byte 12 is not %d", pageSize, PageSize)
	case info.RAMBytes <= 0 || info.RAMBytes%PageSize != 0 || info.RAMBytes > maxMemory:
		return info, fmt.Errorf("memory size %d at byte 16 is not possible", info.RAMBytes)
	case info.Runs < 0 || info.Runs > pages:
		return info, fmt.Errorf("%d runs at byte 24 are not possible in %d pages of memory", info.Runs, pages)
	case info.DataPages < 0 || info.DataPages > pages:
		return info, fmt.Errorf("%d pages at byte 32 are not possible in %d pages of memory", info.DataPages, pages)
	case le.Uint64(header[56:]) != 0:
		return info, errors.New("the reserved bytes at byte 56 are not zero")
	}
	if want := deltaHeader + info.Runs*deltaRun + info.DataPages*PageSize + deltaTrailer; size != want {
		return info, fmt.Errorf("it has %d bytes and should have %d: cut off at byte %d, or damaged", size, want, min(size, want))
	}
	return info, nil
}

// runs reads the run table: ascending, apart, inside the memory, with as many data pages as the header says.
func (d *deltaReader) runs(info *DeltaInfo) ([]fileRun, error) {
	var runs []fileRun
	table := make([]byte, min(info.Runs, 4096)*deltaRun)
	var next, data int64
	for left := info.Runs; left > 0; {
		part := table[:min(left*deltaRun, int64(len(table)))]
		at := d.at
		if err := d.full(part, "run table"); err != nil {
			return nil, err
		}
		d.sum.Write(part)
		left -= int64(len(part)) / deltaRun
		for ; len(part) > 0; part, at = part[deltaRun:], at+deltaRun {
			page, kind := binary.LittleEndian.Uint64(part), binary.LittleEndian.Uint32(part[12:])
			r := fileRun{page: int64(page), count: int64(binary.LittleEndian.Uint32(part[8:])), zero: kind == runZero}
			if r.page < next || r.count == 0 || r.page > info.RAMBytes/PageSize-r.count || kind > runZero {
				return nil, fmt.Errorf("run at byte %d (page %d, %d pages, kind %d) is not possible here", at, page, r.count, kind)
			}
			next = r.page + r.count
			if r.zero {
				info.ZeroPages += r.count
			} else {
				data += r.count
			}
			runs = append(runs, r)
		}
	}
	if data != info.DataPages {
		return nil, fmt.Errorf("the run table before byte %d has %d data pages, the header says %d", d.at, data, info.DataPages)
	}
	return runs, nil
}

// data reads the pages, a large chunk at a time, and hashes each chunk while it is put where it belongs.
func (d *deltaReader) data(ctx context.Context, info DeltaInfo, runs []fileRun, to deltaSink) error {
	buf := make([]byte, min(info.DataPages*PageSize, deltaChunk))
	hashed := make(chan struct{})
	for left := info.DataPages * PageSize; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		chunk := buf[:min(left, int64(len(buf)))]
		if err := d.full(chunk, "data"); err != nil {
			return err
		}
		left -= int64(len(chunk))
		go func() {
			d.sum.Write(chunk)
			hashed <- struct{}{}
		}()
		var err error
		runs, err = putChunk(chunk, runs, to)
		<-hashed
		if err != nil {
			return err
		}
	}
	return nil
}

// putChunk gives a chunk to the runs it belongs to and returns what is left of them.
func putChunk(chunk []byte, runs []fileRun, to deltaSink) ([]fileRun, error) {
	for len(chunk) > 0 {
		r := runs[0]
		if r.zero {
			runs = runs[1:]
			continue
		}
		n := min(r.count*PageSize, int64(len(chunk)))
		if err := to.putData(r.page, chunk[:n]); err != nil {
			return nil, err
		}
		chunk = chunk[n:]
		if n < r.count*PageSize {
			runs[0].page, runs[0].count = r.page+n/PageSize, r.count-n/PageSize
		} else {
			runs = runs[1:]
		}
	}
	return runs, nil
}
