package partial

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// answers gives the digests of content one by one.
func answers(t *testing.T, content []byte) func() (Answer, error) {
	t.Helper()
	var all []Answer
	if err := Digests(bytes.NewReader(content), int64(len(content)), func(d []byte, _ int64) error {
		all = append(all, Answer{Digest: d})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return func() (Answer, error) {
		if len(all) == 0 {
			return Answer{Done: true}, nil
		}
		a := all[0]
		all = all[1:]
		return a, nil
	}
}

func TestMatch(t *testing.T) {
	content := make([]byte, 2*Block+100)
	_, _ = rand.Read(content)
	changed := func(at int) []byte {
		c := bytes.Clone(content)
		c[at]++
		return c
	}
	for name, c := range map[string]struct {
		there []byte
		n     int
		want  int64
	}{
		"all":                    {content, len(content), int64(len(content))},
		"beginning":              {content[:Block+5], Block + 5, Block + 5},
		"nothing":                {nil, 0, 0},
		"first block differs":    {changed(0), len(content), 0},
		"second block differs":   {changed(Block), len(content), Block},
		"last byte differs":      {changed(len(content) - 1), len(content), 2 * Block},
		"other side has shrunk":  {content[:Block], len(content), Block},
		"this side has shrunk":   {content, len(content) + 50, int64(len(content))},
		"a hole instead of data": {make([]byte, Block), Block, 0},
	} {
		got, err := Match(bytes.NewReader(content), int64(c.n), answers(t, c.there))
		if err != nil || got != c.want {
			t.Errorf("%s: %d, %v, want %d", name, got, err, c.want)
		}
	}
	broken := errors.New("broken")
	if _, err := Match(bytes.NewReader(content), 1, func() (Answer, error) { return Answer{}, broken }); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}

func holdAt(path string) (*os.File, error) {
	return Hold(func(flags int, perm os.FileMode) (*os.File, error) { return os.OpenFile(path, flags, perm) },
		func() (os.FileInfo, error) { return os.Lstat(path) })
}

func TestHold(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "part")
	file, err := holdAt(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := holdAt(path); !errors.Is(err, ErrBusy) {
		t.Errorf("held twice: %v", err)
	}
	// Renamed by its holder: the next one makes a new file.
	if err := os.Rename(path, filepath.Join(dir, "whole")); err != nil {
		t.Fatal(err)
	}
	another, err := holdAt(path)
	if err != nil {
		t.Fatal(err)
	}
	another.Close()
	file.Close()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), link); err != nil {
		t.Fatal(err)
	}
	if _, err := holdAt(link); err == nil {
		t.Error("a link was followed")
	}
	if _, err := os.Stat(filepath.Join(dir, "elsewhere")); err == nil {
		t.Error("a file was made behind the link")
	}
}

// Of many at once that make the file whole and rename it, each has a file of its own in hand.
func TestHoldRace(t *testing.T) {
	dir := t.TempDir()
	path, whole := filepath.Join(dir, "part"), filepath.Join(dir, "whole")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 50 {
				file, err := holdAt(path)
				if errors.Is(err, ErrBusy) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				_ = file.Truncate(0)
				_, _ = file.WriteAt(bytes.Repeat([]byte{byte('a' + i)}, 4096), 0)
				data, err := os.ReadFile(path)
				if err != nil || len(data) != 4096 || data[0] != byte('a'+i) {
					t.Errorf("another one writes the file that %d holds: %v", i, err)
				}
				if err := os.Rename(path, whole); err != nil {
					t.Error(err)
				}
				file.Close()
			}
		})
	}
	wg.Wait()
}

func FuzzServe(f *testing.F) {
	f.Add([]byte(`{"op":"digests","path":"x","bytes":9}`))
	f.Add([]byte(`{"op":"hold"`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		var out bytes.Buffer
		_ = Serve(struct {
			*bytes.Reader
			*writer
		}{bytes.NewReader(data), &writer{&out}}, func(path string) string { return filepath.Join(dir, filepath.Base(path)) })
	})
}

// writer has no method but Write.
type writer struct{ to *bytes.Buffer }

func (w *writer) Write(p []byte) (int, error) { return w.to.Write(p) }
