// Package dockerfile reads Dockerfiles for builds that end in a commit (spec/cli.md 6.6): the instructions that change a
// machine's files, its environment, or what is said about it. What it does not know is refused by line and name, never
// skipped. Variables are expanded later, by who runs the file: [Expand].
package dockerfile

import (
	"regexp"
	"strings"

	"vers/internal/fault"
)

// Instructions, in upper case whatever the file writes.
const (
	From       = "FROM"
	Run        = "RUN"
	Copy       = "COPY"
	Add        = "ADD"
	Env        = "ENV"
	Arg        = "ARG"
	Workdir    = "WORKDIR"
	User       = "USER"
	Label      = "LABEL"
	Cmd        = "CMD"
	Entrypoint = "ENTRYPOINT"
	Expose     = "EXPOSE"
	Shell      = "SHELL"
)

// Scratch is the base that is no commit: a machine booted from an image.
const Scratch = "scratch"

// Limits of a file. Nothing that people write comes near them.
const (
	maxBytes        = 1 << 20
	maxInstructions = 2000
)

// File is a Dockerfile.
type File struct {
	Args     []Pair // ARG before the first FROM: for FROM lines, and for stages that repeat the name
	Stages   []Stage
	Warnings []string // what is obsolete, by line
}

// Stage is a FROM and what follows it.
type Stage struct {
	Line  int
	Text  string
	Base  string // of FROM, variables not expanded
	Name  string // of AS, in lower case; "" none
	Steps []Instruction
}

// Instruction is one instruction of a stage, but FROM.
type Instruction struct {
	Line  int    // where it begins, from 1
	Name  string // one of the constants above
	Text  string // as written, in one line
	Flags []Pair // --name=value, in order; a flag without value has "true"

	// Script is what RUN, CMD and ENTRYPOINT give to a shell, heredocs included; "" in the exec form.
	Script string
	// Words are the strings of an exec form, or the words of any other instruction, quotes and variables still in them.
	Words []string
	JSON  bool   // Words came from a JSON array: nothing is to be unquoted
	Pairs []Pair // of ENV, LABEL, ARG; values as Words
	// Files are the heredocs of COPY and ADD. Words holds <<name in their places.
	Files []Heredoc
}

// Pair is a name and its value.
type Pair struct {
	Name  string
	Value string
	Set   bool // false: ARG without a default
}

// Heredoc is a document inside the file.
type Heredoc struct {
	Name   string // the word that ends it
	Text   string
	Expand bool // its name was not quoted: variables are expanded
	tabs   bool // <<-: leading tabs are dropped
}

