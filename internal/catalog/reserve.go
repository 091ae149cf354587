package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// reserve is room on the file system of the catalogue that nobody else can take. On a full disk, deleting something has
// to be written down before it frees anything: without the reserve the only way out would be to delete files by hand. It
// is given up in parts, since guests that wait for room may take what one part frees.
type reserve struct {
	path string // of the parts, less their number
	mu   sync.Mutex
}

const (
	reserveParts     = 4
	reservePartBytes = 4 << 20
)

func (r *reserve) part(i int) string { return fmt.Sprintf("%s.%d", r.path, i) }

// fill makes the parts that are missing. A full disk is not an error: there is no reserve then.
func (r *reserve) fill() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range reserveParts {
		if err := allocate(r.part(i), reservePartBytes); err != nil {
			if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
				return nil
			}
			return fmt.Errorf("reserve space for the catalogue: %w", err)
		}
	}
	return nil
}

// allocate makes a file whose blocks are taken. On error there is none.
func allocate(path string, size int64) error {
	if info, err := os.Stat(path); err == nil && info.Size() == size {
		return nil
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(file.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = file.WriteAt(make([]byte, size), 0) // a file system that cannot reserve
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// release gives up one part. It reports whether there was one.
func (r *reserve) release() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range reserveParts {
		if os.Remove(r.part(i)) == nil {
			return true
		}
	}
	return false
}

// isFull reports whether SQLite found no room: in the database and its log, or for the index of the log, which is made
// when the first process opens the database.
func isFull(err error) bool {
	var broken *sqlite.Error
	return errors.As(err, &broken) && (broken.Code()&0xff == sqlite3.SQLITE_FULL || broken.Code() == sqlite3.SQLITE_IOERR_SHMSIZE)
}

// retry calls do again, with more room, for as long as the disk is full and there is a reserve.
func (r *reserve) retry(do func() error) error {
	for {
		err := do()
		if !isFull(err) || !r.release() {
			return err
		}
	}
}

// reserved is the writing connection. A statement that finds the disk full is repeated with the reserve.
type reserved struct {
	*sql.DB
	reserve *reserve
}

// ExecContext implements executor.
func (w reserved) ExecContext(ctx context.Context, query string, args ...any) (result sql.Result, err error) {
	err = w.reserve.retry(func() error {
		result, err = w.DB.ExecContext(ctx, query, args...)
		return err
	})
	return result, err
}

// Refill takes the reserve again after it was used. Call it when space was freed.
func (c *Catalog) Refill() error { return c.reserve.fill() }
