package steps

import (
	"errors"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"vers/internal/build/dockerfile"
	"vers/internal/fault"
	"vers/internal/ident"
)

const maxDockerfile = 1 << 20

// plan is a Dockerfile, and what of it has to be done.
type plan struct {
	file    dockerfile.File
	globals map[string]string // ARG before the first FROM
	stages  []int             // that are needed, in order; the last is the target
	total   int               // instructions in them, FROM included
	sources map[int]bool      // stages that others copy from
}

// platform are the arguments that every Dockerfile may ask for.
func platform() map[string]string {
	return map[string]string{
		"TARGETPLATFORM": "linux/" + runtime.GOARCH, "TARGETOS": "linux", "TARGETARCH": runtime.GOARCH,
		"BUILDPLATFORM": "linux/" + runtime.GOARCH, "BUILDOS": "linux", "BUILDARCH": runtime.GOARCH,
	}
}

// proxies are arguments that need no ARG, reach every RUN, and change no outcome.
var proxies = []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "FTP_PROXY", "ftp_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"}

// readPlan reads the Dockerfile of a request.
func readPlan(req Request) (p plan, warnings []string, err error) {
	name := strings.TrimPrefix(path.Clean("/"+req.Dockerfile), "/")
	data, err := req.Context.File(name, maxDockerfile)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil, fault.Invalidf("Dockerfile '%s' not found in the context; name another with --file", req.Dockerfile)
	}
	if err != nil {
		return p, nil, err
	}
	if err := req.Context.Ignore(name); err != nil {
		return p, nil, err
	}
	if p.file, err = dockerfile.Parse(data); err != nil {
		return p, nil, err
	}
	if err := p.readGlobals(req.Args); err != nil {
		return p, nil, err
	}
	target := len(p.file.Stages) - 1
	if req.Target != "" {
		if target, err = p.find(req.Target, len(p.file.Stages)); err != nil {
			return p, nil, err
		}
		if target < 0 {
			return p, nil, fault.Invalidf("the Dockerfile has no stage %q", req.Target)
		}
	}
	p.sources = map[int]bool{}
	if err := p.need(target); err != nil {
		return p, nil, err
	}
	return p, append(p.file.Warnings, p.unused(req.Args)...), nil
}

func (p *plan) readGlobals(args map[string]string) error {
	p.globals = map[string]string{}
	for _, a := range p.file.Args {
		value, err := dockerfile.Expand(a.Value, p.global)
		if err != nil {
			return fault.Invalidf("the Dockerfile's ARG %s: %w", a.Name, err)
		}
		if given, ok := args[a.Name]; ok {
			value = given
		} else if !a.Set {
			continue
		}
		p.globals[a.Name] = value
	}
	return nil
}

func (p *plan) global(name string) (string, bool) {
	if value, ok := p.globals[name]; ok {
		return value, true
	}
	value, ok := platform()[name]
	return value, ok
}

// find gives the stage before another one that a name or number means; -1 if there is none.
func (p *plan) find(name string, before int) (int, error) {
	if i, ok := p.file.Stage(name, before); ok {
		return i, nil
	}
	i, err := strconv.Atoi(name)
	switch {
	case err != nil:
		return -1, nil
	case i < 0 || i >= before:
		return -1, fault.Invalidf("there is no stage %s before this: stages are counted from 0", name)
	}
	return i, nil
}

// base gives what a stage is based on: another stage, or a name.
func (p *plan) base(i int) (stage int, name string, err error) {
	s := p.file.Stages[i]
	name, err = dockerfile.Expand(s.Base, p.global)
	if err == nil && name == "" {
		err = errors.New("the base is empty")
	}
	if err != nil {
		return 0, "", fault.Invalidf("Dockerfile line %d: %s: %w", s.Line, s.Text, err)
	}
	if i, ok := p.file.Stage(name, i); ok {
		return i, name, nil
	}
	return -1, name, nil
}

// from gives the stage that an instruction of a stage copies from, and its name; -1 if it is none of them.
func (p *plan) from(i int, step dockerfile.Instruction) (stage int, name string, err error) {
	if name, err = dockerfile.Expand(step.Flag("from"), p.global); err == nil && name == "" {
		err = errors.New("--from is empty")
	}
	if err == nil {
		stage, err = p.find(name, i)
	}
	if err != nil {
		return 0, "", fault.Invalidf("Dockerfile line %d: %w", step.Line, err)
	}
	return stage, name, nil
}

// need adds a stage and those that it needs.
func (p *plan) need(i int) error {
	if slices.Contains(p.stages, i) {
		return nil
	}
	base, _, err := p.base(i)
	if err != nil {
		return err
	}
	if base >= 0 {
		if err := p.need(base); err != nil {
			return err
		}
	}
	for _, step := range p.file.Stages[i].Steps {
		if step.Flag("from") == "" {
			continue
		}
		from, _, err := p.from(i, step)
		if err != nil {
			return err
		}
		if from >= 0 {
			p.sources[from] = true
			if err := p.need(from); err != nil {
				return err
			}
		}
	}
	p.stages = append(p.stages, i)
	p.total += 1 + len(p.file.Stages[i].Steps)
	return nil
}

// unused says which arguments no ARG asks for.
func (p *plan) unused(args map[string]string) []string {
	known := map[string]bool{}
	for _, a := range p.file.Args {
		known[a.Name] = true
	}
	for _, s := range p.file.Stages {
		for _, step := range s.Steps {
			if step.Name == dockerfile.Arg {
				for _, a := range step.Pairs {
					known[a.Name] = true
				}
			}
		}
	}
	var warnings []string
	for name := range args {
		if !known[name] && !slices.Contains(proxies, name) {
			warnings = append(warnings, "the build argument "+name+" is not used: no ARG in the Dockerfile asks for it")
		}
	}
	slices.Sort(warnings)
	return warnings
}

// stageName is how a stage is called in messages.
func (p *plan) stageName(i int) string {
	if name := p.file.Stages[i].Name; name != "" {
		return name
	}
	return strconv.Itoa(i)
}

// checkTag refuses, before anything runs, what cannot name a commit.
func checkTag(tag string) error {
	if tag != "" && !strings.Contains(tag, ":") && !ident.ValidName(tag, ident.PlainTagName) {
		return fault.Invalidf("tag name %.200q is not valid: use 1 to %d letters, digits, '-', '_' or '.', or repo:tag", tag, ident.PlainTagName)
	}
	return nil
}
