package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"vers/internal/config"
	"vers/internal/daemon"
	"vers/internal/server"
)

const defaultConfig = "/etc/vers/versd.toml"

// options every command has.
type options struct{ config string }

func (o *options) load(cmd *cobra.Command) (config.Server, error) {
	return config.LoadServer(o.config, cmd.Flags().Changed("config"))
}

func newCommand() *cobra.Command {
	var o options
	root := &cobra.Command{
		Use:   "versd",
		Short: "The vers server: git for running machines",
		Long: `versd runs virtual machines, and branches, commits and restores them. Without a subcommand it serves until it is
told to stop; its VMs run on without it and are taken over by the next start. The first start makes a kernel and a root
file system from Debian packages, an organisation, and an API key, which is printed once.`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.load(cmd)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), c)
		},
	}
	root.PersistentFlags().StringVar(&o.config, "config", defaultConfig, "configuration file (dist/versd.toml shows all keys)")
	root.AddCommand(prepareCommand(&o), doctorCommand(&o), waitCommand(&o), stopCommand(&o),
		orgCommand(&o), keyCommand(&o), approveCommand(&o), auditCommand(&o), kernelCommand(&o), imagesCommand(&o), verifyCommand(&o))
	return root
}

func serve(ctx context.Context, c config.Server) error {
	log, err := daemon.NewLogger(os.Stderr, c.LogLevel)
	if err != nil {
		return err
	}
	d, err := daemon.Open(ctx, daemon.Options{
		Config: c, Logger: log, Progress: os.Stderr,
		Version: server.Version{Version: version, GitHash: commit},
		FirstKey: func(organisation, key string) {
			fmt.Printf("Organisation '%s' created. Its API key, shown only now:\n\n    %s\n\nUsers on this host who can open %s need none.\n", organisation, key, c.Socket)
		},
	})
	if err != nil {
		return err
	}
	return errors.Join(d.Serve(ctx), d.Close())
}

func prepareCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "prepare",
		Short: "Make kernel, default image and initramfs, as far as they are missing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.load(cmd)
			if err != nil {
				return err
			}
			return daemon.Prepare(cmd.Context(), c, cmd.ErrOrStderr())
		},
	}
}

func doctorCommand(o *options) *cobra.Command {
	var brief bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check everything this host needs, and say how to get what is missing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.load(cmd)
			if err != nil {
				return err
			}
			return daemon.Doctor(cmd.Context(), c, brief, cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&brief, "brief", false, "only what is missing, and the accelerator")
	return cmd
}

func waitCommand(o *options) *cobra.Command {
	var limit time.Duration
	cmd := &cobra.Command{
		Use:   "wait",
		Short: "Wait until versd answers",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.load(cmd)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), limit)
			defer cancel()
			return daemon.Wait(ctx, c)
		},
	}
	cmd.Flags().DurationVar(&limit, "timeout", time.Minute, "how long to wait")
	return cmd
}

func stopCommand(o *options) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "stop",
		Short: "End versd; its VMs run on unless --all is given",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.load(cmd)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			return daemon.Stop(ctx, c, all, cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "end all VMs too; commits stay")
	return cmd
}

func verifyCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "verify [commit...]",
		Short: "Read the files of commits again and compare them with what was written",
		RunE: func(cmd *cobra.Command, ids []string) error {
			c, err := o.load(cmd)
			if err != nil {
				return err
			}
			return daemon.Verify(cmd.Context(), c, ids, cmd.OutOrStdout())
		},
	}
}
