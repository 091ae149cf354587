//go:build linux

package source

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"vers/internal/fault"
)

// Options of Select.
type Options struct {
	KeepOwners bool         // of the archive; else everything belongs to root
	Mode       *fs.FileMode // permissions of all files and folders
	Where      string       // what the tree is, for messages: "the context"
}

// Selection is what a COPY writes, with names relative to its target.
type Selection struct {
	tree    *Tree
	entries []selected
	options Options
	// Single is the name of the only source if that is a file and nothing says whether the target is a folder: if the
	// target exists as one, the file goes into it under this name.
	Single string
	// Archives are sources that are tar archives, compressed or not.
	Archives []string
}

type selected struct {
	name string // "." the target itself
	*node
}

// Select finds what sources name: paths in the tree, * ? and [ ] match within one part of a path. A folder stands for what
// is in it. intoFolder: the target is a folder, whatever it is now. A source that matches nothing, or leads out of the
// tree, is fault.Invalid.
func (t *Tree) Select(sources []string, intoFolder bool, o Options) (Selection, error) {
	s := Selection{tree: t, options: o}
	type match struct {
		name string
		*node
	}
	var matches []match
	for _, source := range sources {
		names, err := t.glob(source, o.Where)
		if err != nil {
			return s, err
		}
		for _, name := range names {
			// A source that is a link is what it leads to, under the link's own name.
			_, n, err := t.follow(name, false)
			if err != nil {
				return s, err
			}
			if n == nil {
				return s, fault.Invalidf("%q is a symbolic link to nothing in %s", source, o.Where)
			}
			matches = append(matches, match{name, n})
		}
	}
	into := intoFolder || len(matches) > 1
	at := map[string]int{} // place of a name: what comes later replaces what was there
	for _, m := range matches {
		base := "."
		if m.children == nil {
			if t.isArchive(m.node) {
				s.Archives = append(s.Archives, m.name)
			}
			if into {
				base = path.Base(m.name)
			} else {
				s.Single = path.Base(m.name)
			}
		}
		err := m.walk(base, func(name string, n *node) error {
			i, ok := at[name]
			switch {
			case !ok:
				at[name] = len(s.entries)
				s.entries = append(s.entries, selected{name, n})
			case (s.entries[i].children == nil) != (n.children == nil):
				return fault.Invalidf("%q is a file in one source and a folder in another", name)
			default:
				s.entries[i].node = n
			}
			return nil
		})
		if err != nil {
			return s, err
		}
	}
	slices.SortFunc(s.entries, func(a, b selected) int { return strings.Compare(a.name, b.name) })
	// The target itself, where it has to be made, is a plain folder, whatever its source was like.
	switch {
	case len(s.entries) == 0 || s.entries[0].name != ".":
		s.entries = slices.Insert(s.entries, 0, selected{".", newDirectory()})
	case s.entries[0].children != nil:
		s.entries[0].node = newDirectory()
	}
	return s, nil
}

// glob gives the names that a pattern matches, sorted; the pattern itself if it is a name.
func (t *Tree) glob(pattern, where string) ([]string, error) {
	clean := path.Clean("/" + pattern)
	if depth(pattern) < 0 {
		return nil, fault.Invalidf("%q leads out of %s: only what is in it can be copied", pattern, where)
	}
	found := []string{""}
	for part := range strings.SplitSeq(strings.Trim(clean, "/"), "/") {
		if part == "" {
			continue
		}
		var next []string
		for _, base := range found {
			_, dir, err := t.follow(base, false)
			if err != nil || dir == nil {
				continue // a link in a circle is nothing that anything could be in
			}
			if n := dir.children[part]; n != nil && !n.hidden { // also a name that has a [ in it
				next = append(next, path.Join(base, part))
				continue
			}
			for _, child := range slices.Sorted(maps.Keys(dir.children)) {
				matched, err := path.Match(part, child)
				if err != nil {
					return nil, fault.Invalidf("%q is no pattern: %w", pattern, err)
				}
				if matched && !dir.children[child].hidden {
					next = append(next, path.Join(base, child))
				}
			}
		}
		found = next
	}
	if len(found) == 0 {
		return nil, fault.Invalidf("%q is not in %s%s", pattern, where, t.hint(clean))
	}
	return found, nil
}

