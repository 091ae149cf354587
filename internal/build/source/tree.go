//go:build linux

package source

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vers/internal/compression"
	"vers/internal/fault"
)

// Limits of an archive. Zero values are the defaults.
type Limits struct {
	Bytes   int64 // of contents in all; default 64 GiB, and what the file system has room for
	Entries int   // default 1,000,000
}

const (
	defaultBytes   = 64 << 30
	defaultEntries = 1_000_000
	maxName        = 4096 // characters of a path
	maxComponent   = 255
	roomLeft       = 1 << 30 // bytes of the file system that a context does not take
)

// Tree is an archive that was read. It is safe for concurrent use. Close it to free its room on the disk.
type Tree struct {
	root   *node
	spool  *os.File
	limits Limits
	count  int
	bytes  int64
}

// node is an entry of the archive.
type node struct {
	mode     fs.FileMode // type and permissions; set-id and sticky bits too
	uid, gid int
	modTime  time.Time
	link     string // target of a symbolic link
	xattrs   map[string]string

	offset, size int64 // of a regular file, in the spool
	sum          [sha256.Size]byte

	children map[string]*node // of a directory
	hidden   bool             // left out by .dockerignore
}

// Read takes an archive in, which may be compressed with gzip or zstd. dir is where its contents are kept. Errors:
// fault.Invalid for an archive that makes no sense or wants out of its tree, fault.Exhausted for one that is too large.
func Read(ctx context.Context, archive io.Reader, dir string, limits Limits) (_ *Tree, err error) {
	if limits.Bytes == 0 {
		limits.Bytes = defaultBytes
	}
	if limits.Entries == 0 {
		limits.Entries = defaultEntries
	}
	spool, err := unnamed(dir)
	if err != nil {
		return nil, err
	}
	t := &Tree{root: newDirectory(), spool: spool, limits: limits}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	if room, err := t.room(); err != nil {
		return nil, err
	} else if room < t.limits.Bytes {
		t.limits.Bytes = room
	}
	plain, err := compression.Decompress(archive)
	if err != nil {
		return nil, unreadable(err)
	}
	defer plain.Close()
	reader := tar.NewReader(plain)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, unreadable(err)
		}
		if err := t.add(header, reader); err != nil {
			return nil, err
		}
	}
}

// unnamed makes a file that goes with its last descriptor, however this process ends.
func unnamed(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "build-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// room is what the file system can give to contents, in bytes.
func (t *Tree) room() (int64, error) {
	var s unix.Statfs_t
	if err := unix.Fstatfs(int(t.spool.Fd()), &s); err != nil {
		return 0, err
	}
	return max(int64(s.Bavail)*s.Bsize-roomLeft, 0), nil
}

func unreadable(err error) error {
	if fault.KindOf(err) != fault.Internal || errors.Is(err, context.Canceled) {
		return err
	}
	return fault.Invalidf("the archive of files cannot be read: %w", err)
}

// Close frees what the tree takes on the disk.
func (t *Tree) Close() error { return t.spool.Close() }

func newDirectory() *node {
	return &node{mode: fs.ModeDir | 0o755, children: map[string]*node{}}
}

// components takes a name of an archive apart. Those that lead out of the tree are refused.
func components(name string) ([]string, error) {
	if len(name) > maxName || strings.ContainsRune(name, 0) {
		return nil, fault.Invalidf("the archive has an entry whose name is too long or no name: %.80q", name)
	}
	if strings.HasPrefix(name, "/") {
		return nil, fault.Invalidf("the archive has the absolute name %.200q; names must be relative to the folder", name)
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			return nil, fault.Invalidf("the archive has the name %.200q, which leads out of its folder", name)
		case len(part) > maxComponent:
			return nil, fault.Invalidf("the archive has a name of more than %d bytes: %.80q…", maxComponent, part)
		}
		parts = append(parts, part)
	}
	return parts, nil
}

func (t *Tree) add(h *tar.Header, content io.Reader) error {
	parts, err := components(h.Name)
	if err != nil {
		return err
	}
	n := &node{
		mode: h.FileInfo().Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky),
		uid:  h.Uid, gid: h.Gid, modTime: h.ModTime, xattrs: xattrsOf(h),
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, '\x00':
		if err := t.keep(n, content); err != nil {
			return err
		}
	case tar.TypeDir:
		n.mode |= fs.ModeDir
		n.children = map[string]*node{}
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxName {
			return fault.Invalidf("the archive has a link without a target: %.200q", h.Name)
		}
		n.mode, n.link = fs.ModeSymlink|0o777, h.Linkname
	case tar.TypeLink:
		same, err := t.linked(h)
		if err != nil {
			return err
		}
		n = same
	case tar.TypeXGlobalHeader:
		return nil
	default:
		return fault.Invalidf("%.200q is a device, pipe or something else that cannot be copied; leave it out with .dockerignore", h.Name)
	}
	return t.insert(h.Name, parts, n)
}

// xattrPrefix is how archives carry extended attributes.
const xattrPrefix = "SCHILY.xattr."

func xattrsOf(h *tar.Header) map[string]string {
	var attrs map[string]string
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, xattrPrefix); ok && name != "" {
			if attrs == nil {
				attrs = map[string]string{}
			}
			attrs[name] = value
		}
	}
	return attrs
}

