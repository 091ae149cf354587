package buildfs

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"vers/internal/fault"
)

// index is what a root file system holds, by clean paths without a leading slash. The root itself is not in it.
type index struct {
	entries map[string]*indexEntry
	names   []string // in the archive's order
}

type indexEntry struct {
	kind     byte   // tar.TypeReg and so on
	link     string // of symbolic and hard links
	size     int64
	selected bool
	promoted string // of a file that is not selected: the selected hard link that gets its content
}

// readIndex reads an archive's headers. Of entries with the same name the last counts.
func readIndex(r io.Reader) (*index, error) {
	x := &index{entries: map[string]*indexEntry{}}
	for reader := tar.NewReader(r); ; {
		h, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return x, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the container's files: %w", err)
		}
		name := inside(h.Name)
		if name == "" || h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		e := &indexEntry{kind: h.Typeflag, link: h.Linkname, size: h.Size}
		if h.Typeflag == tar.TypeLink {
			e.link = inside(h.Linkname)
		}
		if _, ok := x.entries[name]; !ok {
			x.names = append(x.names, name)
		}
		x.entries[name] = e
	}
}

const maxLinks = 40 // as in the kernel

// resolve follows the symbolic links on the way to name, and with final also the last one. links are those it met. ok
// reports whether something is there; real is where, or would be.
func (x *index) resolve(name string, final bool) (real string, links []string, ok bool) {
	pending := strings.Split(inside(name), "/")
	if pending[0] == "" {
		return "", nil, true
	}
	for len(pending) > 0 {
		part := pending[0]
		pending = pending[1:]
		if part == ".." {
			real = inside(path.Dir("/" + real))
			continue
		}
		next := path.Join(real, part)
		e := x.entries[next]
		if e == nil || e.kind != tar.TypeSymlink || len(pending) == 0 && !final {
			real = next
			continue
		}
		if links = append(links, next); len(links) > maxLinks {
			return next, links, false
		}
		target := strings.Split(strings.Trim(path.Clean(e.link), "/"), "/")
		if strings.HasPrefix(e.link, "/") {
			real = ""
		}
		if target[0] != "" && target[0] != "." {
			pending = append(target, pending...)
		}
	}
	return real, links, real == "" || x.entries[real] != nil || x.hasBelow(real)
}

// hasBelow reports whether an archive mentions a folder only by what is in it.
func (x *index) hasBelow(name string) bool {
	for _, other := range x.names {
		if strings.HasPrefix(other, name+"/") {
			return true
		}
	}
	return false
}

// selection marks what an [export] takes.
type selection struct {
	*index
	exclude []pattern
	dropped map[string]bool // never exported
	missing []string
}

func (x *index) selectExport(e Export) (*selection, error) {
	s := &selection{index: x, dropped: map[string]bool{scriptFolder: true, ".dockerenv": true, "run/.containerenv": true}}
	for _, text := range e.Exclude {
		p, err := compilePattern(text)
		if err != nil {
			return nil, err
		}
		s.exclude = append(s.exclude, p)
	}
	if e.All {
		s.below("")
	}
	for _, name := range e.Directories.Include {
		s.include(name, "export.directories.include", true)
	}
	for _, name := range e.Files.Include {
		s.include(name, "export.files.include", false)
	}
	if len(s.missing) > 0 {
		return nil, fault.Invalidf("cannot export: %s", strings.Join(s.missing, "; "))
	}
	s.promote()
	return s, nil
}

// include marks a folder with all in it, or a file; the links on the way to it too, so that its name leads there.
func (s *selection) include(name, key string, folder bool) {
	real, links, ok := s.resolve(name, !folder)
	for _, link := range links {
		s.mark(link)
	}
	e := s.entries[real]
	switch {
	case !ok:
		s.missing = append(s.missing, fmt.Sprintf("%s: %s is not in the container", key, name))
	case !folder && (e == nil || e.kind == tar.TypeDir):
		s.missing = append(s.missing, fmt.Sprintf("%s: %s is a folder; name it in export.directories.include", key, name))
	case folder:
		s.below(real)
	default:
		s.mark(real)
	}
}

// below marks a folder, or whatever else name is, with everything in it.
func (s *selection) below(name string) {
	if name != "" {
		s.mark(name)
	}
	for _, other := range s.names {
		if name == "" || strings.HasPrefix(other, name+"/") {
			s.mark(other)
		}
	}
}

// mark selects an entry and the folders above it, unless it is to stay out.
func (s *selection) mark(name string) {
	top, _, _ := strings.Cut(name, "/")
	if s.dropped[top] || s.dropped[name] {
		return
	}
	for _, p := range s.exclude {
		if p.match(name) {
			return
		}
	}
	for ; name != "." && name != "/"; name = path.Dir(name) {
		if e := s.entries[name]; e != nil {
			if e.selected {
				return
			}
			e.selected = true
		}
	}
}

// base is the file that a hard link is another name of.
func (x *index) base(name string) string {
	for range maxLinks {
		e := x.entries[name]
		if e == nil || e.kind != tar.TypeLink {
			break
		}
		name = e.link
	}
	return name
}

// promote sees to hard links whose file stays out: the first of them becomes the file.
func (s *selection) promote() {
	for _, name := range s.names {
		e := s.entries[name]
		if !e.selected || e.kind != tar.TypeLink {
			continue
		}
		base := s.entries[s.base(name)]
		if base != nil && !base.selected && base.promoted == "" {
			base.promoted = name
		}
	}
}

// drop takes back what is below name, or name itself.
func (s *selection) drop(name string) {
	for _, other := range s.names {
		if other == name || strings.HasPrefix(other, name+"/") {
			s.entries[other].selected = false
		}
	}
}

// has reports whether name is in the file system, through the links that are.
func (s *selection) has(name string) bool {
	real, _, ok := s.resolve(name, false)
	e := s.entries[real]
	return ok && (e == nil && s.hasBelow(real) || e != nil && e.selected)
}
