// Package ident makes and reads the identifiers of VMs, commits, tags and everything else: lower-case UUIDs.
package ident

import (
	"regexp"
	"strings"

	"github.com/google/uuid"
)

// Clients in the field derive their exit code from the error text, which holds the id; an id that contains one of
// these digit groups would turn a plain failure into another one (spec/api.md 1.5).
var misread = []string{"400", "401", "403", "404", "409"}

// New makes a random UUID (version 4) that holds no digit group which older clients mistake for an HTTP status.
func New() string {
	for {
		id := uuid.NewString()
		if !containsAny(id, misread) {
			return id
		}
	}
}

func containsAny(s string, subs []string) bool {
	for _, sub := range subs {
		if strings.Contains(s, sub) {
			return true
		}
	}
	return false
}

var pattern = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// Parse accepts a full id in any letter case, with an optional "vm-" in front (display form of VM ids), and gives
// its canonical form.
func Parse(s string) (id string, ok bool) {
	s = strings.TrimPrefix(strings.ToLower(s), "vm-")
	return s, pattern.MatchString(s)
}

var name = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// ValidName reports whether s is 1 to limit letters, digits, '-', '_' or '.' (spec/cli.md 3.2). The names "." and
// ".." are refused everywhere, since names become parts of URLs and paths.
func ValidName(s string, limit int) bool {
	return len(s) >= 1 && len(s) <= limit && name.MatchString(s) && s != "." && s != ".."
}

// Limits of names, in characters.
const (
	RepositoryName = 64
	TagName        = 128
	PlainTagName   = 64
	ImageName      = 64
	CommitName     = 128
)
