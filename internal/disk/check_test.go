package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	layers, base := makeLayers(t, dir)
	ctx := context.Background()
	must(t, os.Remove(base)) // nobody looks below
	for _, path := range layers {
		must(t, Check(ctx, path))
	}
	path := layers[1]
	good, err := os.ReadFile(path)
	must(t, err)
	damaged := func(what string, data []byte) {
		t.Helper()
		must(t, os.WriteFile(path, data, 0o600))
		if err := Check(ctx, path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", what, err)
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, data) {
			t.Errorf("%s: the file was changed: %v", what, err)
		}
	}
	for _, at := range []int{0, 4, 27, 43, 3*clusterSize + 3} { // magic, version, size, L1 table, its first entry
		bad := bytes.Clone(good)
		bad[at] ^= 0x55
		damaged("byte flipped", bad)
	}
	for _, n := range []int{0, 50, clusterSize, 3 * clusterSize, len(good) / 2} {
		damaged(fmt.Sprintf("cut off at %d of %d", n, len(good)), good[:n])
	}
	// A cluster that is counted and that nothing refers to, as after the death of a writer.
	leaking := append(bytes.Clone(good), make([]byte, clusterSize)...)
	leaking[2*clusterSize+2*(len(good)/clusterSize)+1] = 1
	must(t, os.WriteFile(path, leaking, 0o600))
	if err := Check(ctx, path); err != nil {
		t.Errorf("a lost cluster: %v", err)
	}
	if err := Check(ctx, filepath.Join(dir, "no")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := Check(cancelled, layers[0]); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
