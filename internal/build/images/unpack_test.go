package images_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"vers/internal/build/images"
	"vers/internal/fault"
	"vers/internal/rootfs"
)

func unpacker(bytes, entries int64) *images.Service {
	return &images.Service{Options: images.Options{Context: rootfs.Limits{Bytes: bytes, Entries: entries}}}
}

// What a folder holds arrives as it was: hidden files, links with their targets, modes, times.
func TestUnpack(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	at := time.Unix(1234567, 0)
	for _, h := range []tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./.hidden", Typeflag: tar.TypeReg, Mode: 0o600, Size: 1},
		{Name: "bin/run", Typeflag: tar.TypeReg, Mode: 0o4755, Size: 1},
		{Name: "sealed/", Typeflag: tar.TypeDir, Mode: 0o555},
		{Name: "sealed/file", Typeflag: tar.TypeReg, Mode: 0o444, Size: 1},
		{Name: "twice", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1},
		{Name: "twice", Typeflag: tar.TypeReg, Mode: 0o755, Size: 1},
		{Name: "dangling", Typeflag: tar.TypeSymlink, Linkname: "../../nowhere"},
		{Name: "absolute", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
		{Name: "hard", Typeflag: tar.TypeLink, Linkname: "bin/run"},
	} {
		h.ModTime = at
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, "x"[:h.Size]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := unpacker(100, 100).Unpack(t.Context(), &b, dir); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{
		".hidden": 0o600, "bin/run": 0o755 | fs.ModeSetuid, "sealed/file": 0o444, "twice": 0o755, "hard": 0o755 | fs.ModeSetuid,
	} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || info.Mode() != mode || !info.ModTime().Equal(at) {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	for name, target := range map[string]string{"dangling": "../../nowhere", "absolute": "/etc/passwd"} {
		if got, err := os.Readlink(filepath.Join(dir, name)); got != target {
			t.Errorf("%s leads to %q, %v", name, got, err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "sealed")); err != nil || info.Mode().Perm()&0o555 != 0o555 || !info.ModTime().Equal(at) {
		t.Errorf("sealed: %v %v", info, err)
	}
	if err := os.Chmod(filepath.Join(dir, "sealed"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// Nothing of an archive reaches anything outside of its folder.
func TestUnpackHostile(t *testing.T) {
	for name, entries := range map[string][]entry{
		"dots":                 {{name: "../../escaped", text: "x"}},
		"absolute":             {{name: "/escaped", text: "x"}},
		"through a link":       {{name: "out", text: "..", kind: tar.TypeSymlink}, {name: "out/escaped", text: "x"}},
		"through absolute":     {{name: "out", text: "/OUTSIDE", kind: tar.TypeSymlink}, {name: "out/escaped", text: "x"}},
		"through two links":    {{name: "a/b", text: "..", kind: tar.TypeSymlink}, {name: "c", text: "a/b/..", kind: tar.TypeSymlink}, {name: "c/escaped", text: "x"}},
		"over a link":          {{name: "escaped", text: "/OUTSIDE/victim", kind: tar.TypeSymlink}, {name: "escaped", text: "x"}},
		"hard link out":        {{name: "escaped", text: "../../OUTSIDE/victim", kind: tar.TypeLink}},
		"hard link by a link":  {{name: "l", text: "/OUTSIDE/victim", kind: tar.TypeSymlink}, {name: "h", text: "l", kind: tar.TypeLink}, {name: "h", text: "x"}},
		"folder over a link":   {{name: "d", text: "/OUTSIDE", kind: tar.TypeSymlink}, {name: "d/", kind: tar.TypeDir}, {name: "d/escaped", text: "x"}},
		"a device":             {{name: "dev", kind: tar.TypeBlock}},
		"a pipe":               {{name: "fifo", kind: tar.TypeFifo}},
		"a file under a file":  {{name: "f", text: "x"}, {name: "f/escaped", text: "x"}},
		"a file over a folder": {{name: "d/f", text: "x"}, {name: "d", text: "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			outside := t.TempDir()
			victim := filepath.Join(outside, "victim")
			if err := os.WriteFile(victim, []byte("whole"), 0o600); err != nil {
				t.Fatal(err)
			}
			for i := range entries {
				entries[i].text = string(bytes.ReplaceAll([]byte(entries[i].text), []byte("/OUTSIDE"), []byte(outside)))
			}
			dir := filepath.Join(outside, "one", "two", "folder")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			_, err := unpacker(100, 100).Unpack(t.Context(), archive(t, entries...), dir)
			if err != nil && fault.KindOf(err) == fault.Internal {
				t.Errorf("no fault of the sender: %v", err)
			}
			if text, err := os.ReadFile(victim); err != nil || string(text) != "whole" {
				t.Errorf("the victim: %q, %v", text, err)
			}
			_ = filepath.WalkDir(outside, func(path string, _ fs.DirEntry, _ error) error {
				if inside, _ := filepath.Rel(dir, path); filepath.Base(path) == "escaped" && !filepath.IsLocal(inside) {
					t.Errorf("%s is there", path)
				}
				return nil
			})
			if _, err := os.Lstat("/escaped"); err == nil {
				t.Error("/escaped is there")
			}
		})
	}
}

// Bytes and entries are limited, whatever headers promise.
func TestUnpackLimits(t *testing.T) {
	many := make([]entry, 20)
	for i := range many {
		many[i].name = fmt.Sprint(i)
	}
	for name, c := range map[string]struct {
		entries []entry
		kind    fault.Kind
	}{
		"bytes":   {[]entry{{name: "a", text: "123456"}, {name: "b", text: "123456"}}, fault.Exhausted},
		"entries": {many, fault.Exhausted},
	} {
		if _, err := unpacker(10, 10).Unpack(t.Context(), archive(t, c.entries...), t.TempDir()); !fault.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// zeroes is a file that costs nobody memory.
type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// A large folder needs no more memory than a small one.
func TestUnpackMemory(t *testing.T) {
	const size = 512 << 20
	r, w := io.Pipe()
	go func() {
		archive := tar.NewWriter(w)
		err := archive.WriteHeader(&tar.Header{Name: "large", Typeflag: tar.TypeReg, Mode: 0o644, Size: size})
		if err == nil {
			_, err = io.CopyN(archive, zeroes{}, size)
		}
		w.CloseWithError(errors.Join(err, archive.Close()))
	}()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := unpacker(2*size, 10).Unpack(t.Context(), r, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if all := after.TotalAlloc - before.TotalAlloc; all > 4<<20 {
		t.Errorf("%d KiB were allocated in all for a folder of %d MiB", all>>10, size>>20)
	}
}

// Whatever comes, nothing is written outside, nothing panics, and faults are the sender's.
func FuzzUnpack(f *testing.F) {
	f.Add(archive(f, entry{name: "a/b", text: "x"}, entry{name: "l", text: "a", kind: tar.TypeSymlink}, entry{name: "l/c", text: "x"}).Bytes())
	f.Add(archive(f, entry{name: "../x", text: "y"}).Bytes())
	f.Add([]byte{0x1f, 0x8b, 8})
	f.Fuzz(func(t *testing.T, data []byte) {
		outside := t.TempDir()
		dir := filepath.Join(outside, "folder")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := unpacker(1<<20, 1000).Unpack(context.Background(), bytes.NewReader(data), dir)
		if fault.Is(err, fault.Internal) && !errors.Is(err, fs.ErrInvalid) {
			t.Logf("not the sender's fault: %v", err)
		}
		if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
			t.Errorf("%v beside the folder, %v", entries, err)
		}
	})
}

// What is written is what came, wherever blocks of zeroes begin and end; they take no space.
func TestUnpackSparse(t *testing.T) {
	const block = 4096
	random := rand.New(rand.NewPCG(1, 2))
	contents := map[string][]byte{"zeroes": make([]byte, 300*block+7), "empty": nil}
	for i := range 50 {
		var content []byte
		for range random.IntN(8) {
			piece := make([]byte, random.IntN(3*block))
			if random.IntN(2) == 0 {
				for i := range piece {
					piece[i] = byte(random.IntN(256))
				}
			}
			content = append(content, piece...)
		}
		contents[fmt.Sprint(i)] = content
	}
	var entries []entry
	for name, content := range contents {
		entries = append(entries, entry{name: name, text: string(content)})
	}
	dir := t.TempDir()
	if _, err := unpacker(1<<30, 100).Unpack(t.Context(), archive(t, entries...), dir); err != nil {
		t.Fatal(err)
	}
	for name, content := range contents {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes, %v, want %d", name, len(got), err, len(content))
		}
	}
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(dir, "zeroes"), &st); err != nil || st.Blocks*512 > 2*block {
		t.Errorf("zeroes take %d bytes, %v", st.Blocks*512, err)
	}
}
