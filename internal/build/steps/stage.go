package steps

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"vers/internal/build/dockerfile"
	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/guest"
	"vers/internal/machine"
)

// label marks VMs of builds for those who look at them; what counts is in the catalogue.
const label = "vers.build"

// stage is how far a stage is: a state of a machine, and what the Dockerfile says of those to come.
type stage struct {
	b     *build
	index int // -1: not of the Dockerfile
	name  string

	// The state after the last step.
	identity string
	commit   string // "": that of a machine that has just booted
	parent   string // commit of users that all of it stands on
	config   catalog.VMConfig
	held     []func() // commits that must not be collected yet

	// A VM in this state, if there is one.
	vm    string
	guest Guest
	bash  *bool // it has bash; nil: not looked

	image  catalog.ImageConfig
	env    map[string]string
	args   map[string]string
	shell  []string // of SHELL; nil: what the machine has
	cmdSet bool     // by this stage
}

// stage runs a stage to its end.
func (b *build) stage(ctx context.Context, i int) (*stage, error) {
	declared := b.plan.file.Stages[i]
	s := &stage{b: b, index: i, name: b.plan.stageName(i), args: map[string]string{}}
	b.stages[i] = s
	b.step(s, declared.Line, declared.Text)
	below, name, err := b.plan.base(i)
	if err != nil {
		return s, err
	}
	if below >= 0 {
		err = s.on(ctx, b.stages[below])
	} else {
		err = s.begin(ctx, name)
	}
	if err != nil {
		return s, err
	}
	for _, instruction := range declared.Steps {
		b.step(s, instruction.Line, instruction.Text)
		if err := s.do(ctx, instruction); err != nil {
			return s, err
		}
	}
	return s, nil
}

// begin puts a stage on what FROM names.
func (s *stage) begin(ctx context.Context, name string) error {
	from, err := s.b.resolve(ctx, name)
	if err != nil {
		return err
	}
	s.identity, s.commit, s.parent, s.config, s.image = from.identity, from.commit, from.commit, from.config, from.image
	s.readEnv()
	return nil
}

// on puts a stage on another one of the same build.
func (s *stage) on(ctx context.Context, below *stage) error {
	s.identity, s.commit, s.parent, s.config = below.identity, below.commit, below.parent, below.config
	s.image = below.image
	s.image.Labels = maps.Clone(below.image.Labels)
	s.shell = below.shell
	s.readEnv()
	if s.commit == "" || s.commit == s.parent {
		return nil
	}
	release, err := s.b.r.Machines.HoldCommit(ctx, s.b.caller, s.commit)
	if err == nil {
		s.held = append(s.held, release)
	}
	return err
}

func (s *stage) readEnv() {
	s.env = map[string]string{}
	for _, pair := range s.image.Env {
		if name, value, ok := strings.Cut(pair, "="); ok {
			s.env[name] = value
		}
	}
}

// defaultPath is what the agent gives to commands (docs/guest-protocol.md).
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// lookup gives a variable as instructions see it: ENV, then ARG.
func (s *stage) lookup(name string) (string, bool) {
	if value, ok := s.env[name]; ok {
		return value, true
	}
	if value, ok := s.args[name]; ok {
		return value, true
	}
	if name == "PATH" {
		return defaultPath, true
	}
	return "", false
}

// expand puts variables into a word.
func (s *stage) expand(i dockerfile.Instruction, word string) (string, error) {
	expand := dockerfile.Expand
	if i.JSON {
		expand = dockerfile.ExpandText
	}
	value, err := expand(word, s.lookup)
	if err != nil {
		err = fault.Invalidf("%w", err)
	}
	return value, err
}

// do carries an instruction out.
func (s *stage) do(ctx context.Context, i dockerfile.Instruction) error {
	switch i.Name {
	case dockerfile.Run:
		return s.run(ctx, i)
	case dockerfile.Copy, dockerfile.Add:
		return s.copy(ctx, i)
	}
	return s.declare(i)
}

// declare carries out an instruction that changes no file.
func (s *stage) declare(i dockerfile.Instruction) error {
	switch i.Name {
	case dockerfile.Cmd:
		s.image.Cmd, s.cmdSet = s.command(i), true
		return nil
	case dockerfile.Entrypoint:
		s.image.Entrypoint = s.command(i)
		if !s.cmdSet {
			s.image.Cmd = nil // it was meant for another program
		}
		return nil
	case dockerfile.Shell:
		s.shell = i.Words
		return nil
	case dockerfile.Env, dockerfile.Label:
		return s.pairs(i)
	case dockerfile.Arg:
		return s.argument(i)
	}
	for _, word := range i.Words {
		value, err := s.expand(i, word)
		if err != nil {
			return err
		}
		if value == "" || strings.ContainsRune(value, 0) {
			return fault.Invalidf("%s has an empty value", i.Name)
		}
		switch i.Name {
		case dockerfile.Workdir:
			s.image.WorkingDir = path.Join("/", s.image.WorkingDir, value)
			if path.IsAbs(value) {
				s.image.WorkingDir = path.Clean(value)
			}
		case dockerfile.User:
			s.image.User = value
		case dockerfile.Expose:
			port, err := exposed(value)
			if err != nil {
				return err
			}
			if !slices.Contains(s.image.ExposedPorts, port) {
				s.image.ExposedPorts = append(slices.Clone(s.image.ExposedPorts), port)
			}
		}
	}
	return nil
}