// depth is how far below its start a path ends; negative if it was ever above it.
func depth(name string) int {
	d := 0
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			if d--; d < 0 {
				return d
			}
		default:
			d++
		}
	}
	return d
}

func (t *Tree) hint(name string) string {
	if _, n, err := t.follow(name, true); err == nil && n != nil {
		return ": " + IgnoreFile + " leaves it out"
	}
	return ""
}

// isArchive recognises tar archives, also inside the usual compressions, by how they begin.
func (t *Tree) isArchive(n *node) bool {
	head := make([]byte, 512)
	count, _ := io.ReadFull(t.content(n), head)
	for _, magic := range []string{"\x1f\x8b", "BZh", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd"} {
		if strings.HasPrefix(string(head[:count]), magic) {
			return true
		}
	}
	return count > 262 && string(head[257:262]) == "ustar"
}

// Hash identifies names, types, permissions, owners, sizes and contents: not times.
func (s Selection) Hash() [sha256.Size]byte {
	h := sha256.New()
	text(h, s.Single)
	for _, e := range s.entries {
		text(h, e.name)
		uid, gid, mode := s.attributes(e)
		number(h, int64(mode))
		number(h, int64(uid))
		number(h, int64(gid))
		text(h, e.link)
		number(h, e.size)
		h.Write(e.sum[:])
		for _, name := range slices.Sorted(maps.Keys(e.xattrs)) {
			text(h, name)
			text(h, e.xattrs[name])
		}
		text(h, "")
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func text(h hash.Hash, s string) {
	number(h, int64(len(s)))
	h.Write([]byte(s))
}

func number(h hash.Hash, n int64) { _ = binary.Write(h, binary.BigEndian, n) }

func (s Selection) attributes(e selected) (uid, gid int, mode fs.FileMode) {
	mode = e.mode
	if s.options.Mode != nil && mode&fs.ModeSymlink == 0 {
		mode = mode&fs.ModeType | *s.options.Mode
	}
	if s.options.KeepOwners {
		return e.uid, e.gid, mode
	}
	return 0, 0, mode
}

// Len is the number of entries.
func (s Selection) Len() int { return len(s.entries) }

// WriteTar writes the selection as an archive. The entry "." is the target itself.
func (s Selection) WriteTar(w io.Writer) error {
	out := tar.NewWriter(w)
	for _, e := range s.entries {
		uid, gid, mode := s.attributes(e)
		h := &tar.Header{Name: e.name, Uid: uid, Gid: gid, Mode: bits(mode), ModTime: e.modTime, Linkname: e.link, Format: tar.FormatPAX}
		switch {
		case e.children != nil:
			h.Typeflag = tar.TypeDir
			h.Name += "/"
		case e.link != "":
			h.Typeflag = tar.TypeSymlink
		default:
			h.Typeflag, h.Size = tar.TypeReg, e.size
		}
		for name, value := range e.xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords[xattrPrefix+name] = value
		}
		if err := out.WriteHeader(h); err != nil {
			return fmt.Errorf("pack %s: %w", e.name, err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.Copy(out, s.tree.content(e.node)); err != nil {
				return fmt.Errorf("pack %s: %w", e.name, err)
			}
		}
	}
	return out.Close()
}

// bits gives permissions as archives have them.
func bits(mode fs.FileMode) int64 {
	b := int64(mode.Perm())
	for _, special := range []struct {
		mode fs.FileMode
		bit  int64
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if mode&special.mode != 0 {
			b |= special.bit
		}
	}
	return b
}
