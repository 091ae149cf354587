package buildfs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"vers/internal/build/engine"
)

// cacheLimit bounds the cache, in bytes; what was not used for longest goes first.
const cacheLimit = 8 << 30

// state is a container's root file system after all commands: a compressed archive in a file. It is exported once and read
// as often as needed; in the cache it stands for the commands.
type state struct {
	path    string
	started time.Time // when the commands began: what is newer was made by them
	temp    bool
	steps   []Step
}

// stateInfo is beside the archive in the cache.
type stateInfo struct {
	Started time.Time `json:"started"`
	Image   string    `json:"image"`
	Steps   []Step    `json:"steps"`
}

// Close removes a state that is not in the cache.
func (s *state) Close() error {
	if s == nil || !s.temp {
		return nil
	}
	return os.Remove(s.path)
}

// read opens the archive.
func (s *state) read() (io.ReadCloser, error) {
	file, err := os.Open(s.path)
	if err != nil {
		return nil, err
	}
	unzipped, err := zstd.NewReader(file, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{unzipped, closers{func() error { unzipped.Close(); return nil }, file.Close}}, nil
}

type closers []func() error

func (c closers) Close() error {
	var err error
	for _, f := range c {
		err = errors.Join(err, f())
	}
	return err
}

// save exports a session into a file in dir.
func save(ctx context.Context, session engine.Session, dir string) (path string, err error) {
	file, err := os.CreateTemp(dir, ".state-*")
	if err != nil {
		return "", fmt.Errorf("save the container's files: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(file.Name()))
		}
	}()
	zipped, err := zstd.NewWriter(file, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2))
	if err != nil {
		return "", errors.Join(err, file.Close())
	}
	err = session.Export(ctx, zipped)
	if err = errors.Join(err, zipped.Close(), file.Close()); err != nil {
		return "", fmt.Errorf("export the container's files: %w", err)
	}
	return file.Name(), nil
}

// cache is a folder of states.
type cache struct{ dir string }

func (c cache) file(key string) string { return filepath.Join(c.dir, key+".tar.zst") }
func (c cache) info(key string) string { return filepath.Join(c.dir, key+".json") }

// find gives the state of a key, or nil.
func (c cache) find(key string) *state {
	data, err := os.ReadFile(c.info(key))
	var info stateInfo
	if err != nil || json.Unmarshal(data, &info) != nil {
		return nil
	}
	now := time.Now()
	if os.Chtimes(c.file(key), now, now) != nil { // used now
		return nil
	}
	return &state{path: c.file(key), started: info.Started, steps: info.Steps}
}

// keep moves a state into the cache, and makes room.
func (c cache) keep(key string, s *state, image string) error {
	data, err := json.Marshal(stateInfo{s.started, image, s.steps})
	if err != nil {
		return err
	}
	if err := os.Rename(s.path, c.file(key)); err != nil {
		return err
	}
	s.path, s.temp = c.file(key), false
	temp := c.info(key) + ".new"
	if err := errors.Join(os.WriteFile(temp, data, 0o600), os.Rename(temp, c.info(key))); err != nil {
		return err
	}
	return c.shrink(cacheLimit, key)
}

// shrink removes what was not used for longest until the rest is within limit, and what killed builds left. The entry of
// key stays.
func (c cache) shrink(limit int64, key string) error {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	type item struct {
		name string
		used time.Time
		size int64
	}
	var items []item
	total := int64(0)
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			continue
		}
		if strings.HasPrefix(e.Name(), ".state-") && time.Since(info.ModTime()) > 24*time.Hour {
			_ = os.Remove(filepath.Join(c.dir, e.Name()))
		}
		if name, ok := strings.CutSuffix(e.Name(), ".tar.zst"); ok {
			items = append(items, item{name, info.ModTime(), info.Size()})
			total += info.Size()
		}
	}
	slices.SortFunc(items, func(a, b item) int { return a.used.Compare(b.used) })
	for _, it := range items {
		if total <= limit {
			break
		}
		if it.name == key {
			continue
		}
		err = errors.Join(err, os.Remove(c.info(it.name)), os.Remove(c.file(it.name)))
		total -= it.size
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // another build was quicker
	}
	return err
}
