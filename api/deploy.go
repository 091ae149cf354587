package api

import "time"

// DeployRequest is the body of POST /deploy.
type DeployRequest struct {
	Repo     string          `json:"repo" doc:"owner/repo on GitHub, or any http, https, git or ssh URL [ours]. Without credentials: put these into the environment variables"`
	Name     *string         `json:"name,omitempty" nullable:"true" doc:"Name of the project; default: the repository's"`
	Branch   *string         `json:"branch,omitempty" nullable:"true" doc:"Branch or tag; default: the repository's own"`
	Settings *DeploySettings `json:"settings,omitempty" doc:"May be null"`
	VMConfig *VMConfig       `json:"vm_config,omitempty" doc:"[ours] What the VM is made of"`
}

// DeploySettings say how a project is made to run. Commands are lines for the guest's shell.
type DeploySettings struct {
	InstallCommand   *string `json:"install_command,omitempty" nullable:"true"`
	BuildCommand     *string `json:"build_command,omitempty" nullable:"true"`
	RunCommand       *string `json:"run_command,omitempty" nullable:"true"`
	WorkingDirectory *string `json:"working_directory,omitempty" nullable:"true" doc:"Folder inside the repository that the commands run in"`
}

// Deployment is the answer of POST /deploy.
type Deployment struct {
	ProjectID string `json:"project_id" format:"uuid"`
	VMID      string `json:"vm_id" format:"uuid"`
	Status    string `json:"status" doc:"As in GET /deploy/{project_id}"`
}

// States of a project.
const (
	ProjectStarting   = "starting"   // the VM boots
	ProjectCloning    = "cloning"    // git clone
	ProjectInstalling = "installing" // the install command runs
	ProjectBuilding   = "building"   // the build command runs
	ProjectRunning    = "running"    // the run command runs
	ProjectFinished   = "finished"   // the last command ended with 0
	ProjectFailed     = "failed"     // reason says why
)

// Project is the answer of GET /deploy/{project_id} [ours].
type Project struct {
	ProjectID string    `json:"project_id" format:"uuid"`
	VMID      string    `json:"vm_id" format:"uuid"`
	Name      string    `json:"name"`
	Repo      string    `json:"repo" doc:"URL that is cloned"`
	Branch    *string   `json:"branch"`
	Status    string    `json:"status" doc:"starting, cloning, installing, building, running, finished or failed"`
	Reason    string    `json:"reason,omitempty" doc:"Why it failed"`
	ExitCode  *int      `json:"exit_code,omitempty" doc:"Of the last command that ended"`
	ExecID    string    `json:"exec_id,omitempty" doc:"Command of the present or last step: exec/stream/attach on the VM shows its output"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// ProjectList is the answer of GET /deploy [ours]: projects of the organisation, newest first.
type ProjectList struct {
	Projects []Project `json:"projects" nullable:"false"`
}
