//go:build linux

package cli

import (
	"context"

	"github.com/spf13/cobra"

	"vers/internal/build/buildfs"
)

func (a *App) rootfsUnpackCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "unpack <package> <folder>", Short: "Extract a package",
		Long: `Extract a package of type tar or tar-gz, whatever its name, into a folder that is empty or not there yet.
Nothing is written outside of it: an archive that tries to is refused, and nothing of it stays.`,
		Example: "  vers rootfs unpack web.tar.gz web",
		Args:    arguments(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.rootfsUnpack(cmd.Context(), args[0], args[1], format)
		},
	}
	format.addQuiet(cmd, "print the folder only")
	return cmd
}

func (a *App) rootfsUnpack(ctx context.Context, packagePath, dir string, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	if err := buildfs.Unpack(ctx, packagePath, dir); err != nil {
		return err
	}
	return a.show(mode, dir, map[string]string{"path": dir}, a.say("✓ Unpacked %s into %s", packagePath, dir))
}
