// Package ref reads what users type to name VMs and commits: full ids, id prefixes, and repo:tag references
// (spec/cli.md 3). It knows syntax only; what exists is for the caller to ask.
package ref

import (
	"regexp"
	"strings"

	"vers/internal/ident"
)

// MinPrefix is the least number of hex digits of an id prefix.
const MinPrefix = 4

// ID gives the canonical form of a full id, typed in any letter case, for VMs also with "vm-" in front.
func ID(typed string) (id string, ok bool) { return ident.Parse(typed) }

// Prefix gives the canonical form of something that can be the beginning of an id: at least MinPrefix hex digits,
// with hyphens only where a UUID has them. A full id is a prefix too.
func Prefix(typed string) (prefix string, ok bool) {
	prefix = strings.TrimPrefix(strings.ToLower(typed), "vm-")
	digits := 0
	for i, r := range prefix {
		hyphen := i == 8 || i == 13 || i == 18 || i == 23
		switch {
		case i >= 36:
			return "", false
		case hyphen && r == '-':
		case !hyphen && (r >= '0' && r <= '9' || r >= 'a' && r <= 'f'):
			digits++
		default:
			return "", false
		}
	}
	return prefix, digits >= MinPrefix
}

// Reference is a tag of a repository, written repo:tag.
type Reference struct{ Repo, Tag string }

func (r Reference) String() string { return r.Repo + ":" + r.Tag }

// ParseReference reads repo:tag: exactly one colon, and on both sides a name. References are case-sensitive.
func ParseReference(typed string) (Reference, bool) {
	repo, tag, found := strings.Cut(typed, ":")
	if !found || !ident.ValidName(repo, ident.RepositoryName) || !ident.ValidName(tag, ident.TagName) {
		return Reference{}, false
	}
	return Reference{repo, tag}, true
}

var foreign = regexp.MustCompile(`^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+:[A-Za-z0-9._-]+$`)

// IsForeign reports the form org/repo:tag, which only a fork takes.
func IsForeign(typed string) bool { return foreign.MatchString(typed) }

// Foreign reads org/repo, the name of a public repository.
func Foreign(typed string) (org, repo string, ok bool) {
	org, repo, found := strings.Cut(typed, "/")
	if !found || !ident.ValidName(org, ident.RepositoryName) || !ident.ValidName(repo, ident.RepositoryName) {
		return "", "", false
	}
	return org, repo, true
}

// ParseForeign reads org/repo:tag, a tag of a public repository.
func ParseForeign(typed string) (org string, r Reference, ok bool) {
	org, rest, found := strings.Cut(typed, "/")
	if !found || !ident.ValidName(org, ident.RepositoryName) {
		return "", Reference{}, false
	}
	r, ok = ParseReference(rest)
	return org, r, ok
}

// Match gives those of ids that begin with prefix.
func Match(prefix string, ids []string) []string {
	var matches []string
	for _, id := range ids {
		if strings.HasPrefix(id, prefix) {
			matches = append(matches, id)
		}
	}
	return matches
}
