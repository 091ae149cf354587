package buildfs

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"vers/internal/build/engine"
)

// scriptFolder is where scripts are in the container, as in the original. It never gets into the file system.
const scriptFolder = "__scripts"

// step is a command, ready to run.
type step struct {
	Name         string // for people
	Command      engine.Command
	Script       []byte // file in scriptFolder, when there is one
	ScriptName   string
	AllowFailure bool
}

// steps makes the script's commands ready, each with a file of its own (B24).
func (p *Package) steps(s *Script, sourceDate string) ([]step, error) {
	steps := make([]step, len(s.Commands))
	for i, c := range s.Commands {
		st := step{Name: c.title(i), AllowFailure: c.AllowFailure, Command: engine.Command{
			Dir: c.WorkingDir, Privileged: c.Privileged, Env: map[string]string{}, User: c.user(),
		}}
		if sourceDate != "" {
			st.Command.Env["SOURCE_DATE_EPOCH"] = sourceDate
		}
		for name, value := range c.Env {
			st.Command.Env[name] = value
		}
		if c.TimeoutS != nil {
			st.Command.Timeout = time.Duration(*c.TimeoutS) * time.Second
		}
		text := []byte(c.ScriptInline)
		if c.ScriptPath != "" {
			name, _, err := p.stat(c.ScriptPath)
			if err == nil {
				text, err = p.root.ReadFile(name)
			}
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", c.ScriptPath, err)
			}
		}
		if len(text) > 0 {
			st.Script, st.ScriptName = text, fmt.Sprintf("%s/%03d", scriptFolder, i)
			st.Command.Args = scriptArgs(text, "/"+st.ScriptName)
		} else {
			st.Command.Args = c.args()
		}
		steps[i] = st
	}
	return steps, nil
}

// scriptArgs runs a script by its interpreter, as a shell does: one that names none is the shell's own.
func scriptArgs(text []byte, path string) []string {
	if strings.HasPrefix(string(text), "#!") || strings.HasPrefix(string(text), "\x7fELF") {
		return []string{path}
	}
	return []string{"/bin/sh", path}
}

func (c Command) args() []string {
	switch {
	case len(c.Command.Args) > 0:
		return c.Command.Args
	case c.Shell == "none":
		return strings.Fields(c.Command.Shell)
	case c.Shell != "":
		return []string{c.Shell, "-c", c.Command.Shell}
	}
	return []string{"/bin/sh", "-c", c.Command.Shell}
}

func (c Command) user() string {
	if c.UID == nil {
		return "0:0" // the original's; an image's USER is for what it runs
	}
	user := strconv.FormatInt(*c.UID, 10)
	if c.GID != nil {
		user += ":" + strconv.FormatInt(*c.GID, 10)
	}
	return user
}

const titleLength = 60

// title names a command in messages.
func (c Command) title(i int) string {
	title := c.Name
	switch {
	case title != "":
	case c.ScriptPath != "":
		title = c.ScriptPath
	case len(c.Command.Args) > 0:
		title = strings.Join(c.Command.Args, " ")
	case c.Command.Shell != "":
		title = c.Command.Shell
	default:
		title = fmt.Sprintf("inline script %d", i+1)
	}
	title, _, _ = strings.Cut(strings.TrimSpace(title), "\n")
	if runes := []rune(title); len(runes) > titleLength {
		title = string(runes[:titleLength-1]) + "…"
	}
	return title
}

// writeScripts is the archive of the scripts: readable and executable by every user (B9).
func writeScripts(steps []step, w *tar.Writer) error {
	err := w.WriteHeader(&tar.Header{Name: scriptFolder + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: packTime})
	for _, st := range steps {
		if err != nil || st.Script == nil {
			continue
		}
		err = w.WriteHeader(&tar.Header{Name: st.ScriptName, Typeflag: tar.TypeReg, Mode: 0o555, Size: int64(len(st.Script)), ModTime: packTime})
		if err == nil {
			_, err = w.Write(st.Script)
		}
	}
	return err
}

// StepFailure is a command that ended with a code other than 0.
type StepFailure struct {
	Number, Of int
	Name       string
	Code       int
	Tail       []string // last lines of its output
}

func (e *StepFailure) Error() string {
	return fmt.Sprintf("command %d of %d (%s) failed: exit code %d", e.Number, e.Of, e.Name, e.Code)
}

// tailWriter passes output on, a line at a time with a prefix, and keeps the last lines.
type tailWriter struct {
	out    io.Writer // may be nil
	prefix string
	line   []byte
	lines  []string
}

const (
	tailLines   = 20
	longestLine = 16 << 10
)

func (t *tailWriter) Write(data []byte) (int, error) {
	for _, c := range data {
		if c != '\n' && len(t.line) < longestLine {
			t.line = append(t.line, c)
			continue
		}
		t.flush()
		if c != '\n' {
			t.line = append(t.line, c)
		}
	}
	return len(data), nil
}

func (t *tailWriter) flush() {
	line := strings.TrimRight(string(t.line), "\r")
	t.line = t.line[:0]
	if t.lines = append(t.lines, line); len(t.lines) > tailLines {
		t.lines = t.lines[1:]
	}
	if t.out != nil {
		fmt.Fprintf(t.out, "%s%s\n", t.prefix, line)
	}
}

func (t *tailWriter) end() {
	if len(t.line) > 0 {
		t.flush()
	}
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
