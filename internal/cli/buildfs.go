//go:build linux

package cli

import (
	"slices"

	"github.com/spf13/cobra"

	"vers/internal/fault"
)

// buildfsOptions are the flags that the original takes before its subcommands.
type buildfsOptions struct {
	threads, blocking int
	level             string
	noExecLogs        bool
}

// buildfsCommand understands the command lines of buildfs 0.3.4.
func (a *App) buildfsCommand() *cobra.Command {
	var o buildfsOptions
	cmd := group(&cobra.Command{
		Use: "buildfs", Short: "Same as rootfs build, check, pack and unpack, for command lines of buildfs",
		Long: `run is 'rootfs build', dry-run is 'rootfs check', pack and unpack are the same. The flags of the original
are understood, before and after the subcommand; those about threads change nothing here.`,
		Example: `  vers buildfs run -o debian.ext4 build_script.toml
  vers buildfs -l warn -e dry-run package.tar.gz`,
	}, a.buildfsRun(&o), a.buildfsDryRun(&o), a.rootfsPackCommand(), a.rootfsUnpackCommand())
	f := cmd.PersistentFlags()
	f.IntVarP(&o.threads, "async-threads", "A", 1, "accepted, without effect")
	f.IntVarP(&o.blocking, "max-blocking-threads", "B", 0, "accepted, without effect")
	f.StringVarP(&o.level, "log-level", "l", "info", "trace, debug, info, warn or error; the last two show no progress")
	f.BoolVarP(&o.noExecLogs, "no-exec-logs", "e", false, "do not show what the commands print")
	return cmd
}

func (o *buildfsOptions) check() error {
	if !slices.Contains([]string{"trace", "debug", "info", "warn", "error"}, o.level) {
		return fault.Invalidf("unknown log level %q: trace, debug, info, warn or error", o.level)
	}
	return nil
}

func (a *App) buildfsRun(o *buildfsOptions) *cobra.Command {
	var build rootfsBuildOptions
	cmd := &cobra.Command{
		Use: "run <package>", Short: "Same as rootfs build",
		Long:    "Make a root file system of a build script; 'vers rootfs build --help' says more.",
		Example: "  vers buildfs run -o debian.ext4 build_script.toml",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			build.quietScripts, build.quietProgress = o.noExecLogs, o.level == "warn" || o.level == "error"
			return a.rootfsBuild(cmd.Context(), args[0], build)
		},
	}
	build.addFlags(cmd)
	build.format.addQuiet(cmd, "print the output's path only")
	return cmd
}

func (a *App) buildfsDryRun(o *buildfsOptions) *cobra.Command {
	var check rootfsCheckOptions
	cmd := &cobra.Command{
		Use: "dry-run <package>", Short: "Same as rootfs check",
		Long:    "Check a package without building; 'vers rootfs check --help' says more.",
		Example: "  vers buildfs dry-run build_script.toml",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return a.rootfsCheck(cmd.Context(), args[0], check)
		},
	}
	check.format.addQuiet(cmd, "print the names of the keys with faults only")
	return cmd
}
