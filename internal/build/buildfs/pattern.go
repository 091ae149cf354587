package buildfs

import (
	"path"
	"strings"

	"vers/internal/fault"
)

// pattern is one of export.exclude. With a slash it is a path from the root, without one a name at any depth. * and ? are
// within a name, ** is any number of folders. What is below a match matches too.
type pattern []string

func compilePattern(text string) (pattern, error) {
	clean := strings.Trim(text, "/")
	if clean == "" {
		return nil, fault.Invalidf("%q matches no path", text)
	}
	parts := strings.Split(clean, "/")
	if len(parts) == 1 && !strings.HasPrefix(text, "/") && clean != "**" {
		parts = []string{"**", clean}
	}
	for _, part := range parts {
		if _, err := path.Match(part, ""); err != nil {
			return nil, fault.Invalidf("%q is not a pattern: %w", text, err)
		}
		if part == ".." || part == "." || part == "" {
			return nil, fault.Invalidf("%q is not a clean path", text)
		}
	}
	return parts, nil
}

// match reports whether a clean path or a folder around it matches.
func (p pattern) match(name string) bool { return matchParts(p, strings.Split(name, "/")) }

func matchParts(parts, names []string) bool {
	for i, part := range parts {
		if part == "**" {
			rest := parts[i+1:]
			if len(rest) == 0 {
				return len(names) > i
			}
			for j := i; j < len(names); j++ {
				if matchParts(rest, names[j:]) {
					return true
				}
			}
			return false
		}
		if i >= len(names) {
			return false
		}
		if ok, _ := path.Match(part, names[i]); !ok {
			return false
		}
	}
	return true
}
