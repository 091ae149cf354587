package agent

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"vers/internal/fault"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// account is a line of /etc/passwd.
type account struct {
	name  string
	uid   uint32
	gid   uint32
	home  string
	shell string
}

// lookupAccount finds a user by name or number; "" is root, who exists even where /etc/passwd does not.
func lookupAccount(root, user string) (account, error) {
	fallback := account{name: "root", home: "/root", shell: "/bin/sh"}
	file, err := os.Open(filepath.Join(root, "/etc/passwd"))
	if err == nil {
		defer func() { _ = file.Close() }()
		lines := bufio.NewScanner(file)
		for lines.Scan() {
			f := strings.Split(lines.Text(), ":")
			if len(f) < 7 || (f[0] != user && f[2] != user && (user != "" || f[2] != "0")) {
				continue
			}
			uid, uerr := strconv.ParseUint(f[2], 10, 32)
			gid, gerr := strconv.ParseUint(f[3], 10, 32)
			if uerr != nil || gerr != nil {
				continue
			}
			a := account{name: f[0], uid: uint32(uid), gid: uint32(gid), home: f[5], shell: f[6]}
			if a.shell == "" {
				a.shell = "/bin/sh"
			}
			if a.home == "" {
				a.home = "/"
			}
			return a, nil
		}
	}
	if user == "" || user == "root" || user == "0" {
		return fallback, nil
	}
	return account{}, fault.Invalidf("the VM has no user %q in its /etc/passwd", user)
}

// lookupUser finds who user[:group] is, names or numbers. A number need not be in /etc/passwd; its group is then 0. A group
// that is named is the only one that the user gets; else it is the user's own, with the supplementary ones.
func lookupUser(root, spec string) (account, []uint32, error) {
	user, group, hasGroup := strings.Cut(spec, ":")
	a, err := lookupAccount(root, user)
	if err != nil {
		uid, number := parseID(user)
		if !number {
			return a, nil, err
		}
		a = account{name: user, uid: uid, home: "/", shell: "/bin/sh"}
	}
	if hasGroup {
		a.gid, err = lookupGroup(root, group)
		return a, nil, err
	}
	return a, groups(root, a.name), nil
}

// lookupOwner finds the numbers of user[:group]. Without a group it is the number of the user, as in Dockerfiles.
func lookupOwner(root, spec string) (uid, gid int, err error) {
	user, group, hasGroup := strings.Cut(spec, ":")
	a, _, err := lookupUser(root, user)
	if err != nil {
		return 0, 0, err
	}
	if !hasGroup {
		return int(a.uid), int(a.uid), nil
	}
	g, err := lookupGroup(root, group)
	return int(a.uid), int(g), err
}

func parseID(text string) (uint32, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err == nil
}

// lookupGroup finds a group by name or number.
func lookupGroup(root, group string) (uint32, error) {
	data, err := os.ReadFile(filepath.Join(root, "/etc/group"))
	if err == nil {
		for line := range strings.Lines(string(data)) {
			f := strings.Split(strings.TrimSpace(line), ":")
			if len(f) < 3 || f[0] != group {
				continue
			}
			if gid, ok := parseID(f[2]); ok {
				return gid, nil
			}
		}
	}
	if gid, ok := parseID(group); ok {
		return gid, nil
	}
	if group == "root" {
		return 0, nil
	}
	return 0, fault.Invalidf("the VM has no group %q in its /etc/group", group)
}

// groups gives the supplementary groups of a user.
func groups(root, name string) []uint32 {
	data, err := os.ReadFile(filepath.Join(root, "/etc/group"))
	if err != nil {
		return nil
	}
	var list []uint32
	for line := range strings.Lines(string(data)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 4 {
			continue
		}
		for _, member := range strings.Split(f[3], ",") {
			if gid, err := strconv.ParseUint(f[2], 10, 32); err == nil && member == name {
				list = append(list, uint32(gid))
			}
		}
	}
	return list
}

// environment is a set of variables that remembers nothing but the latest value of each.
type environment map[string]string

// list gives it as the kernel wants it, sorted.
func (e environment) list() []string {
	out := make([]string, 0, len(e))
	for k, v := range e {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return out
}

func (e environment) add(vars map[string]string) {
	for k, v := range vars {
		e[k] = v
	}
}

// login is the environment of a fresh login: defaults, what the image has in /etc/environment, what its Dockerfile says, our
// own part of that file, and what a line of it cannot hold; the later ones win.
func (s *Server) login(a account) environment {
	env := environment{
		"HOME": a.home, "USER": a.name, "LOGNAME": a.name, "SHELL": a.shell, "PATH": defaultPath,
	}
	data, err := os.ReadFile(filepath.Join(s.config.Root, environmentFile))
	if err == nil {
		own, ours := splitEnvironment(string(data))
		env.add(parseEnvironment(own))
		env.add(s.identity.process().Env)
		env.add(parseEnvironment(ours))
	} else {
		env.add(s.identity.process().Env)
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("cannot read the environment file", "file", environmentFile, "error", err)
		}
	}
	env.add(s.identity.multiline())
	return env
}

const environmentFile = "/etc/environment"

// Our part of the file stands between these lines.
const (
	blockBegin = "# vers: begin. Written at every start, restore and branch; changes between these lines are lost."
	blockEnd   = "# vers: end."
)

// parseEnvironment reads /etc/environment as pam_env does: NAME=value, one pair of outer quotes removed, no escapes.
func parseEnvironment(text string) map[string]string {
	vars := map[string]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		line = strings.TrimSpace(strings.TrimPrefix(line, "export "))
		key, value, ok := strings.Cut(line, "=")
		if !ok || !validName(key) {
			continue
		}
		if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		vars[key] = value
	}
	return vars
}

// splitEnvironment separates our part of the file's text from the rest.
func splitEnvironment(text string) (own, ours string) {
	var parts [2]strings.Builder
	inside := 0
	for line := range strings.Lines(text) {
		switch strings.TrimSpace(line) {
		case blockBegin:
			inside = 1
			continue
		case blockEnd:
			inside = 0
			continue
		}
		parts[inside].WriteString(strings.TrimSuffix(line, "\n") + "\n")
	}
	return parts[0].String(), parts[1].String()
}

// renderEnvironment replaces our part of the file's text by vars; everything else stays.
func renderEnvironment(old string, vars map[string]string) string {
	var b strings.Builder
	own, _ := splitEnvironment(old)
	b.WriteString(own)
	if len(vars) == 0 {
		return b.String()
	}
	keys := make([]string, 0, len(vars))
	for k := range vars {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	b.WriteString(blockBegin + "\n")
	for _, k := range keys {
		if oneLine(vars[k]) {
			b.WriteString(k + `="` + vars[k] + "\"\n")
		} else {
			b.WriteString("# " + k + " has several lines: commands and logins through vers get it, this file cannot hold it.\n")
		}
	}
	b.WriteString(blockEnd + "\n")
	return b.String()
}

func oneLine(value string) bool { return !strings.ContainsAny(value, "\n\r") }

// validName reports whether s is a name that shells accept.
func validName(s string) bool {
	for i, r := range s {
		letter := r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !letter && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return s != ""
}

// checkVars refuses variables that no process could be given.
func checkVars(vars map[string]string) error {
	for k, v := range vars {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
			return fault.Invalidf("environment variable %q: a name must not be empty or hold '=', and neither name nor value may hold a zero byte", k)
		}
	}
	return nil
}
