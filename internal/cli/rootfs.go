package cli

import "github.com/spf13/cobra"

func (a *App) rootfsCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use: "rootfs", Aliases: []string{"image"}, Short: "Make root file systems from TOML build scripts, and manage those of the server",
		Long: `A build script names a container image, commands to run in it, files to lay over it, and what to keep
of it; build makes a bootable file system of that. Building needs no server. A script comes alone, or
in a package with the files it refers to: a folder with build.toml, or such a folder as .tar or .tar.gz.`,
		Example: `  vers rootfs init                            # writes build.toml
  vers rootfs check .
  vers rootfs build . -o rootfs.ext4`,
	}, a.rootfsScriptCommands()...)
	cmd.AddCommand(a.rootfsListCommand(), a.rootfsDeleteCommand(), a.rootfsImportCommand())
	return cmd
}
