package memory

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
)

// tempSuffix ends the names of files that are not complete yet. After a crash such files are rubbish.
const tempSuffix = ".tmp"

// IsTemporary reports whether a file name is one this package gives to files in the making.
func IsTemporary(name string) bool { return strings.HasSuffix(name, tempSuffix) }

// createTemp makes a new file beside path, under a temporary name.
func createTemp(path string) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*"+tempSuffix)
	if err != nil {
		return nil, writeError(path, 0, err)
	}
	return f, nil
}

// publish renames a complete file to path, which must not exist yet.
func publish(temp, path string) error {
	err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // the file system cannot
		if err = os.Link(temp, path); err == nil {
			err = os.Remove(temp)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return fault.Conflictf("%s exists already; it is never overwritten", path)
	}
	if err != nil {
		return fmt.Errorf("rename %s: %w", temp, err)
	}
	return nil
}

// syncDir makes the names in the directory of path durable.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory of %s: %w", path, err)
	}
	return nil
}

// writeError adds to an error of writing path what an operator needs when the disk is full.
func writeError(path string, need int64, err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if need == 0 {
		return fault.Exhaustedf("write %s: the disk is full: free some space, for example by deleting commits: %w", path, err)
	}
	free := "an unknown number of"
	var st unix.Statfs_t
	if unix.Statfs(filepath.Dir(path), &st) == nil {
		free = fmt.Sprint(int64(st.Bavail) * st.Bsize)
	}
	return fault.Exhaustedf("write %s: the disk is full: %d bytes are needed, %s are free: free some space, for example by deleting commits: %w",
		path, need, free, err)
}

// reserve allocates blocks for a range of a file. File systems that cannot are none the worse: the write itself will
// find out whether there is room.
func reserve(f *os.File, offset, length int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, offset, length)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return nil
		}
		return err
	}
}

// nextData finds the first range with data at or after offset. ok is false if there is none.
func nextData(f *os.File, offset int64) (start, end int64, ok bool, err error) {
	start, err = unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return 0, 0, false, nil
	}
	if err == nil {
		end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
	}
	if err != nil {
		return 0, 0, false, fmt.Errorf("find data in %s: %w", f.Name(), err)
	}
	return start, end, true, nil
}
