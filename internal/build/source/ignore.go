// Package source holds the files that COPY and ADD take: a build's context, or what another stage has. They come as a tar
// archive from somebody who is not trusted, and never become files of the server: names are an index in memory, contents
// lie one after the other in a single unnamed file.
package source

import (
	"bytes"

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
