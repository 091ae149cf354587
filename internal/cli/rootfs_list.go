package cli

import (
	"context"

	"github.com/spf13/cobra"

	"vers/api"
)

type rootfsListOptions struct {
	format formatFlags
	pages  pageFlags
}

func (a *App) rootfsListCommand() *cobra.Command {
	var o rootfsListOptions
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "Rootfs images that VMs can be started from",
		Example: "  vers rootfs list\n  vers rootfs list --format json | jq '.[].image_name'",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.rootfsList(cmd.Context(), o)
		},
	}
	o.format.addQuiet(cmd, "print names only")
	o.pages.add(cmd)
	return cmd
}

func (a *App) rootfsList(ctx context.Context, o rootfsListOptions) error {
	mode, client, err := a.begin(o.format)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "listing the images")
	defer cancel()
	all, err := client.Images(ctx)
	if err != nil {
		return err
	}
	if mode != modeText {
		return listing[api.Image]{name: func(i api.Image) string { return i.ImageName }}.print(a, mode, o.pages, all)
	}
	items, _, hint, err := cut(o.pages, all)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return a.show(mode, "", nil, a.say("No rootfs images found."))
	}
	a.say("Available rootfs images:")()
	for _, image := range items {
		a.say("- %s", clean(image.ImageName))()
	}
	if hint != "" {
		a.Streams.note("%s", hint)
	}
	return nil
}
