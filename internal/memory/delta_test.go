package memory

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lukechampine.com/blake3"
)

var update = flag.Bool("update", false, "write the golden files anew")

const testID = "0b9f1c52-7a6e-4d0c-8f11-2233445566aa"

// sample is a small delta with everything in it: data, a zero run over data, one over nothing, neighbours of both kinds.
func sample(t testing.TB, path string) DeltaInfo {
	t.Helper()
	base := flatFile(t, t.TempDir(), testID+".ram", 64, span{10, 20})
	pages := map[int64][]byte{}
	for _, p := range []int64{2, 3, 9, 12, 63} {
		pages[p] = make([]byte, PageSize)
		pattern(pages[p], p, 7)
	}
	for _, p := range []int64{10, 11, 18, 19, 20, 21, 40} {
		pages[p] = nil
	}
	info, err := WriteDelta(path, NewSnapshot(64*PageSize, pages), base)
	must(t, err)
	return info
}

// The format must not change by accident: files written today are read by later versions.
func TestDeltaGolden(t *testing.T) {
	path := filepath.Join(t.TempDir(), "delta")
	info := sample(t, path)
	golden := filepath.Join("testdata", "delta-v1.bin")
	written, err := os.ReadFile(path)
	must(t, err)
	if *update {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(golden, written, 0o644))
	}
	want, err := os.ReadFile(golden)
	must(t, err)
	if !bytes.Equal(written, want) {
		t.Error("the file differs from " + golden)
	}
	if read, err := VerifyDelta(golden); err != nil || read != info {
		t.Errorf("%+v, %v, want %+v", read, err, info)
	}
	if info.Base != testID || info.DataPages != 5 || info.ZeroPages != 4 || info.Runs != 7 || info.RAMBytes != 64*PageSize {
		t.Errorf("%+v", info)
	}
	// docs/formats.md by hand, with nothing of the reader.
	if string(want[:8]) != "VERSMEM\x01" || binary.LittleEndian.Uint32(want[8:]) != 1 || binary.LittleEndian.Uint64(want[64:]) != 2 {
		t.Error("header or run table are not where docs/formats.md says")
	}
	if data := want[64+7*16:]; len(data) != 5*PageSize+32 || isZero(data[:PageSize]) {
		t.Error("data is not where docs/formats.md says")
	}
	if sum := blake3.Sum256(want[:len(want)-32]); !bytes.Equal(sum[:], want[len(want)-32:]) || info.BLAKE3 != hex.EncodeToString(sum[:]) {
		t.Error("the hash is not what docs/formats.md says")
	}
}

