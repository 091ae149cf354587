//go:build linux

package cli

import (
	"context"

	"github.com/spf13/cobra"

	"vers/internal/build/buildfs"
	"vers/internal/fault"
)

type rootfsPackOptions struct {
	kind   string
	force  bool
	check  buildfs.CheckOptions
	format formatFlags
}

func (a *App) rootfsPackCommand() *cobra.Command {
	var o rootfsPackOptions
	cmd := &cobra.Command{
		Use: "pack <script> <destination>", Short: "Collect a build script and its files into a package",
		Long: `Write a package of a build script and everything that it refers to: scripts, files and whole folders of
overlays, volumes. References are taken from the script's folder, with or without a leading slash, and
never lead out of it. The package is checked first. Packing the same files again gives the same bytes.`,
		Example: `  vers rootfs pack build.toml web.tar.gz
  vers rootfs pack build.toml web -t directory`,
		Args: arguments(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error { return a.rootfsPack(cmd.Context(), args[0], args[1], o) },
	}
	o.addFlags(cmd)
	return cmd
}

func (o *rootfsPackOptions) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.kind, "type", "t", "", "tar-gz, tar, directory or build-script (default: by the destination's name)")
	cmd.Flags().BoolVar(&o.force, "force", false, "replace a file at the destination")
	cmd.Flags().BoolVar(&o.check.HostVolumes, "host-volumes", false, "container.volumes are folders of this machine, and stay out of the package")
	o.format.addQuiet(cmd, "print the destination only")
	_ = cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions([]string{"tar-gz", "tar", "directory", "build-script"}, cobra.ShellCompDirectiveNoFileComp))
}

func (a *App) rootfsPack(ctx context.Context, script, dest string, o rootfsPackOptions) error {
	mode, err := o.format.mode()
	if err != nil {
		return err
	}
	kind := buildfs.Kind(o.kind)
	switch kind {
	case "":
		kind = buildfs.KindOfDestination(dest)
	case buildfs.KindScript, buildfs.KindDirectory, buildfs.KindTar, buildfs.KindTarGz:
	default:
		return fault.Invalidf("unknown type of package %q: tar-gz, tar, directory or build-script", o.kind)
	}
	o.check.Force = true // what a file system can hold is a question for build
	packed, err := buildfs.Pack(ctx, script, dest, kind, o.force, o.check)
	if err != nil {
		return err
	}
	for _, w := range packed.Warnings {
		a.warn("%s", w)
	}
	return a.show(mode, dest, packed, a.say("✓ Packed %s and %d files and folders into %s (%s)", script, len(packed.Files), dest, kind))
}
