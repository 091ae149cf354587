// Package partial lets an interrupted copy of a file go on. What is there already is compared block by block, by XXH64,
// before anything is added to it. That guards against accidents: a VM that wants to deceive decides anyway what is read of it,
// and what it keeps. XXH64 needs no more than multiplication, which is quick in emulated machines too. Between client and guest that goes over an SSH channel of the subsystem Subsystem: one
// Request, then Answers, one JSON value a line (docs/guest-protocol.md).
package partial

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cespare/xxhash/v2"
)

// Subsystem is the name of the SSH subsystem.
const Subsystem = "partial-v2@vers"

// Block is how many bytes have one digest; the last block of a file may be shorter.
const Block = 4 << 20

// Operations.
const (
	// OpHold makes the file if it is not there and holds it against others until the channel is closed. Its answer has
	// the file's size.
	OpHold = "hold"
	// OpDigests answers with the digests of the first Bytes bytes, then with Done.
	OpDigests = "digests"
)

// ErrBusy says that somebody else copies to the same file.
var ErrBusy = errors.New("another copy writes this file")

// Request is what a client sends first.
type Request struct {
	Op    string `json:"op"`
	Path  string `json:"path"` // absolute, or relative to the home directory
	Bytes int64  `json:"bytes,omitempty"`
}

// Answer is what it gets.
type Answer struct {
	Bytes  int64  `json:"bytes,omitempty"`  // size of the file
	Digest []byte `json:"digest,omitempty"` // XXH64 of the next block, big-endian
	Done   bool   `json:"done,omitempty"`
	Busy   bool   `json:"busy,omitempty"`
	Error  string `json:"error,omitempty"`
}

// err is the failure that an answer tells.
func (a Answer) err() error {
	switch {
	case a.Busy:
		return ErrBusy
	case a.Error != "":
		return errors.New(a.Error)
	}
	return nil
}

// Digests gives the digest and the size of every block of the first n bytes of r to each, until that fails. A file that
// has become shorter has fewer.
func Digests(r io.Reader, n int64, each func(digest []byte, size int64) error) error {
	for n > 0 {
		hash := xxhash.New()
		read, err := io.Copy(hash, io.LimitReader(r, min(n, Block)))
		if err != nil {
			return err
		}
		if read == 0 {
			return nil
		}
		if err := each(hash.Sum(nil), read); err != nil {
			return err
		}
		n -= read
	}
	return nil
}

// Serve answers the one request that comes on rw. resolve makes an absolute path of the request's.
func Serve(rw io.ReadWriter, resolve func(string) string) error {
	decoder, encoder := json.NewDecoder(io.LimitReader(rw, 64<<10)), json.NewEncoder(rw)
	var req Request
	if err := decoder.Decode(&req); err != nil {
		return err
	}
	var err error
	switch path := resolve(req.Path); req.Op {
	case OpHold:
		err = hold(rw, encoder, path)
	case OpDigests:
		err = digests(encoder, path, req.Bytes)
	default:
		err = fmt.Errorf("unknown operation %q", req.Op)
	}
	if err == nil {
		return nil
	}
	return encoder.Encode(Answer{Error: err.Error(), Busy: errors.Is(err, ErrBusy)})
}

func hold(rw io.Reader, encoder *json.Encoder, path string) error {
	file, err := Hold(func(flags int, perm os.FileMode) (*os.File, error) { return os.OpenFile(path, flags, perm) },
		func() (os.FileInfo, error) { return os.Lstat(path) })
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if err := encoder.Encode(Answer{Bytes: info.Size(), Done: true}); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, rw) // until the client is through
	return nil
}

func digests(encoder *json.Encoder, path string, n int64) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(err, fmt.Errorf("%s is no regular file", path))
	}
	if err := Digests(file, n, func(digest []byte, _ int64) error { return encoder.Encode(Answer{Digest: digest}) }); err != nil {
		return err
	}
	return encoder.Encode(Answer{Done: true})
}

// Ask sends a request and gives a function that returns the answers one by one.
func Ask(rw io.ReadWriter, req Request) (next func() (Answer, error), err error) {
	if err := json.NewEncoder(rw).Encode(req); err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(rw)
	return func() (Answer, error) {
		var a Answer
		if err := decoder.Decode(&a); err != nil {
			return a, err
		}
		return a, a.err()
	}, nil
}

var errDiffers = errors.New("the blocks differ")

// Match gives how many of the first n bytes of r are the same as those whose digests next gives: all, or a whole number
// of blocks.
func Match(r io.Reader, n int64, next func() (Answer, error)) (int64, error) {
	var same int64
	err := Digests(r, n, func(digest []byte, size int64) error {
		a, err := next()
		if err != nil {
			return err
		}
		if !bytes.Equal(a.Digest, digest) {
			return errDiffers
		}
		same += size
		return nil
	})
	if errors.Is(err, errDiffers) {
		err = nil
	}
	return same, err
}

// again bounds how often Hold finds that its file was replaced.
const again = 8

// Hold opens a file for reading and writing, makes it if it is not there (0600), and holds it against other programs
// until it is closed. It is ErrBusy if another one holds it. A file that was renamed before it could be held, because the
// copy that held it is complete, is left alone, and a new one made.
func Hold(open func(flags int, perm os.FileMode) (*os.File, error), lstat func() (os.FileInfo, error)) (*os.File, error) {
	for range again {
		file, err := open(os.O_RDWR|os.O_CREATE|noFollow, 0o600)
		if err != nil {
			return nil, err
		}
		if err := lock(file); err != nil {
			file.Close()
			return nil, err
		}
		held, err := file.Stat()
		if err == nil && !held.Mode().IsRegular() {
			err = fmt.Errorf("%s is no regular file", file.Name())
		}
		if err != nil {
			file.Close()
			return nil, err
		}
		if there, err := lstat(); err == nil && os.SameFile(there, held) {
			return file, nil
		}
		file.Close()
	}
	return nil, ErrBusy
}
