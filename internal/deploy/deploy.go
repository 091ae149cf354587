// Package deploy brings git repositories into VMs and runs them: clone, install, build, run, each a command of the guest's
// agent whose output the agent keeps like that of any other. How far a project is, is in the catalogue before a step
// begins; commands go on without versd, and the next versd follows them again.
package deploy

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/guest"
	"vers/internal/ident"
	"vers/internal/machine"
)

// States of a project.
const (
	Starting   = "starting"
	Cloning    = "cloning"
	Installing = "installing"
	Building   = "building"
	Running    = "running"
	Finished   = "finished"
	Failed     = "failed"
)

// Guest runs commands in a VM.
type Guest interface {
	Exec(ctx context.Context, req guest.ExecRequest) (Stream, error)
	// Attach follows a command that was started before; an unknown one is fault.NotFound.
	Attach(ctx context.Context, req guest.AttachRequest) (Stream, error)
}

// Stream follows a command. Recv gives io.EOF after an exit or error event; every other end is an error.
type Stream interface {
	Recv() (guest.Event, error)
	Close() error
}

// Machines are the VMs of projects.
type Machines interface {
	Get(ctx context.Context, caller machine.Caller, vmID string) (machine.VM, error)
}

// Options of a Runner.
type Options struct {
	Catalog  *catalog.Catalog
	Machines Machines
	// Guest waits for a booting VM; a paused or dead one is fault.Conflict.
	Guest  func(ctx context.Context, caller machine.Caller, vmID string) (Guest, error)
	Logger *slog.Logger
	Retry  time.Duration // until a VM that cannot run commands is asked again; 0: 3 s
}

// Runner brings projects to run. Close it to let go of them: their commands go on.
type Runner struct {
	Options
	life context.Context
	stop context.CancelFunc
	work sync.WaitGroup
}

// New makes a runner.
func New(o Options) *Runner {
	if o.Retry == 0 {
		o.Retry = 3 * time.Second
	}
	r := &Runner{Options: o}
	r.life, r.stop = context.WithCancel(context.Background())
	return r
}

// Close ends the runner's own work.
func (r *Runner) Close() {
	r.stop()
	r.work.Wait()
}

// Settings say how a project is made to run. Commands are lines for the guest's shell; "" leaves a step out.
type Settings struct {
	Install string `json:"install,omitempty"`
	Build   string `json:"build,omitempty"`
	Run     string `json:"run,omitempty"`
	Folder  string `json:"folder,omitempty"` // inside the repository
}

// Request is what is to be deployed.
type Request struct {
	Repo     string
	Name     string // "": from the repository
	Branch   *string
	Settings Settings
}

// Prepare checks a request and gives the project that it will be, without a VM. A name that the organisation has is
// fault.Conflict.
func (r *Runner) Prepare(ctx context.Context, c machine.Caller, req Request) (catalog.Project, error) {
	var p catalog.Project
	source, name, err := ParseRepo(req.Repo)
	if err != nil {
		return p, err
	}
	if req.Name != "" {
		name = req.Name
	}
	if !ident.ValidName(name, ident.RepositoryName) {
		return p, fault.Invalidf("project name %q is not valid: use 1 to %d letters, digits, '-', '_' or '.'", name, ident.RepositoryName)
	}
	if req.Branch != nil && *req.Branch == "" {
		req.Branch = nil
	}
	if req.Branch != nil {
		if err := checkBranch(*req.Branch); err != nil {
			return p, err
		}
	}
	if req.Settings.Folder, err = checkFolder(req.Settings.Folder); err != nil {
		return p, err
	}
	for _, command := range []string{req.Settings.Install, req.Settings.Build, req.Settings.Run} {
		if len(command) > commandLength {
			return p, fault.Invalidf("a command has %d characters; at most %d are possible: put it into a script in the repository", len(command), commandLength)
		}
	}
	settings, err := json.Marshal(req.Settings)
	if err != nil {
		return p, err
	}
	switch _, err := r.Catalog.ProjectByName(ctx, c.OrgID, name); {
	case err == nil:
		return p, taken(name)
	case !fault.Is(err, fault.NotFound):
		return p, err
	}
	now := time.Now()
	return catalog.Project{ID: ident.New(), OrgID: c.OrgID, KeyID: c.KeyID, Name: name, Repo: source, Branch: req.Branch,
		Settings: settings, Status: Starting, CreatedAt: now, UpdatedAt: now}, nil
}

func taken(name string) error {
	return fault.Conflictf("project '%s' exists already: choose another name, or delete the project or its VM first", name)
}

// Begin records a project that has its VM, and brings it to run in the background.
func (r *Runner) Begin(ctx context.Context, p catalog.Project) error {
	if err := r.Catalog.InsertProject(ctx, p); err != nil {
		if fault.Is(err, fault.Conflict) {
			err = taken(p.Name)
		}
		return err
	}
	r.work.Go(func() { r.run(p) })
	return nil
}

// Resume goes on with the projects that an earlier versd has begun.
func (r *Runner) Resume(ctx context.Context) error {
	projects, err := r.Catalog.UnfinishedProjects(ctx, Finished, Failed)
	if err != nil {
		return err
	}
	for _, p := range projects {
		r.work.Go(func() { r.run(p) })
	}
	return nil
}

// Project gives a project of an organisation.
func (r *Runner) Project(ctx context.Context, orgID, id string) (catalog.Project, error) {
	p, err := r.Catalog.Project(ctx, id)
	if err == nil && p.OrgID != orgID {
		err = fault.NotFoundf("project %s not found", id)
	}
	return p, err
}
