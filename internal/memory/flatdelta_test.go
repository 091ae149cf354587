package memory

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
)

// A delta of a whole flat file rebuilds that file, from nothing.
func TestFlatDelta(t *testing.T) {
	for name, spans := range map[string][]span{
		"empty": nil, "one page": {{5, 6}}, "first and last": {{0, 1}, {255, 256}}, "all": {{0, 256}}, "several": {{3, 70}, {71, 72}, {200, 230}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			flat := flatFile(t, dir, testID+".ram", 256, spans...)
			want, err := os.ReadFile(flat)
			must(t, err)
			// Pages that are written and zero are not in the delta.
			f, err := os.OpenFile(flat, os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteAt(make([]byte, PageSize), 100*PageSize)
			must(t, err)
			must(t, f.Close())
			copy(want[100*PageSize:], make([]byte, PageSize))

			info, err := WriteFlatDelta(t.Context(), filepath.Join(dir, "delta"), flat)
			must(t, err)
			var pages int64
			for at := 0; at < len(want); at += PageSize {
				if !isZero(want[at : at+PageSize]) {
					pages++
				}
			}
			if info.DataPages != pages || info.ZeroPages != 0 || info.Base != "" {
				t.Errorf("%+v, want %d pages of data", info, pages)
			}
			if read, err := VerifyDelta(filepath.Join(dir, "delta")); err != nil || read != info {
				t.Errorf("%+v, %v, want %+v", read, err, info)
			}
			must(t, rebuild(t.Context(), filepath.Join(dir, "again"), 256*PageSize, []string{filepath.Join(dir, "delta")}))
			got, err := os.ReadFile(filepath.Join(dir, "again"))
			must(t, err)
			if !bytes.Equal(got, want) {
				t.Error("the rebuilt memory differs")
			}
		})
	}
}

func TestFlatDeltaLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	path, flat := filepath.Join(dir, "delta"), flatFile(t, dir, "f", 64, span{0, 64})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := WriteFlatDelta(ended, path, flat); err == nil {
		t.Error("a cancelled call succeeded")
	}
	must(t, os.WriteFile(filepath.Join(dir, "odd"), []byte("x"), 0o600))
	if _, err := WriteFlatDelta(t.Context(), path, filepath.Join(dir, "odd")); err == nil {
		t.Error("a file of one byte is no memory")
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", path, err)
	}
}
