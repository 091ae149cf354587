package image

import (
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"lukechampine.com/blake3"
)

// DigestFile is the BLAKE3 digest of a file's content: 64 hexadecimal characters.
func DigestFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := blake3.New(32, nil)
	if _, err := io.CopyBuffer(h, f, make([]byte, 1<<20)); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// digestTree is one digest over the names and contents of all regular files below dir, but those in skip. The walk is
// in lexical order, so the same files give the same digest everywhere.
func digestTree(dir string, skip ...string) (string, error) {
	ignored := make(map[string]bool, len(skip))
	for _, name := range skip {
		ignored[name] = true
	}
	h := blake3.New(32, nil)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || !entry.Type().IsRegular() || ignored[name] {
			return err
		}
		sum, err := DigestFile(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%q %s\n", filepath.ToSlash(name), sum)
		return nil
	})
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// digestStrings is the digest of a list of strings, unambiguous about where each ends.
func digestStrings(parts ...string) string {
	h := blake3.New(32, nil)
	for _, p := range parts {
		fmt.Fprintf(h, "%q\n", p)
	}
	return hex.EncodeToString(h.Sum(nil))
}
