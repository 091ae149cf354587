package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/guest"
	"vers/internal/ident"
	"vers/internal/machine"
)

// projects is the folder in root's home that repositories are cloned to, each into one of its project's name.
const projects = "projects"

// clone is run by the guest's shell. What it works on comes in variables, not in its text. Some servers cannot give a
// part of a history, so the whole of it is asked for if that fails.
const clone = `command -v git >/dev/null || { echo "git is not installed in this VM: use an image that has it, or a commit with git installed" >&2; exit 69; }
set -- ${VERS_BRANCH:+--branch "$VERS_BRANCH"}
rm -rf -- "$VERS_FOLDER"
git clone --quiet --depth 1 "$@" -- "$VERS_REPO" "$VERS_FOLDER" 2>/dev/null && exit
rm -rf -- "$VERS_FOLDER"
exec git clone --quiet "$@" -- "$VERS_REPO" "$VERS_FOLDER"`

// inFolder runs its second argument, a line for the shell, in the folder that is the first.
const inFolder = `cd -- "$1" && exec sh -c "$2"`

// step is one command of a project.
type step struct {
	status  string // of the project meanwhile
	what    string
	command []string
	env     map[string]string
	once    bool // must not be started a second time
}

func stepsOf(p catalog.Project) ([]step, error) {
	var s Settings
	if err := json.Unmarshal(p.Settings, &s); err != nil {
		return nil, fmt.Errorf("read the settings of project %s: %w", p.ID, err)
	}
	target := projects + "/" + p.Name
	env := map[string]string{"VERS_REPO": p.Repo, "VERS_FOLDER": target, "GIT_TERMINAL_PROMPT": "0"}
	if p.Branch != nil {
		env["VERS_BRANCH"] = *p.Branch
	}
	steps := []step{{status: Cloning, what: "git clone", command: []string{"sh", "-c", clone}, env: env}}
	if s.Folder != "" {
		target += "/" + s.Folder
	}
	for _, line := range []struct {
		status, what, command string
		once                  bool
	}{
		{Installing, "the install command", s.Install, false},
		{Building, "the build command", s.Build, false},
		{Running, "the run command", s.Run, true},
	} {
		if line.command != "" {
			steps = append(steps, step{status: line.status, what: line.what, command: []string{"sh", "-c", inFolder, "sh", target, line.command}, once: line.once})
		}
	}
	return steps, nil
}

// errGone ends the work on a project that was deleted, or whose VM was.
var errGone = errors.New("the project is gone")

// run takes a project from the step it is at to its end.
func (r *Runner) run(p catalog.Project) {
	err := r.steps(&p)
	switch {
	case err == nil:
		p.Status = Finished
	case r.life.Err() != nil || errors.Is(err, errGone):
		return
	default:
		p.Status, p.Reason = Failed, err.Error()
	}
	if err := r.save(&p); err != nil && !errors.Is(err, errGone) {
		r.Logger.Error("end of a project not recorded", "project", p.ID, "error", err)
	}
}

func (r *Runner) steps(p *catalog.Project) error {
	steps, err := stepsOf(*p)
	if err != nil {
		return err
	}
	begun := p.ExecID // by an earlier versd
	for i, s := range steps {
		if begun != "" && s.status != p.Status && planned(steps[i:], p.Status) {
			continue // was done then
		}
		if begun == "" {
			p.Status, p.ExecID = s.status, ident.New()
			if err := r.save(p); err != nil {
				return err
			}
		}
		seen, err := r.follow(*p, s, begun != "")
		begun = ""
		if err != nil {
			return err
		}
		p.ExitCode = &seen.code
		if seen.code != 0 {
			return seen.failure(s)
		}
	}
	return nil
}

func planned(steps []step, status string) bool {
	for _, s := range steps {
		if s.status == status {
			return true
		}
	}
	return false
}

func (r *Runner) save(p *catalog.Project) error {
	p.UpdatedAt = time.Now()
	err := r.Catalog.UpdateProject(context.WithoutCancel(r.life), *p)
	if fault.Is(err, fault.NotFound) {
		return errGone
	}
	return err
}

// result is how a command ended.
type result struct {
	code int
	tail []byte // of its standard error
}

const (
	tailLimit = 2048 // bytes kept
	lineLimit = 300  // bytes shown
)

func (e *result) keep(data []byte) {
	e.tail = append(e.tail, data...)
	e.tail = e.tail[max(0, len(e.tail)-tailLimit):]
}

