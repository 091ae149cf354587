package rootfs

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"vers/internal/fault"
)

// Limits that hold where the caller sets none.
const (
	DefaultLimitBytes   = 64 << 30
	DefaultLimitEntries = 2_000_000
	// limitHoles bounds blocks of zeroes, which cost no space but the time to read them, in bytes.
	limitHoles = 1 << 40
)

// budget counts against limits.
type budget struct {
	limits               Limits
	entries, data, holes int64
}

func newBudget(l Limits) *budget {
	if l.Bytes == 0 {
		l.Bytes = DefaultLimitBytes
	}
	if l.Entries == 0 {
		l.Entries = DefaultLimitEntries
	}
	return &budget{limits: l}
}

func (b *budget) entry() error {
	if b.entries++; b.entries > b.limits.Entries {
		return fault.Exhaustedf("the archive has more than %d entries, which is the limit", b.limits.Entries)
	}
	return nil
}

// bytes counts a piece of a file: of its n bytes, data are in blocks that are not all zero.
func (b *budget) bytes(n, data int64) error {
	b.data += data
	b.holes += n - data
	if b.data > b.limits.Bytes {
		return fault.Exhaustedf("the files of the archive hold more than %d bytes, which is the limit", b.limits.Bytes)
	}
	if b.holes > limitHoles {
		return fault.Exhaustedf("the files of the archive hold more than %d GiB of zeroes, which is the limit", int64(limitHoles)>>30)
	}
	return nil
}

// content is what an archive needs of a file system, a little more rather than less: entries that replace others count.
type content struct {
	blocks int64 // of data, names, extended attributes and maps
	inodes int64
}

const (
	// maxLinkInInode is the longest target of a symbolic link that needs no block, in ext4.
	maxLinkInInode = 59
	// extentsPerBlock is how many pieces of a file one block of its map describes, and extentsInInode how many need none.
	extentsPerBlock, extentsInInode = 340, 4
)

// measure reads an archive to its end, and checks it against the limits.
func measure(ctx context.Context, s *stream, limits Limits) (content, error) {
	var c content
	b, buffer := newBudget(limits), make([]byte, bufferSize)
	names, folders := int64(0), map[string]bool{}
	for {
		hdr, err := s.next()
		if errors.Is(err, io.EOF) {
			// A directory is at least a block, and its hash tree leaves a quarter of its blocks empty.
			c.blocks += names/blockSize*3/2 + int64(len(folders))
			c.inodes += int64(len(folders))
			return c, s.drain()
		}
		if err != nil {
			return c, err
		}
		if err := b.entry(); err != nil {
			return c, err
		}
		name := cleanName(hdr.Name)
		names += int64(len(filepath.Base(name)))/4*4 + 12
		for dir := filepath.Dir(name); dir != "." && !folders[dir]; dir = filepath.Dir(dir) {
			folders[dir] = true
		}
		switch hdr.Typeflag {
		case tar.TypeDir:
			folders[name] = true
			c.inodes--
		case tar.TypeLink:
			c.inodes--
		case tar.TypeSymlink:
			if len(hdr.Linkname) > maxLinkInInode {
				c.blocks++
			}
		}
		c.inodes++
		for key := range hdr.PAXRecords {
			if strings.Contains(key, "xattr") || strings.Contains(key, "acl") {
				c.blocks++
				break
			}
		}
		if !isFile(hdr) {
			continue
		}
		blocks, err := measureFile(ctx, s, hdr, b, buffer)
		if err != nil {
			return c, err
		}
		c.blocks += blocks
	}
}

func measureFile(ctx context.Context, s *stream, hdr *tar.Header, b *budget, buffer []byte) (int64, error) {
	var blocks, runs int64
	err := copyData(ctx, s, hdr, b, buffer, func(_ int64, data []byte) error {
		blocks += int64(len(data)+blockSize-1) / blockSize
		runs++
		return nil
	})
	if runs > extentsInInode {
		blocks += 2 + runs/extentsPerBlock
	}
	return blocks, err
}

// copyData calls write for each run of data of the archive's present entry, with its place in the file. Blocks of zeroes
// are left out.
func copyData(ctx context.Context, s *stream, hdr *tar.Header, b *budget, buffer []byte, write func(at int64, data []byte) error) error {
	for at := int64(0); at < hdr.Size; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%q: stopped: %w", hdr.Name, context.Cause(ctx))
		}
		p := buffer[:min(int64(len(buffer)), hdr.Size-at)]
		if _, err := io.ReadFull(s.tar, p); err != nil {
			return s.explain(err)
		}
		stored := int64(0)
		_, err := dataRuns(p, func(off int, data []byte) error {
			stored += int64(len(data))
			return write(at+int64(off), data)
		})
		if err != nil {
			return err
		}
		if err := b.bytes(int64(len(p)), stored); err != nil {
			return err
		}
		at += int64(len(p))
	}
	return nil
}

// measured reads an archive, whose stream s has just been opened, to its end: it gives what its content needs, and a
// stream at its beginning. A plain archive in a file is read again, anything else is kept in a file without a name in dir
// meanwhile, which the stream's close gives back.
func measured(ctx context.Context, archive io.Reader, s *stream, dir string, limits Limits) (content, *stream, error) {
	defer s.close()
	if f, start, ok := rewindable(archive, s); ok {
		c, err := measure(ctx, s, limits)
		if err != nil {
			return c, nil, err
		}
		if _, err := f.Seek(start, io.SeekStart); err != nil {
			return c, nil, err
		}
		again, err := openStream(ctx, f)
		return c, again, err
	}
	f, err := spool(dir)
	if err != nil {
		return content{}, nil, err
	}
	c, err := measureInto(ctx, s, f, limits)
	if err != nil {
		return c, nil, errors.Join(err, f.Close())
	}
	again, err := openStream(ctx, f)
	if err != nil {
		return c, nil, errors.Join(err, f.Close())
	}
	again.close = func() { f.Close() }
	return c, again, nil
}

func measureInto(ctx context.Context, s *stream, f *os.File, limits Limits) (content, error) {
	sparse := &sparseWriter{f: f}
	w := bufio.NewWriterSize(sparse, bufferSize)
	s.plain = io.TeeReader(s.plain, wholeBlocks{w})
	s.tar = tar.NewReader(s.plain)
	c, err := measure(ctx, s, limits)
	if err != nil {
		return c, err
	}
	return c, errors.Join(w.Flush(), sparse.finish())
}

// wholeBlocks hides that a bufio.Writer hands large writes through, which may end within a block.
type wholeBlocks struct{ w *bufio.Writer }

func (b wholeBlocks) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		piece := p[:min(len(p), b.w.Available())]
		if _, err = b.w.Write(piece); err == nil && b.w.Available() == 0 {
			err = b.w.Flush()
		}
		p, n = p[len(piece):], n+len(piece)
	}
	return n, err
}

// rewindable reports whether an archive is a plain one in a file, and where in that file it begins.
func rewindable(archive io.Reader, s *stream) (*os.File, int64, bool) {
	f, isFile := archive.(*os.File)
	buffered, plain := s.plain.(*bufio.Reader)
	if !isFile || !plain {
		return nil, 0, false
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, 0, false
	}
	at, err := f.Seek(0, io.SeekCurrent)
	return f, at - int64(buffered.Buffered()), err == nil
}
