package ext4

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vers/internal/fault"
)

// small makes a small file system with every kind of file, and a copy of it with a journal full of transactions, as far as
// this machine can.
func small(t testing.TB) []byte {
	t.Helper()
	tree, path := t.TempDir(), filepath.Join(t.TempDir(), "fs")
	tool(t, "sh", "-ec", "cd "+tree+`
mkdir -p a/b/c many; seq 3000 > a/numbers; ln -s x a/fast; ln -s $(printf 'x%.0s' $(seq 100)) a/slow; ln a/numbers a/hard
i=0; while [ $i -lt 200 ]; do : > many/file-with-a-long-name-$i; i=$((i+1)); done
i=0; while [ $i -lt 24 ]; do printf x | dd of=a/sparse bs=1 seek=$((i*8192)) conv=notrunc status=none; i=$((i+1)); done`)
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, 8<<20))
	tool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-O", features, "-b", "1024", "-I", "256", "-N", "512", "-J", "size=1", "-E", "lazy_itable_init=0", "-d", tree, path)
	if out, err := debugfs(path, "jo\njw -b 7900,7901,7902,7903,7904 /dev/zero\njw -r 7902\njc\n"); err != nil {
		t.Logf("no transactions in the journal: %v %s", err, out)
	}
	data, err := os.ReadFile(path)
	must(t, err)
	return data
}

// survives compares a damaged file system with the good one, in both directions. That must end soon, with a result or an
// error that says the file system is at fault.
func survives(t testing.TB, good, bad []byte) (ok bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ok = true
	for _, pair := range [][2][]byte{{good, bad}, {bad, good}, {bad, bad}} {
		err := compare(ctx, pair[0], pair[1])
		if err != nil && !fault.Is(err, fault.Conflict) {
			t.Fatalf("not an error about the file system: %v", err)
		}
		ok = ok && err == nil
	}
	return ok
}

func compare(ctx context.Context, from, to []byte) error {
	a, err := Open(bytes.NewReader(from), int64(len(from)))
	if err != nil {
		return err
	}
	b, err := Open(bytes.NewReader(to), int64(len(to)))
	if err != nil {
		return err
	}
	_, err = Diff(ctx, a, b, Options{}, func(Entry) error { return nil })
	return err
}

// metadata lists the places where damage hurts: blocks that are neither empty nor plain data.
func metadata(data []byte) (places []int) {
	for at := 0; at < len(data); at += 1024 {
		block := data[at : at+1024]
		if bytes.Count(block, []byte{0}) > 16 && bytes.Count(block, []byte{0}) < 1024 {
			places = append(places, at)
		}
	}
	return places
}

// Random damage to metadata, a thousand times.
func TestDamage(t *testing.T) {
	good := small(t)
	places := metadata(good)
	rng := rand.New(rand.NewPCG(7, 7))
	whole, broken := 0, 0
	bad := bytes.Clone(good)
	for range 1000 {
		copy(bad, good)
		for range 1 + rng.IntN(20) {
			at := places[rng.IntN(len(places))] + rng.IntN(1024)
			switch rng.IntN(3) {
			case 0:
				bad[at] ^= 1 << rng.IntN(8)
			case 1:
				bad[at] = byte(rng.UintN(256))
			default: // whole blocks in wrong places make the loops
				to := places[rng.IntN(len(places))]
				copy(bad[to:to+64], good[at&^63:at&^63+64])
			}
		}
		if survives(t, good, bad) {
			whole++
		} else {
			broken++
		}
	}
	if whole == 0 || broken < 100 {
		t.Errorf("%d survived, %d were found damaged: the damage is not where it counts", whole, broken)
	}
}

func FuzzDiff(f *testing.F) {
	good := small(f)
	f.Add(uint32(1024+0x20), []byte{1, 2, 3, 4}, uint32(5000), []byte{0xff})
	for _, at := range metadata(good) {
		f.Add(uint32(at), []byte{0xff, 0xff, 0xff, 0xff}, uint32(at+40), []byte{0, 0})
	}
	f.Fuzz(func(t *testing.T, at1 uint32, p1 []byte, at2 uint32, p2 []byte) {
		bad := bytes.Clone(good)
		copy(bad[int(at1)%len(bad):], p1)
		copy(bad[int(at2)%len(bad):], p2)
		survives(t, good, bad)
	})
}
