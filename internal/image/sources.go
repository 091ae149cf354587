package image

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	"vers/internal/program"
)

// suite is the Debian release that images are made of, whatever the host runs.
const suite = "bookworm"

// archives are the places packages come from.
type archives struct {
	main, security string
}

// hostArchives finds where this host gets Debian from: the archives named in its package sources, for its own
// release or another, and Debian's usual ones where the host names none.
func hostArchives(etcApt string) archives {
	found := archives{}
	var files []string
	for _, pattern := range []string{"sources.list", "sources.list.d/*.list", "sources.list.d/*.sources"} {
		matches, _ := filepath.Glob(filepath.Join(etcApt, pattern)) // the patterns are valid
		files = append(files, matches...)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for _, e := range parseSources(data, strings.HasSuffix(file, ".sources")) {
			found.add(e)
		}
	}
	if found.main == "" {
		found.main = "http://deb.debian.org/debian"
	}
	if found.security == "" {
		found.security = "http://deb.debian.org/debian-security"
	}
	return found
}

// sourceEntry is one archive of a sources file.
type sourceEntry struct{ uri, suite, component string }

// add takes an entry of Debian's own archives; the first of each wins. Other vendors' archives are known by their suite
// (they have one of their own, mostly "stable" or "nodistro") and by having no component main.
func (a *archives) add(e sourceEntry) {
	if e.component != "main" || !strings.Contains(e.uri, "debian") {
		return
	}
	switch {
	case strings.HasSuffix(e.suite, "-security") && a.security == "":
		a.security = e.uri
	case debianSuite(e.suite) && a.main == "":
		a.main = e.uri
	}
}

func debianSuite(name string) bool {
	switch name {
	case "bookworm", "trixie", "forky", "duke", "sid":
		return true
	}
	return false
}

// parseSources reads a one-line style or a deb822 style sources file. What it does not understand is left out.
func parseSources(data []byte, deb822 bool) []sourceEntry {
	if deb822 {
		return parseDeb822(data)
	}
	var entries []sourceEntry
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if start, end := strings.Index(line, "["), strings.Index(line, "]"); start >= 0 && end > start {
			line = line[:start] + line[end+1:]
		}
		if f := strings.Fields(line); len(f) >= 4 && f[0] == "deb" {
			entries = append(entries, sourceEntry{uri: f[1], suite: f[2], component: f[3]})
		}
	}
	return entries
}

func parseDeb822(data []byte) []sourceEntry {
	var entries []sourceEntry
	stanza := map[string]string{}
	flush := func() {
		for _, uri := range strings.Fields(stanza["uris"]) {
			for _, s := range strings.Fields(stanza["suites"]) {
				for _, c := range strings.Fields(stanza["components"]) {
					if strings.EqualFold(stanza["enabled"], "no") || !strings.Contains(" "+stanza["types"]+" ", " deb ") {
						continue
					}
					entries = append(entries, sourceEntry{uri: uri, suite: s, component: c})
				}
			}
		}
		clear(stanza)
	}
	key := ""
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			flush()
		case line[0] == ' ' || line[0] == '\t':
			stanza[key] += " " + strings.TrimSpace(line)
		default:
			name, value, _ := strings.Cut(line, ":")
			key = strings.ToLower(strings.TrimSpace(name))
			stanza[key] = strings.TrimSpace(value)
		}
	}
	flush()
	return entries
}

// lines are the sources of the build, in one-line style.
func (a archives) lines() []string {
	return []string{
		fmt.Sprintf("deb %s %s main", a.main, suite),
		fmt.Sprintf("deb %s %s-updates main", a.main, suite),
		fmt.Sprintf("deb %s %s-security main", a.security, suite),
	}
}

// HostSources are the lines of a sources.list for guests: the Debian archives that this host uses.
func HostSources() []string { return hostArchives("/etc/apt").lines() }

// HostAptOptions are the lines of an apt.conf that this host needs to reach its package sources: proxies, checks switched off.
func HostAptOptions(ctx context.Context) ([]string, error) {
	dump, err := program.Run(ctx, exec.CommandContext(ctx, "apt-config", "dump", "Acquire", "--no-empty"))
	if err != nil {
		return nil, err
	}
	return filterAptOptions(dump), nil
}

// hostAptOptions are these settings and the host's logins to its package sources, as an apt configuration file for a build
// that happens on the host alone.
func hostAptOptions(ctx context.Context) ([]byte, error) {
	options, err := HostAptOptions(ctx)
	if err != nil {
		return nil, err
	}
	for name, path := range map[string]string{"Netrc": "/etc/apt/auth.conf", "NetrcParts": "/etc/apt/auth.conf.d"} {
		if _, err := os.Stat(path); err == nil {
			options = append(options, fmt.Sprintf("Dir::Etc::%s %q;", name, path))
		}
	}
	sort.Strings(options)
	return []byte(strings.Join(options, "\n") + "\n"), nil
}

func filterAptOptions(dump []byte) []string {
	var options []string
	for _, line := range strings.Split(string(dump), "\n") {
		name, _, _ := strings.Cut(line, " ")
		for _, prefix := range []string{"Acquire::http::", "Acquire::https::", "Acquire::Check-", "Acquire::Retries", "Acquire::ForceIPv"} {
			if len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix) {
				options = append(options, line)
				break
			}
		}
	}
	return options
}
