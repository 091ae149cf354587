package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
)

// Journal is a file of JSON objects, one a line. Several of us may write it at once.
type Journal[T any] struct{ Path string }

// Add writes one more entry.
func (j Journal[T]) Add(ctx context.Context, entry T) error {
	line, err := json.Marshal(entry)
	if err != nil {
		return err
	}
	return j.locked(ctx, func() error {
		file, err := os.OpenFile(j.Path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = file.Write(append(line, '\n'))
		return errors.Join(err, file.Close())
	})
}

// All reads the entries, the oldest first. Lines that cannot be read, as a crash may leave them, are left out.
func (j Journal[T]) All() ([]T, error) {
	data, err := os.ReadFile(j.Path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", j.Path, err)
	}
	var all []T
	for line := range bytes.Lines(data) {
		var entry T
		if json.Unmarshal(line, &entry) == nil {
			all = append(all, entry)
		}
	}
	return all, nil
}

// Rewrite replaces the entries by what keep makes of them.
func (j Journal[T]) Rewrite(ctx context.Context, keep func([]T) []T) error {
	return j.locked(ctx, func() error {
		all, err := j.All()
		if err != nil {
			return err
		}
		var data bytes.Buffer
		encoder := json.NewEncoder(&data)
		for _, entry := range keep(all) {
			if err := encoder.Encode(entry); err != nil {
				return err
			}
		}
		return WriteFile(j.Path, data.Bytes(), 0o600)
	})
}

func (j Journal[T]) locked(ctx context.Context, do func() error) error {
	if err := os.MkdirAll(filepath.Dir(j.Path), 0o755); err != nil {
		return fmt.Errorf("make the folder of %s: %w", j.Path, err)
	}
	lock := flock.New(j.Path + ".lock")
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if _, err := lock.TryLockContext(ctx, 5*time.Millisecond); err != nil {
		return fmt.Errorf("lock %s: %w", j.Path, err)
	}
	defer func() { _ = lock.Unlock() }()
	if err := do(); err != nil {
		return fmt.Errorf("write %s: %w", j.Path, err)
	}
	return nil
}
