// Program treelist tells everything that a file system keeps of a tree, one line for each name, so that the tree that an
// image was made of and the one in its guest can be compared:
//
//	treelist [-source] FOLDER   a line for each name, sorted by path
//	treelist -digest FOLDER     a line for each folder in it: how many names that has, and the digest of a short line for each
//
// -source says that the tree is the one before it became an image: blocks of zeroes are left out of what files have
// allocated, and folders have as many links as in ext4.
//
// It knows nothing of how images are made, and runs in a guest that has nothing else.
package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const blockSize = 4096

func main() {
	source := flag.Bool("source", false, "the tree is no image yet")
	digest := flag.Bool("digest", false, "one line for each folder")
	flag.Parse()
	out := bufio.NewWriter(os.Stdout)
	var err error
	if *digest {
		err = digests(out, flag.Arg(0))
	} else {
		err = list(out, flag.Arg(0), *source)
	}
	if err = errors.Join(err, out.Flush()); err != nil {
		fmt.Fprintln(os.Stderr, "treelist:", err)
		os.Exit(1)
	}
}

// lister lists one tree, from within it: its paths may be as long as the kernel allows.
type lister struct {
	w      io.Writer
	source bool
	names  map[uint64]string // first names of files with several
	device uint64
}

func list(w io.Writer, folder string, source bool) error {
	if err := os.Chdir(folder); err != nil {
		return err
	}
	l := &lister{w: w, source: source, names: map[uint64]string{}}
	return filepath.WalkDir(".", func(path string, _ os.DirEntry, err error) error {
		if err == nil {
			err = l.line(path)
		}
		return err
	})
}

func (l *lister) line(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	if path == "." {
		l.device = st.Dev
	}
	if st.Dev != l.device {
		return filepath.SkipDir
	}
	text, err := l.describe(path, &st)
	if err == nil {
		_, err = fmt.Fprintf(l.w, "%q %s\n", path, text)
	}
	return err
}

func (l *lister) describe(path string, st *unix.Stat_t) (string, error) {
	links := st.Nlink
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR && l.source {
		below, err := folders(path)
		if err != nil {
			return "", err
		}
		links = 2 + below
	}
	text := fmt.Sprintf("mode=%06o owner=%d:%d time=%d.%09d links=%d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, links)
	attributes, size, err := xattrs(path)
	if err != nil {
		return "", fmt.Errorf("%q: %w", path, err)
	}
	switch kind {
	case unix.S_IFREG:
		content, err := l.content(path, st, size)
		if err != nil {
			return "", fmt.Errorf("%q: %w", path, err)
		}
		text += content
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		text += fmt.Sprintf(" size=%d target=%q", st.Size, target)
	case unix.S_IFCHR, unix.S_IFBLK:
		text += fmt.Sprintf(" device=%d,%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	if st.Nlink > 1 && kind != unix.S_IFDIR {
		if first, ok := l.names[st.Ino]; ok {
			text += fmt.Sprintf(" same=%q", first)
		} else {
			l.names[st.Ino] = path
		}
	}
	return text + attributes, nil
}

func folders(path string) (n uint64, err error) {
	entries, err := os.ReadDir(path)
	for _, e := range entries {
		if e.IsDir() {
			n++
		}
	}
	return n, err
}

// xattrs gives all extended attributes, and how many bytes their names and values have.
func xattrs(path string) (text string, size int, err error) {
	buffer := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buffer)
	if err != nil || n == 0 {
		return "", 0, err
	}
	names := strings.Split(strings.TrimSuffix(string(buffer[:n]), "\x00"), "\x00")
	slices.Sort(names)
	for _, name := range names {
		n, err := unix.Lgetxattr(path, name, buffer)
		if err != nil {
			return "", 0, fmt.Errorf("%s: %w", name, err)
		}
		text += fmt.Sprintf(" %s=%x", name, buffer[:n])
		size += len(name) + n
	}
	return text, size, nil
}

// content is a file's size, where it has data, and the digest of that. The blocks that the file takes must be those of
// its data, besides what the file system needs for its map and its attributes.
func (l *lister) content(path string, st *unix.Stat_t, attributes int) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	m := &dataMap{sum: sha256.New()}
	for at := int64(0); at < st.Size; {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return "", err
		}
		if at, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE); err != nil {
			return "", err
		}
		if err := m.read(f, from, at, l.source); err != nil {
			return "", err
		}
	}
	text := fmt.Sprintf(" size=%d data=%s sha256=%x", st.Size, strings.Join(m.runs(), ","), m.sum.Sum(nil))
	if l.source {
		return text, nil
	}
	extra := int64(0)
	if attributes > 0 {
		extra = 1
	}
	if len(m.list) > 4 { // which fit into an inode
		extra += 1 + int64(len(m.list))/340
	}
	if blocks := st.Blocks * 512 / blockSize; blocks < m.blocks || blocks > m.blocks+extra {
		text += fmt.Sprintf(" blocks=%d", blocks)
	}
	return text, nil
}

// dataMap is where a file has data, in blocks.
type dataMap struct {
	list   [][2]int64 // first block, and the one behind the last
	blocks int64
	sum    interface {
		io.Writer
		Sum([]byte) []byte
	}
}

// read adds a run of data. Blocks of zeroes count only if nothing leaves them out.
func (m *dataMap) read(f *os.File, from, to int64, dropZeroes bool) error {
	block := make([]byte, blockSize)
	for at := from / blockSize; at*blockSize < to; at++ {
		n, err := f.ReadAt(block, at*blockSize)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if dropZeroes && strings.Trim(string(block[:n]), "\x00") == "" {
			continue
		}
		if last := len(m.list) - 1; last >= 0 && m.list[last][1] == at {
			m.list[last][1]++
		} else {
			m.list = append(m.list, [2]int64{at, at + 1})
		}
		m.blocks++
		_, _ = m.sum.Write(block[:n]) // a digest never fails
	}
	return nil
}

func (m *dataMap) runs() (list []string) {
	for _, run := range m.list {
		list = append(list, fmt.Sprintf("%d-%d", run[0], run[1]))
	}
	return list
}

// digests tells of each folder in root how many names it has, and the digest of a short line for each: what an inode has,
// and nothing of contents.
func digests(w io.Writer, root string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	text := make([]string, len(entries))
	var group errgroup.Group
	group.SetLimit(runtime.NumCPU())
	for i, e := range entries {
		group.Go(func() (err error) {
			text[i], err = digest(filepath.Join(root, e.Name()))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i, e := range entries {
		fmt.Fprintf(w, "%q %s\n", e.Name(), text[i])
	}
	return nil
}

func digest(folder string) (string, error) {
	dir, err := os.Open(folder)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return "", err
	}
	slices.Sort(names)
	sum, line := sha256.New(), []byte{}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return "", err
		}
		line = append(append(line[:0], name...), 0)
		for _, value := range []int64{int64(st.Mode), int64(st.Uid), int64(st.Gid), st.Mtim.Sec, st.Mtim.Nsec, int64(st.Nlink), st.Size, st.Blocks} {
			line = append(strconv.AppendInt(line, value, 10), ' ')
		}
		_, _ = sum.Write(line) // a digest never fails
	}
	return fmt.Sprintf("%d %x", len(names), sum.Sum(nil)), nil
}
