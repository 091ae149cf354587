//go:build linux

package source

import (
	"path"

	"github.com/moby/patternmatcher"

	"vers/internal/fault"
)

// Ignore hides what the context's ignore file leaves out. dockerfile is the path of the Dockerfile in the tree.
func (t *Tree) Ignore(dockerfile string) error {
	for _, name := range []string{OwnIgnoreFile(dockerfile), IgnoreFile} {
		data, err := t.File(name, maxIgnoreFile)
		if err != nil {
			if fault.Is(err, fault.Invalid) {
				return err
			}
			continue
		}
		m, err := ParseIgnore(data)
		if err != nil {
			return err
		}
		return m.hide("", t.root, patternmatcher.MatchInfo{})
	}
	return nil
}

// hide marks what is left out below a folder. A folder with something in it that is taken in again is not.
func (m Matcher) hide(name string, dir *node, above patternmatcher.MatchInfo) error {
	for child, n := range dir.children {
		at := path.Join(name, child)
		ignored, info, err := m.match(at, above)
		if err != nil {
			return err
		}
		n.hidden = ignored
		if n.children == nil {
			continue
		}
		if err := m.hide(at, n, info); err != nil {
			return err
		}
		for _, c := range n.children {
			n.hidden = n.hidden && c.hidden
		}
	}
	return nil
}
