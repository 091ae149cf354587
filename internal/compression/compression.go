// Package compression finds out how a tar archive is compressed, and undoes it.
package compression

import (
	"bufio"
	"bytes"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"vers/internal/fault"
)

// MaxWindow is how much memory a zstd archive may ask for, in bytes: what zstd --long=27 makes.
const MaxWindow = 128 << 20

const bufferSize = 256 << 10

// tarMagic is at the same place in each archive since 1988.
const (
	tarMagic   = "ustar"
	tarMagicAt = 257
)

// magics of compressions, by what begins them.
var magics = []struct{ name, magic string }{
	{"gzip", "\x1f\x8b"}, {"zstd", "\x28\xb5\x2f\xfd"}, {"xz", "\xfd7zXZ\x00"}, {"bzip2", "BZh"},
}

// Decompress undoes the compression of a tar archive, which is found out by looking: none, gzip or zstd. fault.Invalid for
// other ones and for a beginning that is damaged. Damage further on, and what r says, are errors of Read. An empty
// archive stays one. What it gives must be closed; r is not.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	plain, done, err := Plain(bufio.NewReaderSize(r, bufferSize))
	if err != nil {
		return nil, err
	}
	return decompressed{plain, done}, nil
}

type decompressed struct {
	io.Reader
	done func()
}

func (d decompressed) Close() error {
	d.done()
	return nil
}

// Plain is Decompress for a reader with a buffer: it gives the archive itself if it is not compressed, and done lets go of
// what it holds. Errors of kind fault.Internal are those of the reader, or damage.
func Plain(archive *bufio.Reader) (plain io.Reader, done func(), err error) {
	done = func() {}
	switch name := kind(archive); name {
	case "":
		return archive, done, nil
	case "gzip":
		r, err := gzip.NewReader(archive)
		return r, done, err
	case "zstd":
		r, err := zstd.NewReader(archive, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(MaxWindow))
		if err != nil {
			return nil, done, err
		}
		return r, r.Close, nil
	default:
		return nil, done, fault.Invalidf("the archive is compressed with %s: only gzip and zstd are understood; unpack it first", name)
	}
}

// kind is what an archive is compressed with, "" nothing. What the reader says will be said again when it is read.
func kind(archive *bufio.Reader) string {
	start, err := archive.Peek(tarMagicAt + len(tarMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	if len(start) > tarMagicAt && string(start[tarMagicAt:]) == tarMagic { // its first name may look like a compression
		return ""
	}
	for _, m := range magics {
		if bytes.HasPrefix(start, []byte(m.magic)) {
			return m.name
		}
	}
	return ""
}
