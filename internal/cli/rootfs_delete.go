package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"vers/internal/config"
	"vers/internal/fault"
)

type rootfsDeleteOptions struct {
	name   string
	force  bool
	format formatFlags
}

func (a *App) rootfsDeleteCommand() *cobra.Command {
	var o rootfsDeleteOptions
	cmd := &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Delete a rootfs image",
		Long: `Delete a rootfs image of your organisation. It must not be in use by VMs; commits made of it keep what
they need. On a terminal this asks first, unless -f is given.`,
		Example: "  vers rootfs delete app-dev\n  vers rootfs delete -f app-dev",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return a.rootfsDelete(cmd.Context(), o)
		},
		ValidArgsFunction: a.completeImages,
	}
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "do not ask")
	o.format.add(cmd)
	return cmd
}

// rootfsDeleted is the JSON output of rootfs delete.
type rootfsDeleted struct {
	RootfsName  string `json:"rootfs_name"`
	BaseImageID string `json:"base_image_id"`
	Deleted     bool   `json:"deleted"`
}

func (a *App) rootfsDelete(ctx context.Context, o rootfsDeleteOptions) error {
	if o.name == config.DefaultProject().RootFS.Name {
		return fault.Invalidf("the rootfs image '%s' is protected and cannot be deleted", o.name)
	}
	mode, client, err := a.begin(o.format)
	if err != nil {
		return err
	}
	if !o.force && a.Streams.InTTY && mode == modeText {
		answer, err := a.Streams.ask(fmt.Sprintf("Delete rootfs image '%s'? [y/N] ", o.name))
		if err != nil {
			return err
		}
		if answer = strings.ToLower(answer); answer != "y" && answer != "yes" {
			return errDeclined
		}
	}
	ctx, cancel := limit(ctx, listLimit, "deleting the image")
	defer cancel()
	deleted, err := client.DeleteImage(ctx, o.name)
	if err != nil {
		return err
	}
	return a.show(mode, o.name, rootfsDeleted{o.name, deleted.BaseImageID, true}, a.say("Rootfs image '%s' deleted successfully.", o.name))
}
