package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// randomChain makes a raw image and layers over it with writes, zeroes and growth at random places.
func randomChain(t testing.TB, rng *rand.Rand, dir string, depth int, image string, below []string) []string {
	t.Helper()
	layers := append([]string(nil), below...)
	size := int64(4 << 20)
	backing, format := filepath.Base(image), "raw"
	if len(layers) > 0 {
		info, err := Stat(layers[len(layers)-1])
		must(t, err)
		size, backing, format = info.VirtualSize, filepath.Base(layers[len(layers)-1]), "qcow2"
	}
	for range depth {
		if rng.IntN(3) == 0 {
			size += rng.Int64N(20) << 16
		}
		path := filepath.Join(dir, fmt.Sprintf("l%d.qcow2", rng.Uint64()))
		must(t, CreateOverlay(path, size, backing, format))
		var commands []string
		for range rng.IntN(8) {
			length := (1 + rng.Int64N(400)) << 9
			at := rng.Int64N((size-length)>>9) << 9
			switch rng.IntN(4) {
			case 0:
				commands = append(commands, fmt.Sprintf("write -z %d %d", at, length))
			case 1:
				commands = append(commands, fmt.Sprintf("write -z -u %d %d", at, length))
			default:
				commands = append(commands, fmt.Sprintf("write -P %d %d %d", 1+rng.IntN(255), at, length))
			}
		}
		if len(commands) > 0 {
			qemuIO(t, path, commands...)
		}
		layers, backing, format = append(layers, path), filepath.Base(path), "qcow2"
	}
	return layers
}

// content is what QEMU reads from a chain.
func content(t testing.TB, image string, layers []string) []byte {
	t.Helper()
	if len(layers) == 0 {
		data, err := os.ReadFile(image)
		must(t, err)
		return data
	}
	out := filepath.Join(t.TempDir(), "out.raw")
	run(t, "qemu-img", "convert", "-O", "raw", layers[len(layers)-1], out)
	data, err := os.ReadFile(out)
	must(t, err)
	return data
}

func open(t testing.TB, image string, layers []string) *Reader {
	t.Helper()
	r, err := OpenChain(image, layers)
	must(t, err)
	t.Cleanup(func() { r.Close() })
	return r
}

// A Reader reads what QEMU reads, and outside of what Changed names two disks are the same.
func TestReaderAgainstQEMU(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			dir := t.TempDir()
			image := filepath.Join(dir, "base.raw")
			data := make([]byte, 4<<20-rng.IntN(100)*512)
			for i := range data {
				data[i] = byte(i>>9) | 1
			}
			must(t, os.WriteFile(image, data, 0o600))
			shared := randomChain(t, rng, dir, rng.IntN(3), image, nil)
			var readers [2]*Reader
			var contents [2][]byte
			for side := range readers {
				layers := randomChain(t, rng, dir, rng.IntN(3), image, shared)
				readers[side], contents[side] = open(t, image, layers), content(t, image, layers)
				checkReads(t, rng, readers[side], contents[side])
			}
			checkChanged(t, readers, contents)
		})
	}
}

func checkReads(t *testing.T, rng *rand.Rand, r *Reader, want []byte) {
	t.Helper()
	if r.Size() != int64(len(want)) {
		t.Fatalf("size %d, QEMU has %d", r.Size(), len(want))
	}
	whole := make([]byte, len(want)+10)
	n, err := r.ReadAt(whole, 0)
	if n != len(want) || err == nil || !bytes.Equal(whole[:n], want) {
		t.Fatalf("the whole disk: %d bytes, %v, equal %v", n, err, bytes.Equal(whole[:n], want))
	}
	for range 200 {
		at := rng.IntN(len(want))
		part := make([]byte, rng.IntN(min(len(want)-at, 300<<10)+1))
		if _, err := r.ReadAt(part, int64(at)); err != nil || !bytes.Equal(part, want[at:at+len(part)]) {
			t.Fatalf("%d bytes at %d: %v, or other content", len(part), at, err)
		}
	}
}

func checkChanged(t *testing.T, readers [2]*Reader, contents [2][]byte) {
	t.Helper()
	ranges, err := Changed(readers[0], readers[1])
	must(t, err)
	inside := func(at int64) bool {
		for _, r := range ranges {
			if at >= r.Start && at < r.End {
				return true
			}
		}
		return false
	}
	long := int64(max(len(contents[0]), len(contents[1])))
	for at := int64(0); at < long; at += 512 {
		same := at < int64(len(contents[0])) && at < int64(len(contents[1])) && bytes.Equal(contents[0][at:at+512], contents[1][at:at+512])
		if !same && !inside(at) {
			t.Fatalf("the disks differ at %d, which is not in %v", at, ranges)
		}
	}
	if len(readers[0].files) == len(readers[1].files) && readers[0].files[len(readers[0].files)-1].Name() == readers[1].files[len(readers[1].files)-1].Name() && len(ranges) > 0 {
		t.Errorf("a disk differs from itself: %v", ranges)
	}
}

