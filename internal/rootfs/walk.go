package rootfs

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"
	"lukechampine.com/blake3"
)

// treeVersion begins every tree digest; it changes when what is digested does.
const treeVersion = "vers tree 1\n"

// visited is one name in a tree.
type visited struct {
	path   string // below the root, "" for the root
	dir    int    // descriptor of the directory that base is in
	base   string
	record *record
	first  string // path of the file's first name, if this is another one
	hard   bool   // this is another name of first
}

// walk calls visit for every name that the archive made, the root first, names of each directory in the order of their
// bytes. What else is there (ext4's lost+found) is left out. No descriptor is kept for the levels above.
func (t *tree) walk(ctx context.Context, visit func(visited) error) error {
	t.forgetDir()
	var st unix.Stat_t
	if err := unix.Fstat(t.root, &st); err != nil {
		return err
	}
	if err := visit(visited{dir: t.root, base: ".", record: t.records[st.Ino]}); err != nil {
		return err
	}
	fd, err := unix.Openat(t.root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	w := &walker{ctx: ctx, t: t, visit: visit, names: map[uint64]string{}}
	dir, err := w.folder(os.NewFile(uintptr(fd), "."), "")
	return errors.Join(err, dir.Close())
}

type walker struct {
	ctx   context.Context
	t     *tree
	visit func(visited) error
	names map[uint64]string // first names of files with several
}

// folder visits what is in an open directory. It gives back a descriptor of the same directory, also with an error.
func (w *walker) folder(f *os.File, path string) (*os.File, error) {
	names, err := f.Readdirnames(-1)
	if err != nil {
		return f, fmt.Errorf("read directory /%s: %w", path, err)
	}
	slices.Sort(names)
	for _, base := range names {
		if err := w.ctx.Err(); err != nil {
			return f, fmt.Errorf("reading the tree: stopped: %w", context.Cause(w.ctx))
		}
		if f, err = w.entry(f, path, base); err != nil {
			return f, err
		}
	}
	return f, nil
}

func (w *walker) entry(f *os.File, path, base string) (*os.File, error) {
	dir, whole := int(f.Fd()), base
	if path != "" {
		whole = path + "/" + base
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return f, fmt.Errorf("look at /%s: %w", whole, err)
	}
	r := w.t.records[st.Ino]
	if r == nil {
		return f, nil
	}
	v := visited{path: whole, dir: dir, base: base, record: r}
	if r.kind != kindFolder && st.Nlink > 1 {
		if v.first, v.hard = w.names[st.Ino]; !v.hard {
			w.names[st.Ino] = whole
		}
	}
	if err := w.visit(v); err != nil || r.kind != kindFolder {
		return f, err
	}
	return w.descend(f, whole, base)
}

// descend visits a directory's directory, without holding on to the former meanwhile.
func (w *walker) descend(f *os.File, path, base string) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(int(f.Fd()), base, flags, 0)
	if err != nil {
		return f, fmt.Errorf("open directory /%s: %w", path, err)
	}
	f.Close()
	child, err := w.folder(os.NewFile(uintptr(fd), base), path)
	if err != nil {
		return child, err
	}
	fd, err = unix.Openat(int(child.Fd()), "..", flags, 0)
	if err != nil {
		return child, err
	}
	child.Close()
	return os.NewFile(uintptr(fd), ".."), nil
}

// finish gives the directories of the tree their settings, and all names their digest.
func (t *tree) finish(ctx context.Context) (digest string, entries int64, err error) {
	d := newTreeDigest()
	err = t.walk(ctx, func(v visited) error {
		if v.record.kind == kindFolder && !t.staged {
			if err := t.apply(v.dir, v.base, v.record); err != nil {
				return t.failed(v.path, "finish", err)
			}
		}
		d.add(v)
		return nil
	})
	return d.sum(), d.entries, err
}

// treeDigest is one digest over the entries of a tree, in the order of walk.
type treeDigest struct {
	h       *blake3.Hasher
	entries int64
	buffer  []byte
}

func newTreeDigest() *treeDigest {
	d := &treeDigest{h: blake3.New(32, nil)}
	feed(d.h, []byte(treeVersion))
	return d
}

func (d *treeDigest) add(v visited) {
	d.entries++
	b := text(d.buffer[:0], v.path)
	if v.hard {
		b = text(append(b, 'h'), v.first)
	} else {
		r := v.record
		b = number(append(b, r.kind), uint64(r.mode), uint64(r.uid), uint64(r.gid), uint64(r.seconds), uint64(r.nanoseconds),
			uint64(r.major), uint64(r.minor), uint64(r.size), uint64(len(r.xattrs)))
		b = text(append(b, r.sum[:]...), r.target)
		for _, name := range slices.Sorted(maps.Keys(r.xattrs)) {
			b = text(text(b, name), r.xattrs[name])
		}
	}
	feed(d.h, b)
	d.buffer = b
}

func (d *treeDigest) sum() string { return hex.EncodeToString(d.h.Sum(nil)) }

func number(b []byte, values ...uint64) []byte {
	for _, v := range values {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// text appends a string with its length, so that it is clear where it ends.
func text(b []byte, s string) []byte { return append(number(b, uint64(len(s))), s...) }

// remove takes a name away, with all that is below it.
func (t *tree) remove(dir int, base string) error {
	t.stale = true
	err := unix.Unlinkat(dir, base, 0)
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	if err = unix.Unlinkat(dir, base, unix.AT_REMOVEDIR); !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := t.empty(fd); err != nil {
		return err
	}
	return unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
}

// empty removes all that is in an open directory, and closes it. Deep trees need no more than three descriptors.
func (t *tree) empty(fd int) error {
	f, depth := os.NewFile(uintptr(fd), "."), []string{}
	defer func() { f.Close() }()
	for {
		into, err := removeFiles(f)
		if err != nil {
			return err
		}
		up := into == ""
		if up && len(depth) == 0 {
			return nil
		}
		if up {
			into = ".."
		}
		next, err := unix.Openat(int(f.Fd()), into, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f.Close()
		f = os.NewFile(uintptr(next), into)
		if !up {
			depth = append(depth, into)
			continue
		}
		if err := unix.Unlinkat(next, depth[len(depth)-1], unix.AT_REMOVEDIR); err != nil {
			return err
		}
		depth = depth[:len(depth)-1]
	}
}

// removeFiles removes all that a directory holds but directories with content. It gives the name of one of these, or "".
func removeFiles(f *os.File) (string, error) {
	names, err := f.Readdirnames(-1)
	if err != nil {
		return "", err
	}
	into := ""
	for _, name := range names {
		err := unix.Unlinkat(int(f.Fd()), name, 0)
		if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
			err = unix.Unlinkat(int(f.Fd()), name, unix.AT_REMOVEDIR)
		}
		if errors.Is(err, unix.ENOTEMPTY) {
			into, err = name, nil
		}
		if err != nil {
			return "", err
		}
	}
	return into, nil
}

// feed adds to a digest, which never fails.
func feed(h *blake3.Hasher, b []byte) { _, _ = h.Write(b) }