// Flag gives the value of a flag, "" without it.
func (i Instruction) Flag(name string) string {
	for _, f := range i.Flags {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// Heredoc gives the document that a word like <<EOF stands for.
func (i Instruction) Heredoc(word string) (Heredoc, bool) {
	for _, h := range i.Files {
		if word == "<<"+h.Name {
			return h, true
		}
	}
	return Heredoc{}, false
}

// flags says which flags an instruction has; all others are refused.
var flags = map[string][]string{
	Copy: {"from", "chown", "chmod", "link"},
	Add:  {"chown", "chmod", "link"},
}

// refused says what to do about instructions that a machine has no use for.
var refused = map[string]string{
	"HEALTHCHECK": "a commit has no health check; give 'vers build' --ready \"command\" to wait until a service answers",
	"VOLUME":      "a machine has one disk and everything on it is in the commit; leave the line out",
	"STOPSIGNAL":  "a machine is paused or deleted, its processes get no signal; leave the line out",
	"ONBUILD":     "triggers are not run; put the instructions into the Dockerfile that builds on this one",
}

var (
	stageName = regexp.MustCompile(`^[a-z][a-z0-9._-]*$`)
	varName   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

func errorf(line int, format string, args ...any) error {
	return fault.Invalidf("Dockerfile line %d: "+format, append([]any{line}, args...)...)
}

// Parse reads a file. Every error is fault.Invalid with the line.
func Parse(data []byte) (File, error) {
	var f File
	lines, err := split(data)
	if err != nil {
		return f, err
	}
	if len(lines) > maxInstructions {
		return f, fault.Invalidf("the Dockerfile has %d instructions; at most %d are possible", len(lines), maxInstructions)
	}
	for _, l := range lines {
		if err := f.add(l); err != nil {
			return f, err
		}
	}
	if len(f.Stages) == 0 {
		return f, fault.Invalidf("the Dockerfile has no FROM: it begins with what to build on, for example FROM scratch")
	}
	return f, nil
}

func (f *File) add(l line) error {
	keyword, rest, _ := strings.Cut(l.text, " ")
	if i := strings.IndexAny(l.text, " \t"); i >= 0 {
		keyword, rest = l.text[:i], strings.TrimLeft(l.text[i:], " \t")
	}
	name := strings.ToUpper(keyword)
	if why, ok := refused[name]; ok {
		return errorf(l.number, "%s is not possible: %s", name, why)
	}
	switch {
	case name == From:
		return f.from(l, rest)
	case name == "MAINTAINER":
		f.Warnings = append(f.Warnings, "Dockerfile line "+itoa(l.number)+": MAINTAINER is obsolete and taken for LABEL maintainer")
		name, rest = Label, "maintainer="+quote(rest)
	}
	i := Instruction{Line: l.number, Name: name, Text: oneLine(name, rest, l.heredocs)}
	parse, known := parsers[name]
	if !known {
		return errorf(l.number, "unknown instruction %q%s", keyword, suggestion(name))
	}
	if len(f.Stages) == 0 && name != Arg {
		return errorf(l.number, "%s stands before the first FROM, where only ARG may", name)
	}
	rest, err := i.takeFlags(rest)
	if err != nil {
		return err
	}
	if err := parse(&i, rest, l.heredocs); err != nil {
		return err
	}
	if len(f.Stages) == 0 {
		f.Args = append(f.Args, i.Pairs...)
		return nil
	}
	stage := &f.Stages[len(f.Stages)-1]
	stage.Steps = append(stage.Steps, i)
	return nil
}

// from begins a stage.
func (f *File) from(l line, rest string) error {
	words := strings.Fields(rest)
	for len(words) > 0 && strings.HasPrefix(words[0], "--") {
		if !strings.HasPrefix(words[0], "--platform=") {
			return errorf(l.number, "FROM has no flag %s", words[0])
		}
		f.Warnings = append(f.Warnings, "Dockerfile line "+itoa(l.number)+": "+words[0]+" is ignored: machines have the host's platform")
		words = words[1:]
	}
	s := Stage{Line: l.number, Text: "FROM " + strings.Join(words, " ")}
	switch {
	case len(words) == 3 && strings.EqualFold(words[1], "AS"):
		s.Name = strings.ToLower(words[2])
		if !stageName.MatchString(s.Name) || s.Name == Scratch {
			return errorf(l.number, "%q cannot be the name of a stage: it must begin with a letter, followed by letters, digits, '.', '_' or '-'", words[2])
		}
	case len(words) != 1:
		return errorf(l.number, "FROM needs one base, and may name the stage: FROM <commit, tag, repo:tag, image or scratch> [AS <name>]")
	}
	for _, other := range f.Stages {
		if s.Name != "" && other.Name == s.Name {
			return errorf(l.number, "a stage is called %q already, in line %d", s.Name, other.Line)
		}
	}
	s.Base = words[0]
	f.Stages = append(f.Stages, s)
	return nil
}

// Stage finds an earlier stage by its name.
func (f File) Stage(name string, before int) (int, bool) {
	for i := before - 1; i >= 0; i-- {
		if f.Stages[i].Name != "" && f.Stages[i].Name == strings.ToLower(name) {
			return i, true
		}
	}
	return 0, false
}
