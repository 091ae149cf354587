package source

import (
	"bytes"
	"path"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"vers/internal/fault"
)

// IgnoreFile is the name of the file in a context that says what does not belong to it. A Dockerfile may have one of its
// own, which is used instead: [OwnIgnoreFile].
const IgnoreFile = ".dockerignore"

// OwnIgnoreFile is the ignore file of one Dockerfile.
func OwnIgnoreFile(dockerfile string) string { return dockerfile + IgnoreFile }

const maxIgnoreFile = 1 << 20

// Matcher says what an ignore file leaves out.
type Matcher struct {
	patterns *patternmatcher.PatternMatcher
}

// ParseIgnore reads an ignore file. Mistakes are fault.Invalid.
func ParseIgnore(data []byte) (Matcher, error) {
	lines, err := ignorefile.ReadAll(bytes.NewReader(data))
	if err != nil {
		return Matcher{}, fault.Invalidf("%s cannot be read: %w", IgnoreFile, err)
	}
	patterns, err := patternmatcher.New(lines)
	if err != nil {
		return Matcher{}, fault.Invalidf("%s: %w", IgnoreFile, err)
	}
	return Matcher{patterns}, nil
}

// Ignores says whether a file or folder is left out, by itself or by a folder that it is in.
func (m Matcher) Ignores(name string) (bool, error) {
	if m.patterns == nil {
		return false, nil
	}
	ignored, err := m.patterns.MatchesOrParentMatches(name)
	if err != nil {
		return false, fault.Invalidf("%s: %w", IgnoreFile, err)
	}
	return ignored, nil
}

// match says whether a name is left out, given what is known of the folder that it is in.
func (m Matcher) match(name string, above patternmatcher.MatchInfo) (bool, patternmatcher.MatchInfo, error) {
	if m.patterns == nil {
		return false, above, nil
	}
	ignored, info, err := m.patterns.MatchesUsingParentResults(name, above)
	if err != nil {
		return false, info, fault.Invalidf("%s: %w", IgnoreFile, err)
	}
	return ignored, info, nil
}

// Excepts says whether something in a folder that is left out may be taken in again.
func (m Matcher) Excepts() bool { return m.patterns != nil && m.patterns.Exclusions() }

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
