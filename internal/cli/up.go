package cli

import (
	"context"

	"github.com/spf13/cobra"
)

type upOptions struct {
	run        runOptions
	dockerfile string
}

func (a *App) upCommand() *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use: "up", Short: "Build this folder's image and start a VM of it",
		Long: `The same as build, then run: the Dockerfile of this folder becomes a rootfs image, and a new VM is
started from it. HEAD moves to the VM. With builder.name = "none" in vers.toml nothing is built.`,
		Example: `  vers up
  vers up --start                # with the image's ENTRYPOINT and CMD running
  vers up --rootfs app-dev --dockerfile docker/Dockerfile.dev --mem-size 2048`,
		Args: arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				a.Streams.note("note: '%s' is ignored, there are no clusters any more", args[0])
			}
			o.run.given = givenFlags(cmd)
			return a.up(cmd.Context(), o)
		},
	}
	o.run.add(a, cmd)
	cmd.Flags().StringVar(&o.dockerfile, "dockerfile", "", "Dockerfile (default: builder.dockerfile of vers.toml, else Dockerfile)")
	return cmd
}

// upResult is the JSON output of up.
type upResult struct {
	Build buildResult `json:"build"`
	runResult
}

func (a *App) up(ctx context.Context, o upOptions) error {
	mode, err := o.run.format.mode()
	if err != nil {
		return err
	}
	if err := o.run.check(a); err != nil {
		return err
	}
	a.Streams.note("=== Building rootfs ===")
	built, err := a.buildRootfs(ctx, o.run.rootfs, o.dockerfile)
	if err != nil {
		return rewordf(err, "build failed: %v", err)
	}
	if built.Skipped {
		a.Streams.note("Build skipped: %s", built.Reason)
	}
	a.Streams.note("=== Starting VM ===")
	a.quietProject = true // its warnings were shown with the build
	o.run.rootfs = built.RootfsName
	started, err := a.startRoot(ctx, o.run)
	if err != nil {
		return rewordf(err, "run failed: %v", err)
	}
	return a.show(mode, started.VMID, upResult{built, started}, a.sayStarted(started))
}