// The same lineage costs only what was written; other images cost everything.
func TestChangedIsNarrow(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "base.raw")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 1<<30))
	one, two := filepath.Join(dir, "one.qcow2"), filepath.Join(dir, "two.qcow2")
	must(t, CreateOverlay(one, 1<<30, "base.raw", "raw"))
	must(t, CreateOverlay(two, 1<<30, "one.qcow2", "qcow2"))
	qemuIO(t, one, "write -P 1 0 1M")
	qemuIO(t, two, "write -P 2 700M 4k")
	ranges, err := Changed(open(t, image, []string{one}), open(t, image, []string{one, two}))
	must(t, err)
	if len(ranges) != 1 || ranges[0] != (Range{700 << 20, 700<<20 + clusterSize}) {
		t.Errorf("%v", ranges)
	}
	other := filepath.Join(dir, "other.raw")
	must(t, os.WriteFile(other, nil, 0o600))
	ranges, err = Changed(open(t, image, []string{one}), open(t, other, nil))
	must(t, err)
	if len(ranges) != 1 || ranges[0] != (Range{0, 1 << 30}) {
		t.Errorf("other images: %v", ranges)
	}
}

func TestReaderRefuses(t *testing.T) {
	dir := t.TempDir()
	layers, base := makeLayers(t, dir)
	good, err := os.ReadFile(layers[0])
	must(t, err)
	be := binary.BigEndian
	l2 := be.Uint64(good[be.Uint64(good[40:]):]) & offsetMask
	for part, damage := range map[string]func(b []byte){
		"version 2":           func(b []byte) { be.PutUint32(b[4:], 2) },
		"clusters of 2^12":    func(b []byte) { be.PutUint32(b[20:], 12) },
		"encrypted":           func(b []byte) { be.PutUint32(b[32:], 2) },
		"extended L2 entries": func(b []byte) { b[79] |= 1 << 4 },
		"compression type":    func(b []byte) { b[79] |= 1 << 3 },
		"bit 40":              func(b []byte) { b[74] |= 1 },
		"0 entries":           func(b []byte) { be.PutUint32(b[36:], 0) },
		"outside of the file": func(b []byte) { be.PutUint64(b[40:], 1<<40) },
		"EOF":                 func(b []byte) { be.PutUint64(b[be.Uint64(b[40:]):], 1<<40) },
		"compressed":          func(b []byte) { b[l2] |= 1 << 6 },
		"between two":         func(b []byte) { b[l2+6] |= 2 },
		"never shrink":        func(b []byte) { be.PutUint64(b[24:], 1<<20) },
	} {
		path := filepath.Join(dir, "bad.qcow2")
		b := bytes.Clone(good)
		damage(b)
		must(t, os.WriteFile(path, b, 0o600))
		r, err := OpenChain(base, []string{path})
		if err == nil {
			_, err = r.ReadAt(make([]byte, 4096), 0)
			r.Close()
		}
		if err == nil || !strings.Contains(err.Error(), part) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", part, err)
		}
	}
}

// Whatever a layer's file says, reading ends: with data or an error.
func FuzzReader(f *testing.F) {
	dir := f.TempDir()
	base := filepath.Join(dir, "base.raw")
	must(f, os.WriteFile(base, make([]byte, 1<<20), 0o600))
	path := filepath.Join(dir, "l.qcow2")
	must(f, CreateOverlay(path, 1<<20, "base.raw", "raw"))
	qemuIO(f, path, "write -P 3 100k 200k")
	good, err := os.ReadFile(path)
	must(f, err)
	f.Add(uint32(25), byte(1), uint32(3<<16), byte(7))
	f.Fuzz(func(t *testing.T, at1 uint32, to1 byte, at2 uint32, to2 byte) {
		b := bytes.Clone(good)
		b[int(at1)%len(b)], b[int(at2)%len(b)] = to1, to2
		damaged := filepath.Join(t.TempDir(), "d.qcow2")
		must(t, os.WriteFile(damaged, b, 0o600))
		r, err := OpenChain(base, []string{damaged})
		if err != nil {
			return
		}
		defer r.Close()
		_, _ = r.ReadAt(make([]byte, 1<<20), 0)
		_, _ = r.ReadAt(make([]byte, 1<<10), r.Size()-512)
		plain, err := OpenChain(base, nil)
		must(t, err)
		defer plain.Close()
		_, _ = Changed(plain, r)
	})
}