// command is a CMD or ENTRYPOINT as a list.
func (s *stage) command(i dockerfile.Instruction) []string {
	if i.JSON {
		return i.Words
	}
	shell := s.shell
	if shell == nil {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(shell), i.Script)
}

func exposed(text string) (string, error) {
	number, protocol, has := strings.Cut(text, "/")
	if !has {
		protocol = "tcp"
	}
	protocol = strings.ToLower(protocol)
	var first, last uint16
	first1, last1, isRange := strings.Cut(number, "-")
	if !isRange {
		last1 = first1
	}
	_, err1 := fmt.Sscan(first1, &first)
	_, err2 := fmt.Sscan(last1, &last)
	if err1 != nil || err2 != nil || first == 0 || last < first || protocol != "tcp" && protocol != "udp" && protocol != "sctp" {
		return "", fault.Invalidf("%q is no port: 1 to 65535, or a range of them, and /tcp, /udp or nothing", text)
	}
	return number + "/" + protocol, nil
}

// pairs carries out ENV and LABEL. All values see what was before the instruction.
func (s *stage) pairs(i dockerfile.Instruction) error {
	values := make([]string, len(i.Pairs))
	for n, pair := range i.Pairs {
		var err error
		if values[n], err = s.expand(i, pair.Value); err != nil {
			return err
		}
	}
	for n, pair := range i.Pairs {
		if i.Name == dockerfile.Label {
			labels := maps.Clone(s.image.Labels)
			if labels == nil {
				labels = map[string]string{}
			}
			labels[pair.Name] = values[n]
			s.image.Labels = labels
			continue
		}
		s.env[pair.Name] = values[n]
	}
	if i.Name == dockerfile.Env {
		s.image.Env = list(s.env)
	}
	return nil
}

func list(vars map[string]string) []string {
	pairs := make([]string, 0, len(vars))
	for name, value := range vars {
		pairs = append(pairs, name+"="+value)
	}
	slices.Sort(pairs)
	return pairs
}

// argument carries out ARG: what was given, else its default, else what it is before the first FROM.
func (s *stage) argument(i dockerfile.Instruction) error {
	for _, pair := range i.Pairs {
		if given, ok := s.b.req.Args[pair.Name]; ok {
			s.args[pair.Name] = given
			continue
		}
		if pair.Set {
			value, err := s.expand(i, pair.Value)
			if err != nil {
				return err
			}
			s.args[pair.Name] = value
		} else if value, ok := s.b.plan.global(pair.Name); ok {
			s.args[pair.Name] = value
		}
	}
	return nil
}

// live gives a guest in the stage's state.
func (s *stage) live(ctx context.Context) (Guest, error) {
	if s.guest != nil {
		return s.guest, nil
	}
	m := s.b.r.Machines
	var vm machine.VM
	var err error
	labels := map[string]string{label: s.b.id}
	if s.commit == "" {
		s.b.notice("starting a machine")
		vm, err = m.Run(ctx, s.b.caller, machine.RunRequest{Config: s.config, BuildID: s.b.id, WaitBoot: true, Labels: labels})
	} else {
		s.b.notice("starting from commit " + s.commit)
		vm, err = m.StartBuilder(ctx, s.b.caller, machine.BuilderRequest{BuildID: s.b.id, CommitID: s.commit, Parent: s.parent, Labels: labels})
	}
	s.vm = vm.ID // also of one that did not boot
	if err != nil {
		return nil, err
	}
	s.guest, err = s.b.r.Guest(ctx, s.b.caller, vm.ID)
	return s.guest, err
}

// release ends the stage's VM.
func (s *stage) release(ctx context.Context) error {
	if s.vm == "" {
		return nil
	}
	vm := s.vm
	s.vm, s.guest = "", nil
	err := s.b.r.Machines.Delete(context.WithoutCancel(ctx), s.b.caller, vm, false)
	if fault.Is(err, fault.NotFound) {
		err = nil // its owner was quicker
	}
	return err
}

// letGo gives up the commits of steps that were held.
func (s *stage) letGo() {
	for _, release := range s.held {
		release()
	}
	s.held = nil
}

// advance makes the outcome of a step the stage's state. It is held already.
func (s *stage) advance(commitID string, release func()) {
	s.identity, s.commit = "commit:"+commitID, commitID
	s.held = append(s.held, release)
}

// workdir makes the working directory where it is missing, as the user who runs everything: root.
func (s *stage) workdir(ctx context.Context, g Guest) error {
	if s.image.WorkingDir == "" || s.image.WorkingDir == "/" {
		return nil
	}
	return g.Unpack(ctx, guest.UnpackRequest{Path: s.image.WorkingDir}, emptyFolder())
}
