package deploy

import (
	"net/url"
	"path"
	"regexp"
	"strings"

	"vers/internal/fault"
	"vers/internal/ident"
)

const (
	repoLength    = 2048
	branchLength  = 255
	commandLength = 8192
)

var (
	shorthand = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,38}/[A-Za-z0-9._-]{1,100}$`)
	scpLike   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9.-]*:[^-/:\s][^:\s]*$`)
	branch    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._/+@#-]*$`)
)

// ParseRepo reads what is to be cloned: owner/repo on GitHub, a URL of git over http, https, ssh or its own protocol, or
// user@host:path. It gives the URL for git and a name for the project. Credentials in URLs are refused: they would be kept
// and shown.
func ParseRepo(text string) (source, name string, err error) {
	refused := func(why string) (string, string, error) {
		return "", "", fault.Invalidf("repo is not valid: %s; use owner/repo, or a git URL such as https://git.example.org/team/app.git", why)
	}
	if text == "" || len(text) > repoLength {
		return refused("it must have 1 to 2048 characters")
	}
	if strings.ContainsFunc(text, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return refused("it has white space or control characters")
	}
	var last string
	switch {
	case shorthand.MatchString(text):
		source, last = "https://github.com/"+strings.TrimSuffix(text, ".git")+".git", path.Base(text)
	case scpLike.MatchString(text):
		_, location, _ := strings.Cut(text, ":")
		source, last = text, path.Base(location)
	default:
		u, err := url.Parse(text)
		switch {
		case err != nil || u.Host == "" || strings.HasPrefix(u.Host, "-"):
			return refused("it is no URL with a host")
		case u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "git" && u.Scheme != "ssh":
			return refused("its scheme is not http, https, git or ssh")
		case u.User != nil && (u.Scheme != "ssh" || hasPassword(u) || strings.HasPrefix(u.User.Username(), "-")):
			return refused("it holds credentials, which would be kept and shown; give git a credential helper through the environment variables (vers env set)")
		case strings.Trim(u.Path, "/") == "" || u.RawQuery != "" || u.Fragment != "":
			return refused("it names no repository")
		}
		source, last = text, path.Base(u.Path)
	}
	name = strings.TrimSuffix(last, ".git")
	if !ident.ValidName(name, ident.RepositoryName) {
		name = "project"
	}
	return source, name, nil
}

func hasPassword(u *url.URL) bool {
	_, has := u.User.Password()
	return has
}

// checkBranch refuses what git might take for something else than the name of a branch or tag.
func checkBranch(name string) error {
	if len(name) > branchLength || !branch.MatchString(name) || strings.Contains(name, "..") || strings.Contains(name, "@{") ||
		strings.HasSuffix(name, "/") || strings.HasSuffix(name, ".lock") {
		return fault.Invalidf("branch %q is not the name of a git branch or tag", name)
	}
	return nil
}

// checkFolder gives a folder inside a repository in canonical form; "" is its top.
func checkFolder(text string) (string, error) {
	clean := path.Clean(text)
	if text == "" || clean == "." {
		return "", nil
	}
	if path.IsAbs(clean) || clean == ".." || strings.HasPrefix(clean, "../") || strings.ContainsRune(text, 0) || len(text) > 1024 {
		return "", fault.Invalidf("working_directory %q is not a folder inside the repository", text)
	}
	return clean, nil
}
