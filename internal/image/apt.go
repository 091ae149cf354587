package image

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"vers/internal/fault"
	"vers/internal/program"
)

// apt fetches packages with the host's package sources and installs nothing. Work happens in a folder of its own.
type apt struct {
	dir      string   // holds downloads; belongs to apt's own user where there is one
	options  []string // for every call
	progress io.Writer
}

// newApt makes the work folder. The caller removes apt.dir.
func newApt(progress io.Writer) (*apt, error) {
	dir, err := os.MkdirTemp("", "vers-apt-")
	if err != nil {
		return nil, err
	}
	a := &apt{dir: dir, progress: progress, options: []string{"-q", "-o", "APT::Color=0"}}
	if os.Geteuid() == 0 {
		// apt drops to this user for downloads, and warns when that user cannot write.
		if u, err := user.Lookup("_apt"); err == nil {
			uid, _ := strconv.Atoi(u.Uid)
			if err := os.Chown(dir, uid, 0); err != nil {
				os.Remove(dir)
				return nil, err
			}
		}
	}
	return a, nil
}

func (a *apt) command(ctx context.Context, tool string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, tool, append(append([]string{}, a.options...), args...)...)
	cmd.Dir = a.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	return program.Run(ctx, cmd)
}

// update reads the package lists anew. Without root they go into the work folder instead of the system's.
func (a *apt) update(ctx context.Context) error {
	say(a.progress, "reading the package lists (apt-get update)")
	if os.Geteuid() != 0 {
		lists, cache := filepath.Join(a.dir, "lists"), filepath.Join(a.dir, "cache")
		if err := os.MkdirAll(filepath.Join(cache, "archives", "partial"), 0o755); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(lists, "partial"), 0o755); err != nil {
			return err
		}
		a.options = append(a.options, "-o", "Dir::State::Lists="+lists, "-o", "Dir::Cache="+cache)
	}
	if _, err := a.command(ctx, "apt-get", "update"); err != nil {
		return fmt.Errorf("read the package lists: %w", err)
	}
	return nil
}

// dependency gives the first package with the given prefix that a (meta) package depends on, in its newest version.
// Missing package lists are fetched once.
func (a *apt) dependency(ctx context.Context, meta, prefix string) (string, error) {
	out, err := a.command(ctx, "apt-cache", "show", "--no-all-versions", meta)
	if err != nil || len(bytes.TrimSpace(out)) == 0 {
		if err := a.update(ctx); err != nil {
			return "", err
		}
		if out, err = a.command(ctx, "apt-cache", "show", "--no-all-versions", meta); err != nil {
			return "", fault.Unavailablef("the package sources of this host have no package %s; it comes from Debian's main archive: %w", meta, err)
		}
	}
	if name := parseDependency(out, prefix); name != "" {
		return name, nil
	}
	return "", fault.Unavailablef("package %s names no package that begins with %s", meta, prefix)
}

// parseDependency finds the name in the Depends: line of a package's record.
func parseDependency(record []byte, prefix string) string {
	lines := bufio.NewScanner(bytes.NewReader(record))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		list, ok := strings.CutPrefix(lines.Text(), "Depends:")
		if !ok {
			continue
		}
		for _, dep := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == '|' }) {
			name, _, _ := strings.Cut(strings.TrimSpace(dep), " ")
			if strings.HasPrefix(name, prefix) {
				return name
			}
		}
	}
	return ""
}

// download fetches one package and gives the path of its .deb. Lists that are older than the archive name files that
// are gone, so a failure is tried again after an update.
func (a *apt) download(ctx context.Context, pkg string) (string, error) {
	say(a.progress, "downloading %s", pkg)
	if _, err := a.command(ctx, "apt-get", "download", pkg); err != nil {
		if ctx.Err() != nil {
			return "", err
		}
		if err := a.update(ctx); err != nil {
			return "", err
		}
		if _, err := a.command(ctx, "apt-get", "download", pkg); err != nil {
			return "", fault.Unavailablef("cannot download package %s: %w", pkg, err)
		}
	}
	found, err := filepath.Glob(filepath.Join(a.dir, pkg+"_*.deb"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("apt-get download %s left %d files", pkg, len(found))
	}
	return found[0], nil
}
