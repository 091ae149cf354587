package qemu

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// console is what was read of the serial console. Reading takes it out of QEMU's ring buffer, so it is kept here, and
// in a file for a later versd.
type console struct{ kept []byte }

const consoleFile = "console.log"

// Console implements machine.Instance.
func (i *Instance) Console(ctx context.Context) ([]byte, error) {
	var data string
	err := i.command(ctx, "ringbuf-read", map[string]any{"device": consoleID, "size": consoleBytes, "format": "base64"}, &data)
	if err != nil {
		return nil, err
	}
	fresh, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		return nil, fmt.Errorf("read the console of VM %s: %w", i.spec.ID, err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(fresh) > 0 {
		i.console.add(fresh)
		if err := i.console.store(i.spec.Dir); err != nil {
			i.log.Warn("the console's output will be lost when versd restarts", "error", err)
		}
	}
	return append([]byte(nil), i.console.kept...), nil
}

func (c *console) add(fresh []byte) {
	c.kept = append(c.kept, fresh...)
	if over := len(c.kept) - consoleBytes; over > 0 {
		c.kept = append([]byte(nil), c.kept[over:]...)
	}
}

// store replaces the file. The directory belongs to QEMU's user: a new name that nobody can have prepared.
func (c *console) store(dir string) error {
	f, err := os.CreateTemp(dir, ".console-*")
	if err != nil {
		return err
	}
	_, err = f.Write(c.kept)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, consoleFile))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// loadConsole takes up what an earlier versd had read.
func (i *Instance) loadConsole() error {
	f, err := os.OpenFile(filepath.Join(i.spec.Dir, consoleFile), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the console's older output: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, consoleBytes))
	if err != nil {
		return fmt.Errorf("read the console's older output: %w", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.console.add(data)
	return nil
}
