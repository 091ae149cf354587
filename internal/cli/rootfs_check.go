//go:build linux

package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"vers/internal/build/buildfs"
	"vers/internal/fault"
)

type rootfsCheckOptions struct {
	strict, offline bool
	boot            string // image of the server
	check           buildfs.CheckOptions
	format          formatFlags
}

func (a *App) rootfsCheckCommand() *cobra.Command {
	var o rootfsCheckOptions
	cmd := &cobra.Command{
		Use: "check <package>", Short: "Name everything that is wrong with a build script, without building",
		Long: `Read a package and check it: syntax, keys, values, references. All faults are named at once, with file, line
and key; exit code 5 says that there are some. Then the container engine is asked whether it answers.
With --boot, an image of the server is started in a VM, and the script's checks run in it.`,
		Example: `  vers rootfs check build.toml
  vers rootfs check . --strict --offline --json
  vers rootfs check . --boot web`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return a.rootfsCheck(cmd.Context(), args[0], o) },
	}
	cmd.Flags().BoolVar(&o.strict, "strict", false, "warnings are faults")
	cmd.Flags().BoolVar(&o.offline, "offline", false, "do not ask the container engine")
	cmd.Flags().StringVar(&o.boot, "boot", "", "also start this image of the server, and run checks.commands in it")
	addCheckFlags(cmd, &o.check)
	o.format.addQuiet(cmd, "print the names of the keys with faults only")
	return cmd
}

func addCheckFlags(cmd *cobra.Command, o *buildfs.CheckOptions) {
	cmd.Flags().StringArrayVar(&o.Set, "set", nil, "put a value in place of the script's: KEY=VALUE, such as container.image.tag=trixie; can be repeated")
	cmd.Flags().BoolVar(&o.Force, "force", false, "take a file system that cannot hold a system, such as vfat")
	cmd.Flags().BoolVar(&o.HostVolumes, "host-volumes", false, "container.volumes are folders of this machine, writable, not of the package")
}

// rootfsCheckResult is the JSON output.
type rootfsCheckResult struct {
	Package string       `json:"package"`
	Kind    buildfs.Kind `json:"kind"`
	OK      bool         `json:"ok"`
	buildfs.Report
}

func (a *App) rootfsCheck(ctx context.Context, path string, o rootfsCheckOptions) error {
	mode, err := o.format.mode()
	if err != nil {
		return err
	}
	p, err := buildfs.Open(ctx, path)
	if err != nil {
		return err
	}
	defer p.Close()
	script, report, err := p.Check(o.check)
	if err != nil {
		return err
	}
	if len(report.Faults) == 0 {
		if err := a.rootfsCheckOutside(ctx, script, o); err != nil {
			return err
		}
	}
	ok := len(report.Faults) == 0 && (!o.strict || len(report.Warnings) == 0)
	if mode == modeQuiet {
		for _, f := range report.Faults {
			fmt.Fprintln(a.Streams.Out, f.Key)
		}
	}
	if mode == modeJSON {
		if err := printJSON(a.Streams.Out, rootfsCheckResult{path, p.Kind, ok, *report}); err != nil || ok {
			return err
		}
		return &statusError{exitInvalid}
	}
	for _, w := range report.Warnings {
		a.warn("%s", w)
	}
	if err := report.Err(); err != nil {
		return err
	}
	if !ok {
		return fault.Invalidf("%d warnings, which --strict makes faults", len(report.Warnings))
	}
	if mode == modeQuiet {
		return nil
	}
	fmt.Fprintf(a.Streams.Out, "✓ %s (%s) is valid: %s\n", path, p.Kind, script.Summary())
	return nil
}

// rootfsCheckOutside asks the engine, and boots an image.
func (a *App) rootfsCheckOutside(ctx context.Context, script *buildfs.Script, o rootfsCheckOptions) error {
	if !o.offline {
		opened, err := a.localEngine(ctx, script)
		if err != nil {
			return err
		}
		opened.Close()
	}
	if o.boot == "" {
		return nil
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	return a.bootImage(ctx, client, o.boot, script.Checks.Commands)
}
