package memory

import (
	"context"
	"os"

	"golang.org/x/sys/unix"
)

// copyStep bounds how long a copy goes on after its context has ended.
const copyStep = 8 << 20

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

// copyData copies what is not hole.
func (f *Flat) copyData(ctx context.Context, from *os.File) error {
	spans, err := dataSpans(from, f.size)
	if err != nil {
		return err
	}
	var need int64
	for _, s := range spans {
		need += s.end - s.start
	}
	for _, s := range spans {
		if err := reserve(f.file, s.start, s.end-s.start); err != nil {
			return writeError(f.path, need, err)
		}
	}
	for _, s := range spans {
		for at := s.start; at < s.end; at += copyStep {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := f.copySpan(from, at, min(at+copyStep, s.end)); err != nil {
				return writeError(f.path, need, err)
			}
		}
	}
	return nil
}

// copySpan copies through a mapping: one copy instead of the two of read and write.
func (f *Flat) copySpan(from *os.File, start, end int64) error {
	data, err := unix.Mmap(int(from.Fd()), start, int(end-start), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return err
	}
	defer unix.Munmap(data)
	_, err = f.file.WriteAt(data, start)
	return err
}
