package memory

import (
	"context"
	"fmt"
	"io"
	"os"
)

// WriteFlatDelta writes the whole content of a flat file as a delta relative to zeroes, to a new file, and brings file
// and name to stable storage. The delta stands alone then: it needs no base. The flat file is only read, in pieces.
//
// Errors: fault.Exhausted if the disk is full. On error, or when ctx ends, nothing is left behind.
func WriteFlatDelta(ctx context.Context, path, flat string) (DeltaInfo, error) {
	f, err := os.Open(flat)
	if err != nil {
		return DeltaInfo{}, fmt.Errorf("write memory delta %s: %w", path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return DeltaInfo{}, fmt.Errorf("write memory delta %s: %w", path, err)
	}
	if st.Size() == 0 || st.Size()%PageSize != 0 || st.Size() > maxMemory {
		return DeltaInfo{}, fmt.Errorf("write memory delta %s: %s has %d bytes, which is no guest's memory", path, flat, st.Size())
	}
	runs, err := flatRuns(ctx, f, st.Size())
	if err != nil {
		return DeltaInfo{}, fmt.Errorf("write memory delta %s: %w", path, err)
	}
	info := deltaInfo(st.Size(), runs, "")
	return publishDelta(path, info, func(out io.Writer) error {
		if err := writeDeltaHead(out, info, runs); err != nil {
			return err
		}
		return copyRuns(ctx, out, f, runs)
	})
}

// inFile marks runs whose data stay in the file.
var inFile = []byte{}

// flatRuns finds the pages of a flat file that are not zero.
func flatRuns(ctx context.Context, f *os.File, size int64) ([]run, error) {
	spans, err := dataSpans(f, size)
	if err != nil {
		return nil, err
	}
	var runs []run
	buf := make([]byte, copyChunk)
	for _, s := range spans {
		s.start, s.end = s.start&^(PageSize-1), (s.end+PageSize-1)&^(PageSize-1)
		for at := s.start; at < s.end; at += copyChunk {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			part := buf[:min(copyChunk, s.end-at)]
			if _, err := f.ReadAt(part, at); err != nil {
				return nil, fmt.Errorf("read %s at %d: %w", f.Name(), at, err)
			}
			for i := 0; i < len(part); i += PageSize {
				if !isZero(part[i : i+PageSize]) {
					runs = appendPage(runs, (at+int64(i))/PageSize)
				}
			}
		}
	}
	return runs, nil
}

// appendPage adds a page behind the others.
func appendPage(runs []run, page int64) []run {
	if n := len(runs); n > 0 {
		switch last := &runs[n-1]; {
		case page < last.page+last.count: // two spans in one page
			return runs
		case page == last.page+last.count && last.count < maxRunPages:
			last.count++
			return runs
		}
	}
	return append(runs, run{page: page, count: 1, data: inFile})
}

// copyRuns writes the data of runs, in pieces.
func copyRuns(ctx context.Context, out io.Writer, f *os.File, runs []run) error {
	buf := make([]byte, copyChunk)
	for _, r := range runs {
		for at, end := r.page*PageSize, (r.page+r.count)*PageSize; at < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			part := buf[:min(copyChunk, end-at)]
			if _, err := f.ReadAt(part, at); err != nil {
				return fmt.Errorf("read %s at %d: %w", f.Name(), at, err)
			}
			if _, err := out.Write(part); err != nil {
				return err
			}
			at += int64(len(part))
		}
	}
	return nil
}
