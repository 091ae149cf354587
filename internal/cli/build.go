package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

type buildOptions struct {
	rootfs, dockerfile string
	format             formatFlags
}

func (a *App) buildCommand() *cobra.Command {
	var o buildOptions
	cmd := &cobra.Command{
		Use: "build", Short: "Build this folder's Dockerfile into a rootfs image",
		Long: `Send this folder to the server, build its Dockerfile there, and register the result as a rootfs image
that VMs can be started from. An image that has the name is replaced; VMs made of it keep what they have.

Everything in the folder is sent, hidden files too, but for .vers, vers.toml and what is no file, folder
or link; .dockerignore is applied by the build. Image name and Dockerfile come from the flags, else from
vers.toml (rootfs.name, builder.dockerfile). Nothing is built with builder.name = "none".

Upload and build may take 10 minutes together. Interrupting this program ends the build.`,
		Example: `  vers build
  vers build --rootfs app-dev --dockerfile docker/Dockerfile.dev
  vers run --rootfs app-dev --start`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.build(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.rootfs, "rootfs", "", "name of the image (default: rootfs.name of vers.toml)")
	f.StringVar(&o.dockerfile, "dockerfile", "", "Dockerfile (default: builder.dockerfile of vers.toml, else Dockerfile)")
	o.format.add(cmd)
	return cmd
}

func (a *App) build(ctx context.Context, o buildOptions) error {
	mode, err := o.format.mode()
	if err != nil {
		return err
	}
	result, err := a.buildRootfs(ctx, o.rootfs, o.dockerfile)
	if err != nil {
		return err
	}
	return a.show(mode, result.RootfsName, result, func() {
		if result.Skipped {
			fmt.Fprintf(a.Streams.Out, "Build skipped: %s\n", result.Reason)
			return
		}
		fmt.Fprintf(a.Streams.Out, "Successfully uploaded rootfs: %s\n", result.RootfsName)
	})
}
