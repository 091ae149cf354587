package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"vers/internal/daemon"
)

func imagesCommand(o *options) *cobra.Command {
	return group("images", "Supported images: machines that everybody can fork", imagesBakeCommand(o))
}

func imagesBakeCommand(o *options) *cobra.Command {
	var bake daemon.BakeOptions
	cmd := &cobra.Command{
		Use:   "bake [NAME...]",
		Short: "Build, check and publish the supported images",
		Long: `Builds the images node, python, rust, go, pi-agent and cc-agent, or those named, with the running versd; starts a machine
of each, checks that its tools work, and publishes it as a public repository of the organisation vers, which is made when it
is missing, with the tags latest and YYYY-MM-DD. Users get one with 'vers repo fork vers/python:latest'.

Builds use this host's package sources, without passwords, and nothing of them stays in the images. Steps that were done the
same day are not done again. An image that fails keeps what was published before and does not stop the others; the exit code
is then 1. docs/images.md says what the images hold and how to write one.`,
		Example: "  versd images bake\n  versd images bake python --verbose\n  versd images bake --if-changed --keep 8",
		RunE: func(cmd *cobra.Command, args []string) error {
			if bake.Keep < 0 {
				return fmt.Errorf("--keep is %d; it is a number of dated tags, or 0 for all", bake.Keep)
			}
			c, err := o.load(cmd)
			if err != nil {
				return err
			}
			bake.Images, bake.Progress = args, cmd.OutOrStdout()
			return daemon.BakeImages(cmd.Context(), c, bake)
		},
	}
	cmd.Flags().BoolVar(&bake.IfChanged, "if-changed", false, "leave out images whose definition and base are those of what is published")
	cmd.Flags().BoolVar(&bake.NoCache, "no-cache", false, "run every step again, also those of the same day")
	cmd.Flags().IntVar(&bake.Keep, "keep", 4, "dated tags of each image that stay, with their commits; 0: all")
	cmd.Flags().BoolVarP(&bake.Verbose, "verbose", "v", false, "show what builds print")
	return cmd
}