// keep copies a file's content to the spool.
func (t *Tree) keep(n *node, content io.Reader) error {
	n.offset = t.bytes
	hash := sha256.New()
	written, err := io.Copy(io.MultiWriter(io.NewOffsetWriter(t.spool, n.offset), hash), io.LimitReader(content, t.limits.Bytes-t.bytes+1))
	t.bytes += written
	switch {
	case t.bytes > t.limits.Bytes:
		return fault.Exhaustedf("the files have more than %d MiB, which is what the server can take for a build; leave files out with .dockerignore", t.limits.Bytes>>20)
	case errors.Is(err, unix.ENOSPC):
		return fault.Exhaustedf("the server's disk is full: no room for the files of a build")
	case err != nil:
		return unreadable(err)
	}
	n.size = written
	n.sum = [sha256.Size]byte(hash.Sum(nil))
	return nil
}

// linked gives the file that a hard link is another name of.
func (t *Tree) linked(h *tar.Header) (*node, error) {
	parts, err := components(h.Linkname)
	if err != nil {
		return nil, err
	}
	n := t.root
	for _, part := range parts {
		if n = n.children[part]; n == nil {
			break
		}
	}
	if n == nil || !n.mode.IsRegular() {
		return nil, fault.Invalidf("%.200q in the archive is a link to %.200q, which is no file in it", h.Name, h.Linkname)
	}
	same := *n
	return &same, nil
}

// insert puts an entry into its place. A later entry of a name replaces an earlier one, but a directory with something in
// it stays one.
func (t *Tree) insert(name string, parts []string, n *node) error {
	if len(parts) == 0 {
		if n.children == nil {
			return fault.Invalidf("the archive has an entry without a name: %.200q", name)
		}
		n.children = t.root.children
		t.root = n
		return nil
	}
	dir := t.root
	for _, part := range parts[:len(parts)-1] {
		next := dir.children[part]
		if next == nil {
			next = newDirectory()
			if err := t.count1(); err != nil {
				return err
			}
			dir.children[part] = next
		}
		if next.children == nil {
			return fault.Invalidf("the archive has %.200q below %q, which is no folder in it", name, part)
		}
		dir = next
	}
	last := parts[len(parts)-1]
	switch old := dir.children[last]; {
	case old == nil:
		if err := t.count1(); err != nil {
			return err
		}
	case old.children != nil && n.children != nil:
		n.children = old.children
	case len(old.children) > 0:
		return fault.Invalidf("the archive has %.200q as a folder with files, and again as something else", name)
	}
	dir.children[last] = n
	return nil
}

func (t *Tree) count1() error {
	if t.count++; t.count > t.limits.Entries {
		return fault.Exhaustedf("there are more than %d files; leave some out with .dockerignore", t.limits.Entries)
	}
	return nil
}

// File reads a small file, whether .dockerignore leaves it out or not. fs.ErrNotExist if there is none.
func (t *Tree) File(name string, limit int64) ([]byte, error) {
	_, n, err := t.follow(path.Clean(name), true)
	if err != nil {
		return nil, err
	}
	switch {
	case n == nil:
		return nil, fs.ErrNotExist
	case !n.mode.IsRegular():
		return nil, fault.Invalidf("%s is no regular file", name)
	case n.size > limit:
		return nil, fault.Invalidf("%s has %d bytes; at most %d are possible", name, n.size, limit)
	}
	var out bytes.Buffer
	_, err = io.Copy(&out, t.content(n))
	return out.Bytes(), err
}

func (t *Tree) content(n *node) io.Reader { return io.NewSectionReader(t.spool, n.offset, n.size) }

const maxLinks = 40

// follow finds what a path leads to, through symbolic links; nil if there is nothing. A link never leads out of the tree:
// its top is the root of all paths. all also finds what is hidden.
func (t *Tree) follow(name string, all bool) (resolved string, _ *node, _ error) {
	rest := strings.Split(name, "/")
	var at []string
	line := []*node{t.root}
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(at) > 0 {
				at, line = at[:len(at)-1], line[:len(line)-1]
			}
			continue
		}
		n := line[len(line)-1].children[part]
		if n == nil || n.hidden && !all {
			return "", nil, nil
		}
		if n.mode&fs.ModeSymlink == 0 {
			at, line = append(at, part), append(line, n)
			continue
		}
		if links++; links > maxLinks {
			return "", nil, fault.Invalidf("%s leads through more than %d symbolic links", name, maxLinks)
		}
		if strings.HasPrefix(n.link, "/") {
			at, line = nil, line[:1]
		}
		rest = append(strings.Split(n.link, "/"), rest...)
	}
	return strings.Join(at, "/"), line[len(line)-1], nil
}

// walk visits what is not hidden, in the order of names, folders before what is in them. name is below n.
func (n *node) walk(name string, visit func(name string, n *node) error) error {
	if err := visit(name, n); err != nil {
		return err
	}
	for _, child := range slices.Sorted(maps.Keys(n.children)) {
		if c := n.children[child]; !c.hidden {
			if err := c.walk(path.Join(name, child), visit); err != nil {
				return err
			}
		}
	}
	return nil
}
