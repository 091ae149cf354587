package server

import (
	"context"
	"errors"
	"net/http"

	"vers/api"
	"vers/internal/catalog"
	"vers/internal/deploy"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/machine"
)

func (s *Server) routeDeploy() {
	add(s, operation{method: http.MethodPost, path: "/deploy", status: http.StatusAccepted, creates: true, id: "deploy",
		summary: "Make a VM and begin to clone, install, build and run a git repository in it", tag: "Deploy"}, s.deploy)
	add(s, operation{method: http.MethodGet, path: "/deploy", id: "list-projects",
		summary: "[ours] Projects of the organisation", tag: "Deploy"}, s.listProjects)
	add(s, operation{method: http.MethodGet, path: "/deploy/{project_id}", id: "get-project",
		summary: "[ours] How far a project is", tag: "Deploy"}, s.getProject)
	add(s, operation{method: http.MethodDelete, path: "/deploy/{project_id}", status: http.StatusNoContent, id: "delete-project",
		summary: "[ours] Forget a project, so that its name is free; its VM runs on", tag: "Deploy"}, s.deleteProject)
}

// newDeployer makes the runner of projects. Commands reach VMs as those of users do.
func (s *Server) newDeployer() *deploy.Runner {
	return deploy.New(deploy.Options{Catalog: s.Catalog, Machines: s.Machines, Logger: s.Logger,
		Guest: func(ctx context.Context, caller machine.Caller, vmID string) (deploy.Guest, error) {
			return s.guests(ctx, caller, vmID)
		}})
}

// Resume goes on with what an earlier versd had begun in the background.
func (s *Server) Resume(ctx context.Context) error {
	return errors.Join(s.builder.Begin(), s.deployer.Resume(ctx))
}

// Close lets go of what goes on in the background, and ends builds.
func (s *Server) Close() {
	s.builder.Close()
	s.deployer.Close()
}

type deployInput struct{ Body api.DeployRequest }

func (s *Server) deploy(ctx context.Context, in *deployInput) (*output[api.Deployment], error) {
	ctx, cancel := detach(ctx)
	defer cancel()
	b := in.Body
	req := deploy.Request{Repo: b.Repo, Name: value(b.Name), Branch: b.Branch}
	if c := b.Settings; c != nil {
		req.Settings = deploy.Settings{Install: value(c.InstallCommand), Build: value(c.BuildCommand), Run: value(c.RunCommand), Folder: value(c.WorkingDirectory)}
	}
	var run machine.RunRequest
	if b.VMConfig != nil {
		config, err := readConfig(*b.VMConfig)
		if err != nil {
			return nil, err
		}
		run.Config, run.Labels = config, b.VMConfig.Labels
	}
	caller := callerOf(ctx)
	project, err := s.deployer.Prepare(ctx, caller, req)
	if err != nil {
		return nil, err
	}
	vm, err := s.Machines.Run(ctx, caller, run)
	if err != nil {
		return nil, err
	}
	project.VMID = vm.ID
	if err := s.deployer.Begin(ctx, project); err != nil {
		// Two deployed under one name at once: this one leaves nothing behind.
		if gone := s.Machines.Delete(ctx, caller, vm.ID, false); gone != nil {
			s.Logger.ErrorContext(ctx, "VM of a refused project stays", "vm", vm.ID, "error", gone)
		}
		return nil, err
	}
	return reply(api.Deployment{ProjectID: project.ID, VMID: vm.ID, Status: project.Status}), nil
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func showProject(p catalog.Project) api.Project {
	return api.Project{ProjectID: p.ID, VMID: p.VMID, Name: p.Name, Repo: p.Repo, Branch: p.Branch, Status: p.Status, Reason: p.Reason,
		ExitCode: p.ExitCode, ExecID: p.ExecID, CreatedAt: p.CreatedAt.UTC(), UpdatedAt: p.UpdatedAt.UTC()}
}

func (s *Server) listProjects(ctx context.Context, _ *none) (*output[api.ProjectList], error) {
	projects, err := s.Catalog.Projects(ctx, orgOf(ctx))
	if err != nil {
		return nil, err
	}
	list := api.ProjectList{Projects: make([]api.Project, 0, len(projects))}
	for _, p := range projects {
		list.Projects = append(list.Projects, showProject(p))
	}
	return reply(list), nil
}

// ProjectInput names a project.
type ProjectInput struct {
	ID string `path:"project_id" doc:"Project id, a UUID"`
}

func projectID(text string) (string, error) {
	id, ok := ident.Parse(text)
	if !ok {
		return "", fault.Invalidf("project id %q is malformed: it must be a UUID", text)
	}
	return id, nil
}

func (s *Server) getProject(ctx context.Context, in *ProjectInput) (*output[api.Project], error) {
	id, err := projectID(in.ID)
	if err != nil {
		return nil, err
	}
	p, err := s.deployer.Project(ctx, orgOf(ctx), id)
	if err != nil {
		return nil, err
	}
	return reply(showProject(p)), nil
}

func (s *Server) deleteProject(ctx context.Context, in *ProjectInput) (*none, error) {
	id, err := projectID(in.ID)
	if err != nil {
		return nil, err
	}
	return nil, s.Catalog.DeleteProject(ctx, orgOf(ctx), id)
}
