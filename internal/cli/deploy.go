package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/fault"
)

type deployOptions struct {
	repo, name, branch, dir string
	install, build, run     string
	wait                    waitFlags
	format                  formatFlags
}

func (a *App) deployCommand() *cobra.Command {
	var o deployOptions
	cmd := &cobra.Command{
		Use: "deploy <owner/repo|URL>", Short: "Run a git repository in a new VM",
		Long: `Make a VM, clone a repository into it, and run its install, build and run commands, one after the other.
The command returns at once; 'vers deploy get <project>' tells how far it is. HEAD moves to the VM.

owner/repo is a repository on GitHub; any http, https, git or ssh URL will do.`,
		Example: `  vers deploy acme/shop --install "npm ci" --build "npm run build" --run "npm start"
  vers deploy https://git.example.org/shop.git --branch main --working-dir api
  vers deploy list
  vers deploy get shop`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.repo = args[0]
			return a.deploy(cmd.Context(), o)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.StringVar(&o.name, "name", "", "name of the project (default: the repository's)")
	f.StringVar(&o.branch, "branch", "", "branch or tag (default: the repository's own)")
	f.StringVar(&o.install, "install", "", "command that installs what it needs")
	f.StringVar(&o.build, "build", "", "command that builds it")
	f.StringVar(&o.run, "run", "", "command that runs it")
	f.StringVar(&o.dir, "working-dir", "", "folder inside the repository")
	o.wait.add(cmd, "return when commands can run in the VM")
	o.format.addQuiet(cmd, "print the VM's id only")
	cmd.AddCommand(a.deployListCommand(), a.deployGetCommand(), a.deployDeleteCommand())
	return cmd
}

// given makes an optional field of a flag.
func given(value string) *string {
	if value == "" {
		return nil
	}
	return &value
}

func (a *App) deploy(ctx context.Context, o deployOptions) error {
	if !strings.Contains(o.repo, "/") {
		return fault.Invalidf("'%s' is no repository: give owner/repo or a URL", o.repo)
	}
	mode, client, err := a.begin(o.format)
	if err != nil {
		return err
	}
	req := api.DeployRequest{Repo: o.repo, Name: given(o.name), Branch: given(o.branch)}
	settings := api.DeploySettings{
		InstallCommand: given(o.install), BuildCommand: given(o.build), RunCommand: given(o.run), WorkingDirectory: given(o.dir),
	}
	if settings != (api.DeploySettings{}) {
		req.Settings = &settings
	}
	stop := a.Streams.progress("Deploying %s", o.repo)
	limited, cancel := limit(ctx, startLimit, "the deployment")
	made, err := client.Deploy(limited, req)
	cancel()
	stop()
	if err != nil {
		return err
	}
	moved := true
	if err := a.moveHead(made.VMID); err != nil {
		a.warn("%v", err)
		moved = false
	}
	if o.wait.wait {
		if err := a.waitJob(ctx, client, "deploy", made.VMID, o.wait.timeout); err != nil {
			return fmt.Errorf("waiting for VM '%s': %w", made.VMID, err)
		}
	}
	return a.show(mode, made.VMID, made, func() {
		a.fields([][2]string{{"Project", made.ProjectID}, {"VM", made.VMID}, {"Status", made.Status}})()
		if moved {
			a.say("HEAD now points to: %s", made.VMID)()
		}
		a.say("Cloning, installing and building go on in the background: vers deploy get %s", made.ProjectID)()
	})
}

func (a *App) deployListCommand() *cobra.Command {
	var format formatFlags
	var pages pageFlags
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the projects, newest first",
		Example: "  vers deploy list",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			mode, client, err := a.begin(format)
			if err != nil {
				return err
			}
			ctx, cancel := limit(cmd.Context(), listLimit, "listing the projects")
			defer cancel()
			all, err := client.Projects(ctx)
			if err != nil {
				return err
			}
			return listing[api.Project]{
				name:   func(p api.Project) string { return p.ProjectID },
				header: []string{"PROJECT ID", "NAME", "STATUS", "VM ID", "REPOSITORY"},
				row:    func(p api.Project) []string { return []string{p.ProjectID, p.Name, p.Status, p.VMID, p.Repo} },
				empty:  "No projects. Make one with 'vers deploy <owner/repo>'.",
			}.print(a, mode, pages, all)
		},
	}
	format.addQuiet(cmd, "print ids only")
	pages.add(cmd)
	return cmd
}

// project finds a project by its id, the beginning of it, or its name.
func project(ctx context.Context, client *api.Client, typed string) (api.Project, error) {
	all, err := client.Projects(ctx)
	if err != nil {
		return api.Project{}, err
	}
	byID := map[string]api.Project{}
	var ids []string
	for _, p := range all {
		if p.Name == typed {
			return p, nil
		}
		byID[p.ProjectID] = p
		ids = append(ids, p.ProjectID)
	}
	id, err := unique("project", typed, strings.ToLower(typed), ids)
	return byID[id], err
}

func (a *App) deployGetCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "get <project>", Short: "Show how a deployment goes, named by project name or id",
		Example: "  vers deploy get shop --format json | jq -r .status",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			mode, client, err := a.begin(format)
			if err != nil {
				return err
			}
			ctx, cancel := limit(cmd.Context(), listLimit, "reading the project")
			defer cancel()
			p, err := project(ctx, client, args[0])
			if err != nil {
				return err
			}
			code := ""
			if p.ExitCode != nil {
				code = fmt.Sprint(*p.ExitCode)
			}
			return a.show(mode, p.Status, p, a.fields([][2]string{
				{"Project", p.ProjectID}, {"Name", p.Name}, {"Status", p.Status}, {"Reason", p.Reason}, {"Exit code", code},
				{"VM", p.VMID}, {"Repository", p.Repo}, {"Branch", text(p.Branch)}, {"Created", when(p.CreatedAt)}, {"Updated", when(p.UpdatedAt)},
			}))
		},
		ValidArgsFunction: a.completeProjects,
	}
	format.addQuiet(cmd, "print the status only")
	return cmd
}

func (a *App) deployDeleteCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "delete <project>...", Aliases: []string{"rm"}, Short: "Forget projects; their VMs run on",
		Example: "  vers deploy delete shop",
		Args:    arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			mode, client, err := a.begin(format)
			if err != nil {
				return err
			}
			ctx, cancel := limit(cmd.Context(), listLimit, "deleting the project")
			defer cancel()
			return eachResult(a, mode, args, func(name string) (map[string]string, string, error) {
				p, err := project(ctx, client, name)
				if err == nil {
					err = client.DeleteProject(ctx, p.ProjectID)
				}
				return map[string]string{"project_id": p.ProjectID}, fmt.Sprintf("✓ Project '%s' deleted", clean(p.Name)), err
			})
		},
		ValidArgsFunction: a.completeProjects,
	}
	format.add(cmd)
	return cmd
}
