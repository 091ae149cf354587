package catalog

import (
	"context"
	"encoding/json"
	"time"
)

// Project is one row of the table projects: a repository that was deployed to a VM.
type Project struct {
	ID        string
	OrgID     string
	KeyID     string // who deployed
	VMID      string
	Name      string
	Repo      string // URL
	Branch    *string
	Settings  json.RawMessage
	Status    string
	Reason    string
	ExitCode  *int
	ExecID    string // command of the present or last step
	CreatedAt time.Time
	UpdatedAt time.Time
}

const projectColumns = `project_id, org_id, key_id, vm_id, name, repo, branch, settings, status, coalesce(reason, ''), exit_code,
	coalesce(exec_id, ''), created_at, updated_at`

func readProject(row scan) (Project, error) {
	var p Project
	var settings string
	err := row(&p.ID, &p.OrgID, &p.KeyID, &p.VMID, &p.Name, &p.Repo, &p.Branch, &settings, &p.Status, &p.Reason, &p.ExitCode,
		&p.ExecID, timeColumn{&p.CreatedAt}, timeColumn{&p.UpdatedAt})
	p.Settings = rawJSON(settings)
	return p, err
}

// InsertProject adds a project. It goes with its VM. A name that the organisation has is fault.Conflict.
func (r *records) InsertProject(ctx context.Context, p Project) error {
	return insert(ctx, r.write, "project '"+p.Name+"'", `INSERT INTO projects (project_id, org_id, key_id, vm_id, name, repo,
		branch, settings, status, reason, exit_code, exec_id, created_at, updated_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		p.ID, p.OrgID, p.KeyID, p.VMID, p.Name, p.Repo, p.Branch, manifestText(p.Settings), p.Status, nullable(p.Reason),
		p.ExitCode, nullable(p.ExecID), timeText(p.CreatedAt), timeText(p.UpdatedAt))
}

// UpdateProject writes how far a project is.
func (r *records) UpdateProject(ctx context.Context, p Project) error {
	return change(ctx, r.write, "project "+p.ID, `UPDATE projects SET status = ?, reason = ?, exit_code = ?, exec_id = ?,
		updated_at = ? WHERE project_id = ?`,
		p.Status, nullable(p.Reason), p.ExitCode, nullable(p.ExecID), timeText(p.UpdatedAt), p.ID)
}

// Project gives one project, whoever's it is.
func (r *records) Project(ctx context.Context, id string) (Project, error) {
	return one(ctx, r.read, "project "+id, readProject, `SELECT `+projectColumns+` FROM projects WHERE project_id = ?`, id)
}

// ProjectByName gives a project of an organisation.
func (r *records) ProjectByName(ctx context.Context, orgID, name string) (Project, error) {
	return one(ctx, r.read, "project '"+name+"'", readProject,
		`SELECT `+projectColumns+` FROM projects WHERE org_id = ? AND name = ?`, orgID, name)
}

// Projects lists the projects of an organisation, newest first.
func (r *records) Projects(ctx context.Context, orgID string) ([]Project, error) {
	return list(ctx, r.read, "projects", readProject,
		`SELECT `+projectColumns+` FROM projects WHERE org_id = ? ORDER BY created_at DESC, rowid DESC`, orgID)
}

// UnfinishedProjects lists the projects of all organisations that are not in one of the final states, oldest first.
func (r *records) UnfinishedProjects(ctx context.Context, final ...string) ([]Project, error) {
	text, err := json.Marshal(final)
	if err != nil {
		return nil, err
	}
	return list(ctx, r.read, "projects", readProject, `SELECT `+projectColumns+` FROM projects
		WHERE status NOT IN (SELECT value FROM json_each(?)) ORDER BY created_at, rowid`, string(text))
}

// DeleteProject removes a project of an organisation.
func (r *records) DeleteProject(ctx context.Context, orgID, id string) error {
	return change(ctx, r.write, "project "+id, `DELETE FROM projects WHERE project_id = ? AND org_id = ?`, id, orgID)
}