// Every single damaged byte and every length but the right one is found, with the file and an offset.
func TestDeltaDamage(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "delta")
	sample(t, path)
	good, err := os.ReadFile(path)
	must(t, err)
	check := func(what string, data []byte) {
		t.Helper()
		bad := filepath.Join(dir, "bad")
		must(t, os.WriteFile(bad, data, 0o600))
		if _, err := VerifyDelta(bad); err == nil || !strings.Contains(err.Error(), bad) || !strings.Contains(err.Error(), "byte ") {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for at := 0; at < len(good); at += 1 + at/300 {
		data := bytes.Clone(good)
		data[at] ^= 0x10
		check("byte changed", data)
		check("cut off", good[:at])
	}
	check("longer", append(bytes.Clone(good), 0))
	check("other version", func() []byte { d := bytes.Clone(good); d[8] = 2; return d }())
	if _, err := VerifyDelta(path + "no"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}

	// A damaged delta is not applied without an error, and what comes of it is thrown away.
	data := bytes.Clone(good)
	data[len(data)-100] ^= 1
	must(t, os.WriteFile(path, data, 0o600))
	flat := filepath.Join(t.TempDir(), "flat")
	if err := rebuild(context.Background(), flat, 64*PageSize, []string{path}); err == nil {
		t.Error("a damaged delta was applied")
	}
	onlyFiles(t, filepath.Dir(flat))
	must(t, os.WriteFile(path, good, 0o600))
	if err := rebuild(context.Background(), flat, 65*PageSize, []string{path}); err == nil {
		t.Error("a delta of another memory size was applied")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := rebuild(ctx, flat, 64*PageSize, []string{path}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	onlyFiles(t, filepath.Dir(flat))
}

// Zero pages are recorded where the base has data, however that data is stored.
func TestDeltaZeroes(t *testing.T) {
	dir := t.TempDir()
	base := flatFile(t, dir, "base.ram", 1000, span{0, 10}, span{500, 510})
	f, err := os.OpenFile(base, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt(make([]byte, 5*PageSize), 503*PageSize) // data, but zeroes
	must(t, err)
	must(t, reserve(f, 700*PageSize, 100*PageSize)) // blocks without data
	must(t, f.Close())
	pages := map[int64][]byte{}
	for p := range int64(1000) {
		pages[p] = nil
	}
	s := NewSnapshot(1000*PageSize, pages)
	for from, want := range map[string]int64{base: 15, "": 0} {
		path := filepath.Join(t.TempDir(), "delta")
		info, err := WriteDelta(path, s, from)
		must(t, err)
		if info.ZeroPages != want || info.DataPages != 0 || info.Base != "" {
			t.Errorf("over %q: %+v", from, info)
		}
	}
	path := filepath.Join(dir, "delta")
	must(t, os.WriteFile(path, []byte("mine"), 0o600))
	if _, err := WriteDelta(path, s, base); !errors.Is(err, os.ErrExist) {
		t.Errorf("over an existing file: %v", err)
	}
	if got, _ := os.ReadFile(path); string(got) != "mine" {
		t.Error("an existing file was changed")
	}
	if _, err := WriteDelta(path+"2", NewSnapshot(999*PageSize, nil), base); err == nil {
		t.Error("a base of another size was accepted")
	}
	if _, err := WriteDelta(path+"2", NewSnapshot(PageSize, map[int64][]byte{3: nil}), ""); err == nil {
		t.Error("a page beyond the end was accepted")
	}
	onlyFiles(t, dir, "base.ram", "delta")
}

// A process's memory goes through a delta and a flat file, is mapped by the next process, and so on.
func TestLineage(t *testing.T) {
	dir := t.TempDir()
	const pages = 5000
	flat := ""
	var deltas []string
	m := model{}
	set := func(from, to, seed int64) {
		for p := from; p < to; p++ {
			m[p] = make([]byte, PageSize)
			if seed > 0 {
				pattern(m[p], p, seed)
			}
		}
	}
	for i, steps := range [][][3]int64{
		{{0, 3000, 1}, {4000, 4100, 1}, {100, 120, 0}},
		{{50, 60, 2}, {1000, 1500, 0}, {4999, 5000, 2}},
		{{1200, 1210, 3}, {0, 10, 0}},
	} {
		path := flat
		if path == "" {
			path = "-"
		}
		c := startChild(t, pages*PageSize, path, "-")
		for _, s := range steps {
			if s[2] == 0 {
				c.do("zero %d %d", s[0], s[1]-s[0])
			} else {
				c.do("fill %d %d %d", s[0], s[1]-s[0], s[2])
			}
			set(s[0], s[1], s[2])
		}
		s := c.capture()
		name := filepath.Join(dir, string(rune('a'+i)))
		_, err := WriteDelta(name+".delta", s, flat)
		must(t, err)
		newFlat(t, name+".ram", flat, pages*PageSize, s)
		flat, deltas = name+".ram", append(deltas, name+".delta")
		m.compare(t, flat, pages)
	}
	must(t, rebuild(context.Background(), filepath.Join(dir, "again.ram"), pages*PageSize, deltas))
	m.compare(t, filepath.Join(dir, "again.ram"), pages)
}

func FuzzReadDelta(f *testing.F) {
	path := filepath.Join(f.TempDir(), "delta")
	sample(f, path)
	good, err := os.ReadFile(path)
	must(f, err)
	f.Add(good)
	f.Add(good[:64])
	f.Add([]byte(deltaMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		// The hash is made right, so that the fuzzer gets past it.
		if len(data) > deltaTrailer {
			sum := blake3.Sum256(data[:len(data)-deltaTrailer])
			copy(data[len(data)-deltaTrailer:], sum[:])
		}
		sink := &checkingSink{t: t}
		info, err := readDelta(context.Background(), bytes.NewReader(data), int64(len(data)), sink)
		if err != nil {
			return
		}
		if sink.pages != info.DataPages || info.FileBytes != int64(len(data)) {
			t.Errorf("%d pages put, %+v", sink.pages, info)
		}
	})
}

// checkingSink accepts what a flat file would.
type checkingSink struct {
	t           *testing.T
	size, pages int64
	next        int64
}

func (s *checkingSink) begin(info DeltaInfo, _ []fileRun) error {
	s.size = info.RAMBytes
	return nil
}

func (s *checkingSink) putData(page int64, data []byte) error {
	count := int64(len(data)) / PageSize
	if count == 0 || len(data)%PageSize != 0 || page < s.next || page+count > s.size/PageSize {
		s.t.Errorf("%d bytes at page %d of %d", len(data), page, s.size/PageSize)
	}
	s.next, s.pages = page+count, s.pages+count
	return nil
}
