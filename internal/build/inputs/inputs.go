// Package inputs names the folder of a build by what is in it: client and server can say to each other that it is the same
// as before without sending it.
package inputs

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"path"
	"strings"
)

// Sum digests the entries of an archive in the order in which they come: kinds, names, permissions, targets of links and
// contents, but neither times nor owners, which no build's cache looks at. It has the methods of a tar.Writer that a folder
// is archived with, and needs the same memory for every folder.
type Sum struct {
	hash   hash.Hash
	buffer []byte
}

// New begins a digest.
func New() *Sum {
	s := &Sum{hash: sha256.New(), buffer: make([]byte, 128<<10)}
	_, _ = io.WriteString(s.hash, "vers folder 1\n")
	return s
}

// WriteHeader begins an entry. What is written next is its content, h.Size bytes of a file.
func (s *Sum) WriteHeader(h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	size := int64(0)
	if h.Typeflag == tar.TypeReg {
		size = h.Size
	}
	// Lengths come first, so that no two folders are written alike.
	name := path.Clean("/" + h.Name)[1:]
	_, err := fmt.Fprintf(s.hash, "%c %o %d %d:%s %d:%s\n", h.Typeflag, h.Mode&0o7777, size, len(name), name, len(h.Linkname), h.Linkname)
	return err
}

func (s *Sum) Write(p []byte) (int, error) { return s.hash.Write(p) }

// ReadFrom implements io.ReaderFrom.
func (s *Sum) ReadFrom(r io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{s.hash}, struct{ io.Reader }{r}, s.buffer)
}

// String is the digest of what was written.
func (s *Sum) String() string { return prefix + hex.EncodeToString(s.hash.Sum(nil)) }

const prefix = "sha256:"

// Valid reports whether text is a digest.
func Valid(text string) bool {
	digest, ok := strings.CutPrefix(text, prefix)
	sum, err := hex.DecodeString(digest)
	return ok && err == nil && len(sum) == sha256.Size && digest == strings.ToLower(digest)
}
