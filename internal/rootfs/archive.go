package rootfs

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"

	"vers/internal/compression"
	"vers/internal/fault"
)

// peekSize is the buffer that archives are read through, in bytes.
const peekSize = 256 << 10

// maxTrailer is what may follow the end of an archive, in bytes: padding.
const maxTrailer = 16 << 20

// stream is an archive being read: its compression undone, the caller's own errors told from those of the archive.
type stream struct {
	ctx    context.Context
	src    io.Reader
	srcErr error // of src, but the end

	plain io.Reader
	close func()
	tar   *tar.Reader
}

// openStream finds out how the archive is compressed. fault.Invalid for an empty one and for unknown compressions.
func openStream(ctx context.Context, src io.Reader) (*stream, error) {
	s := &stream{ctx: ctx, src: src, close: func() {}}
	buffered := bufio.NewReaderSize(sourceReader{s}, peekSize)
	if _, err := buffered.Peek(1); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, fault.Invalidf("the archive is empty: expected a tar archive, plain or compressed with gzip or zstd")
		}
		return nil, s.explain(err)
	}
	var err error
	if s.plain, s.close, err = compression.Plain(buffered); err != nil {
		if fault.Is(err, fault.Internal) {
			err = s.explain(err)
		}
		return nil, err
	}
	s.tar = tar.NewReader(s.plain)
	return s, nil
}

// sourceReader remembers errors of the caller's reader, and ends with the context.
type sourceReader struct{ s *stream }

func (r sourceReader) Read(p []byte) (int, error) {
	if err := r.s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.s.src.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.s.srcErr = err
	}
	return n, err
}

// next is the next header; io.EOF after the last.
func (s *stream) next() (*tar.Header, error) {
	for {
		hdr, err := s.tar.Next()
		if errors.Is(err, tar.ErrInsecurePath) { // a setting of the Go runtime; names are resolved below the root here
			err = nil
		}
		if err != nil {
			if errors.Is(err, io.EOF) && s.srcErr == nil {
				return nil, io.EOF
			}
			return nil, s.explain(err)
		}
		if hdr.Typeflag != tar.TypeXGlobalHeader {
			return hdr, nil
		}
	}
}

// drain reads what follows the archive's end, so that its writer is not stopped before its own end and checksums of the
// compression are looked at.
func (s *stream) drain() error {
	n, err := io.CopyN(io.Discard, s.plain, maxTrailer+1)
	if err != nil && !errors.Is(err, io.EOF) {
		return s.explain(err)
	}
	if n > maxTrailer {
		return fault.Invalidf("the archive goes on for more than %d MiB after its end mark", maxTrailer>>20)
	}
	return nil
}

// explain tells errors of the caller's reader and a cancelled context from a damaged archive, which is fault.Invalid.
func (s *stream) explain(err error) error {
	switch {
	case s.ctx.Err() != nil:
		return fmt.Errorf("reading the archive: stopped: %w", context.Cause(s.ctx))
	case s.srcErr != nil:
		return fmt.Errorf("reading the archive: %w", s.srcErr)
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF):
		return fault.Invalidf("the archive ends in the middle: was it copied completely? (%w)", err)
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return fault.Invalidf("unpacking the archive needs more than %d MiB of memory: compress it with a smaller window (%w)", compression.MaxWindow>>20, err)
	}
	return fault.Invalidf("the archive is damaged, or is no tar archive (plain, gzip or zstd): %w", err)
}

// spool is a temporary file without a name: it ends with the process, however that ends.
func spool(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return nil, fmt.Errorf("spool the archive: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// sparseWriter appends to a file and leaves out blocks of zeroes. Writes must be multiples of a block, but the last.
type sparseWriter struct {
	f  *os.File
	at int64
}

func (w *sparseWriter) Write(p []byte) (int, error) {
	end, err := dataRuns(p, func(off int, data []byte) error {
		_, err := w.f.WriteAt(data, w.at+int64(off))
		return err
	})
	if err != nil {
		return end, fmt.Errorf("spool the archive in %s: %w", filepath.Dir(w.f.Name()), err)
	}
	w.at += int64(len(p))
	return len(p), nil
}

// finish gives the file its full size and goes to its beginning.
func (w *sparseWriter) finish() error {
	if err := w.f.Truncate(w.at); err != nil {
		return err
	}
	_, err := w.f.Seek(0, io.SeekStart)
	return err
}

// zeroes is one block of them.
var zeroes [blockSize]byte

// dataRuns calls f for each run of blocks of p that are not all zero, in ascending order. p begins at a block's
// beginning. It gives how far it came.
func dataRuns(p []byte, f func(off int, data []byte) error) (int, error) {
	for at := 0; at < len(p); {
		start := at
		for at < len(p) && !isZero(p[at:min(at+blockSize, len(p))]) {
			at = min(at+blockSize, len(p))
		}
		if at > start {
			if err := f(start, p[start:at]); err != nil {
				return start, err
			}
		}
		for at < len(p) && isZero(p[at:min(at+blockSize, len(p))]) {
			at = min(at+blockSize, len(p))
		}
	}
	return len(p), nil
}

func isZero(block []byte) bool { return bytes.Equal(block, zeroes[:len(block)]) }
