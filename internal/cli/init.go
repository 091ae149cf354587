package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"vers/internal/cli/local"
	"vers/internal/config"
	"vers/internal/fault"
	"vers/internal/ident"
)

type initOptions struct {
	name       string
	size       config.Machine
	rootfs     string
	kernel     string
	dockerfile string

	rootfsGiven, dockerfileGiven bool
}

func (a *App) initCommand() *cobra.Command {
	var o initOptions
	cmd := &cobra.Command{
		Use: "init", Short: "Make a project in this folder",
		Long: `Write vers.toml, which describes the VMs of this project, and .vers, which holds HEAD. What exists
already is left as it is. No server and no key are needed.

With a Dockerfile in the folder (or --dockerfile) the file is prepared for building an image from it,
named like the project.`,
		Example: `  vers init
  vers init --mem-size 2048 --vcpu-count 2`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.rootfsGiven = cmd.Flags().Changed("rootfs")
			o.dockerfileGiven = cmd.Flags().Changed("dockerfile")
			return a.runInit(o)
		},
	}
	d := config.DefaultProject()
	f := cmd.Flags()
	f.StringVarP(&o.name, "name", "n", "", "project name (default: the folder's)")
	f.Int64Var(&o.size.MemSizeMiB, "mem-size", d.Machine.MemSizeMiB, "memory in MiB")
	f.Int64Var(&o.size.VCPUCount, "vcpu-count", d.Machine.VCPUCount, "number of virtual CPUs")
	f.Int64Var(&o.size.FSSizeMiB, "fs-size-vm", d.Machine.FSSizeMiB, "root disk in MiB")
	f.StringVar(&o.rootfs, "rootfs", d.RootFS.Name, "rootfs image")
	f.StringVar(&o.kernel, "kernel", d.Kernel.Name, "kernel")
	f.StringVar(&o.dockerfile, "dockerfile", d.Builder.Dockerfile, "Dockerfile of the project's image")
	return cmd
}

func (a *App) runInit(o initOptions) error {
	if err := checkSizes(o.size); err != nil {
		return err
	}
	if o.name == "" {
		o.name = filepath.Base(a.Dir)
	}
	builder := "none"
	if _, err := os.Stat(filepath.Join(a.Dir, o.dockerfile)); err == nil || o.dockerfileGiven {
		builder = "docker"
		if !o.rootfsGiven {
			o.rootfs = o.name
		}
		if !ident.ValidName(o.rootfs, ident.ImageName) {
			return fault.Invalidf("'%s' cannot name an image: use 1 to 64 letters, digits, '-', '_' or '.', with --name or --rootfs", o.rootfs)
		}
	}
	if err := a.makeProjectFolder(); err != nil {
		return fmt.Errorf("make the project: %w", err)
	}
	content := fmt.Sprintf(`[machine]
mem_size_mib = %d
vcpu_count = %d
fs_size_vm_mib = %d

[rootfs]
name = %q

[kernel]
name = %q

[builder]
name = %q
dockerfile = %q
`, o.size.MemSizeMiB, o.size.VCPUCount, o.size.FSSizeMiB, o.rootfs, o.kernel, builder, o.dockerfile)
	created, err := createFile(filepath.Join(a.Dir, config.ProjectFile), content)
	switch {
	case err != nil:
		return fmt.Errorf("make the project: %w", err)
	case created:
		fmt.Fprintln(a.Streams.Out, "Created vers.toml with default configuration")
	default:
		fmt.Fprintln(a.Streams.Out, "vers.toml already exists, skipped")
	}
	fmt.Fprintln(a.Streams.Out, "Initialized vers repository in .vers")
	return nil
}

const gitignore = `.vers/
.env
.DS_Store
*.log
*.swp
`

// makeProjectFolder makes .vers, keeping a HEAD that is there, and .gitignore.
func (a *App) makeProjectFolder() error {
	dir := filepath.Join(a.Dir, ".vers")
	if err := os.MkdirAll(filepath.Join(dir, "logs", "commits"), 0o755); err != nil {
		return err
	}
	if _, err := createFile(filepath.Join(dir, "config"), "[vers]\nversion = 1\n"); err != nil {
		return err
	}
	if _, state, err := a.folder().Head(); err == nil && state == local.NoProject {
		if err := a.folder().SetHead(""); err != nil {
			return err
		}
	}
	_, err := createFile(filepath.Join(a.Dir, ".gitignore"), gitignore)
	return err
}

// createFile writes a file unless there is one.
func createFile(path, content string) (created bool, err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, os.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, err = file.WriteString(content)
	return true, errors.Join(err, file.Close())
}

// checkSizes refuses sizes that make no sense, in the words of spec/cli.md 5.3.
func checkSizes(m config.Machine) error {
	switch {
	case m.MemSizeMiB <= 0:
		return fault.Invalidf("Invalid memory size (must be positive)")
	case m.VCPUCount <= 0:
		return fault.Invalidf("Invalid vCPU count (must be positive)")
	case m.FSSizeMiB <= 0:
		return fault.Invalidf("Invalid filesystem size (must be positive)")
	}
	return nil
}
