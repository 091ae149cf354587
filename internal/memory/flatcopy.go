package memory

import (
	"context"
	"fmt"
	"os"
	"runtime"
)

// dataSpans lists where a file has data.
func dataSpans(f *os.File, size int64) ([]span, error) {
	var spans []span
	for at := int64(0); at < size; {
		start, end, ok, err := nextData(f, at)
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		spans = append(spans, span{start, min(end, size)})
		at = end
	}
	return spans, nil
}

// copyChunk is what one worker copies at a time: it stays in the processor's cache between read and write, which makes
// this as fast as copy_file_range or copying from a mapping.
const copyChunk = 256 << 10

// copyData copies what is not hole.
func (f *Flat) copyData(ctx context.Context, from *os.File) error {
	spans, err := dataSpans(from, f.size)
	if err != nil {
		return err
	}
	var need int64
	var chunks []span
	for _, s := range spans {
		need += s.end - s.start
		for at := s.start; at < s.end; at += copyChunk {
			chunks = append(chunks, span{at, min(at+copyChunk, s.end)})
		}
	}
	if err := reserveAll(f.file, spans); err != nil {
		return writeError(f.path, need, err)
	}
	workers := runtime.GOMAXPROCS(0)
	buffers := make(chan []byte, workers)
	for range workers {
		buffers <- make([]byte, min(need, copyChunk))
	}
	return parallel(workers, len(chunks), func(i int) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		buf := <-buffers
		defer func() { buffers <- buf }()
		at := chunks[i].start
		part := buf[:chunks[i].end-at]
		if _, err := from.ReadAt(part, at); err != nil {
			return fmt.Errorf("read %s at %d: %w", from.Name(), at, err)
		}
		if _, err := f.file.WriteAt(part, at); err != nil {
			return writeError(f.path, need, err)
		}
		return nil
	})
}
