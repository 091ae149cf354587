package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"vers/internal/fault"
)

type buildOptions struct {
	output             string // mode that is asked for; "" by the other flags
	rootfs, dockerfile string
	commit             buildCommitOptions
	format             formatFlags
}

// What a build ends in.
const (
	outputRootfs = "rootfs"
	outputCommit = "commit"
)

func (a *App) buildCommand() *cobra.Command {
	var o buildOptions
	cmd := &cobra.Command{
		Use: "build [PATH]", Short: "Build a Dockerfile into a rootfs image or a commit",
		Long: `Send a folder to the server and build its Dockerfile there. There are two kinds of build.

Without an argument and without flags of the other kind, this folder becomes a rootfs image that VMs can
be started from. An image that has the name is replaced; VMs made of it keep what they have. Everything
in the folder is sent, hidden files too, but for .vers, vers.toml and what is no file, folder or link;
.dockerignore is applied by the build. Image name and Dockerfile come from the flags, else from vers.toml
(rootfs.name, builder.dockerfile). Nothing is built with builder.name = "none". Upload and build may take
10 minutes together.

With PATH, or with a flag of commit mode, the Dockerfile's steps run in a VM, and the result is a commit:
a machine with its memory and processes, from which VMs go on. FROM names a commit, a tag, repo:tag, a
rootfs image or scratch. After each RUN, COPY and ADD the state is kept, so that the same steps are not
run again by anybody of the organisation. There is no time limit.

--output says which kind is meant where that is not clear. Interrupting this program ends the build.`,
		Example: `  vers build
  vers build --rootfs app-dev --dockerfile docker/Dockerfile.dev
  vers run --rootfs app-dev --start

  vers build . --tag app:latest --ready "curl -fs localhost:3000"
  vers run-commit app:latest --ref`,
		Args: arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.commit.path = "."
			if len(args) > 0 {
				o.commit.path = args[0]
			}
			return a.build(cmd.Context(), o, o.commit.chosen(cmd, args))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.output, "output", "", "what to build: rootfs or commit (default: by argument and flags)")
	f.StringVar(&o.rootfs, "rootfs", "", "name of the image (default: rootfs.name of vers.toml); commit mode: what FROM scratch is")
	f.StringVar(&o.dockerfile, "dockerfile", "", "Dockerfile (default: builder.dockerfile of vers.toml, else Dockerfile)")
	o.commit.add(cmd)
	o.format.add(cmd)
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{outputRootfs, outputCommit}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// build chooses the kind of build (ruling C1 of spec/cli.md). commit: an argument or flag is given that only commit mode has.
func (a *App) build(ctx context.Context, o buildOptions, commit bool) error {
	switch {
	case o.output != "" && o.output != outputRootfs && o.output != outputCommit:
		return fault.Invalidf("unknown kind of build %q; rootfs and commit are possible", o.output)
	case o.output == outputRootfs && commit:
		return fault.Invalidf("a folder and flags of commit mode are given, and --output rootfs; a rootfs image is built of the working folder, with --rootfs and --dockerfile")
	case o.output == outputCommit || commit:
		o.commit.rootfs = o.rootfs
		if o.commit.file == "" {
			o.commit.file = o.dockerfile
		}
		return a.buildCommit(ctx, o.commit, o.format)
	}
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