// last gives the last line on standard error that is not empty.
func (e *result) last() string {
	lines := strings.Split(strings.TrimSpace(string(e.tail)), "\n")
	line := strings.TrimSpace(lines[len(lines)-1])
	return strings.ToValidUTF8(line[:min(len(line), lineLimit)], "\uFFFD")
}

// noGit is what clone exits with when there is none.
const noGit = 69

func (e *result) failure(s step) error {
	switch last := e.last(); {
	case s.status == Cloning && e.code == noGit && last != "":
		return errors.New(last)
	case last == "":
		return fmt.Errorf("%s ended with %d", s.what, e.code)
	default:
		return fmt.Errorf("%s ended with %d: %s", s.what, e.code, last)
	}
}

// follow starts the command of a step, unless an earlier versd has begun it, and follows it to its end, over pauses of the
// VM and lost connections.
func (r *Runner) follow(p catalog.Project, s step, begun bool) (*result, error) {
	f := follower{r: r, caller: machine.Caller{OrgID: p.OrgID, KeyID: p.KeyID}, project: p, step: s, tried: begun}
	for {
		stream, err := f.open()
		if err == nil {
			var ended bool
			if ended, err = f.receive(stream); ended {
				return &f.seen, err
			}
		}
		if err := r.canGoOn(f.caller, p, err); err != nil {
			return nil, err
		}
		select {
		case <-r.life.Done():
			return nil, r.life.Err()
		case <-time.After(r.Retry):
		}
	}
}

// follower follows the command of one step.
type follower struct {
	r       *Runner
	caller  machine.Caller
	project catalog.Project
	step    step
	tried   bool // the agent may have been told to start it
	opened  bool // its output was seen
	cursor  int64
	seen    result
}

// kept is how long the agent keeps what it knows of a command that has ended (docs/guest-protocol.md).
const kept = time.Hour

// open starts the command or attaches to it.
func (f *follower) open() (Stream, error) {
	g, err := f.r.Guest(f.r.life, f.caller, f.project.VMID)
	if err != nil {
		return nil, err
	}
	if f.tried {
		stream, err := g.Attach(f.r.life, guest.AttachRequest{ExecID: f.project.ExecID, Cursor: &f.cursor})
		if !fault.Is(err, fault.NotFound) {
			f.opened = f.opened || err == nil
			return stream, err
		}
		// Unknown to the agent: never started, or over for long.
		if f.opened || f.step.once && time.Since(f.project.UpdatedAt) > kept {
			return nil, fault.NotFoundf("%s ended, and how is not known any more", f.step.what)
		}
	}
	f.tried = true
	stream, err := g.Exec(f.r.life, guest.ExecRequest{ID: f.project.ExecID, Command: f.step.command, Env: f.step.env})
	f.opened = err == nil
	return stream, err
}

// receive reads events until the command has ended, or the stream has.
func (f *follower) receive(stream Stream) (ended bool, err error) {
	defer stream.Close()
	for {
		event, err := stream.Recv()
		if err != nil {
			return false, err
		}
		f.cursor = max(f.cursor, event.Cursor)
		switch event.Type {
		case guest.EventExit:
			f.seen.code = event.ExitCode
			return true, nil
		case guest.EventError:
			return true, (&guest.WireError{Kind: event.Code, Message: event.Message}).Err()
		}
		if event.Stream == guest.Stderr {
			f.seen.keep(event.Data)
		}
	}
}

// canGoOn decides whether a command whose stream ended with err is to be followed again: while its VM is paused or its
// agent does not answer, yes.
func (r *Runner) canGoOn(caller machine.Caller, p catalog.Project, err error) error {
	if r.life.Err() != nil {
		return r.life.Err()
	}
	vm, look := r.Machines.Get(r.life, caller, p.VMID)
	switch {
	case fault.Is(look, fault.NotFound):
		return errGone
	case look != nil:
		return look
	case vm.State == string(machine.StateDead):
		return fmt.Errorf("the VM died: %s", vm.Reason)
	}
	if _, look := r.Catalog.Project(r.life, p.ID); fault.Is(look, fault.NotFound) {
		return errGone
	}
	switch fault.KindOf(err) {
	case fault.Invalid, fault.NotFound, fault.Forbidden:
		return err
	}
	r.Logger.Debug("a project's command is followed again", "project", p.ID, "because", err)
	return nil
}
