package cli

import (
	"context"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/fault"
	"vers/internal/ident"
)

type importOptions struct {
	source      string
	name        string
	description string
	local       bool
	replace     bool
	format      formatFlags
}

func (a *App) rootfsImportCommand() *cobra.Command {
	var o importOptions
	cmd := &cobra.Command{
		Use: "import IMAGE|ARCHIVE|-", Short: "Make a rootfs image of a container image or an archive",
		Long: `IMAGE is the name of a container image in a registry, which the server gets; with --local it is one of
the Docker (or Podman) of this machine, which is sent to the server. ARCHIVE is a root file system as
tar, tar.gz or tar.zst; - is one on standard input. An archive with a Dockerfile at its top is built.

What the image says about its processes is kept: variables, working directory, user, and the command
that 'vers run --start' starts.`,
		Example: `  vers rootfs import debian:12
  vers rootfs import --local my-image:dev --name my-image
  vers rootfs import rootfs.tar.gz --name base
  mmdebstrap --variant=minbase bookworm - | vers rootfs import - --name bookworm`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.source = args[0]
			return a.rootfsImport(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.local, "local", false, "IMAGE is one of the Docker (or Podman) of this machine")
	f.StringVar(&o.name, "name", "", "name of the rootfs image (default: made of the source's)")
	f.StringVarP(&o.description, "description", "d", "", "description of the rootfs image")
	f.BoolVar(&o.replace, "replace", false, "replace an image that has the name; VMs made of it keep what they have")
	o.format.add(cmd)
	return cmd
}

func (a *App) rootfsImport(ctx context.Context, o importOptions) error {
	mode, client, err := a.begin(o.format)
	if err != nil {
		return err
	}
	if o.name == "" {
		o.name = imageNameOf(o.source)
	}
	if !ident.ValidName(o.name, ident.ImageName) {
		return fault.Invalidf("'%s' cannot name an image: give another one with --name, 1 to %d letters, digits, '-', '_' or '.'", o.name, ident.ImageName)
	}
	switch {
	case o.local:
		_, err = a.importLocal(ctx, o)
	case o.source == "-":
		err = a.importArchive(ctx, client, o, a.Streams.In)
	case isFile(filepath.Join(a.Dir, o.source)) || filepath.IsAbs(o.source):
		err = a.importFile(ctx, client, o)
	default:
		err = a.importReference(ctx, client, o)
	}
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "looking at the image")
	defer cancel()
	made, err := client.Image(ctx, o.name)
	if err != nil {
		return err
	}
	return a.show(mode, made.ImageName, made, a.say("Successfully imported rootfs: %s", made.ImageName))
}

func isFile(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular()
}

// imageNameOf makes a name of a reference or a file's: my.registry/team/app:dev is app-dev, rootfs.tar.gz is rootfs.
func imageNameOf(source string) string {
	if source == "-" {
		return "" // standard input has no name
	}
	name := path.Base(filepath.ToSlash(source))
	name, _, _ = strings.Cut(name, "@")
	for _, suffix := range []string{".gz", ".zst", ".tgz", ".tzst", ".tar"} {
		name = strings.TrimSuffix(name, suffix)
	}
	return strings.ReplaceAll(strings.TrimSuffix(name, ":latest"), ":", "-")
}

func (a *App) importFile(ctx context.Context, client *api.Client, o importOptions) error {
	name := o.source
	if !filepath.IsAbs(name) {
		name = filepath.Join(a.Dir, name)
	}
	file, err := os.Open(name)
	if err != nil {
		return fault.NotFoundf("cannot read the archive %s: %w", o.source, err)
	}
	defer file.Close()
	return a.importArchive(ctx, client, o, file)
}

func (a *App) importArchive(ctx context.Context, client *api.Client, o importOptions, archive io.Reader) error {
	return a.sendImage(ctx, client, api.UploadOptions{Name: o.name, Description: o.description, Replace: o.replace, RootFS: true}, archive)
}

// sendImage uploads an archive, with progress on a terminal.
func (a *App) sendImage(ctx context.Context, client *api.Client, o api.UploadOptions, archive io.Reader) error {
	ctx, cancel := limit(ctx, buildLimit, "upload")
	defer cancel()
	sent := &progressReader{r: io.NopCloser(archive)}
	stop := a.uploadProgress(sent, func() int64 { return 0 })
	defer stop()
	_, err := client.UploadImage(ctx, o, sent)
	return err
}

// importReference has the server get an image of a registry, and waits until that has ended.
func (a *App) importReference(ctx context.Context, client *api.Client, o importOptions) error {
	req := api.ImageRequest{ImageName: o.name, Source: api.ImageSource{Type: api.SourceDocker, ImageRef: &o.source}, Replace: o.replace}
	if o.description != "" {
		req.Description = &o.description
	}
	ctx, cancel := limit(ctx, buildLimit, "importing the image")
	defer cancel()
	if _, err := client.CreateImage(ctx, req); err != nil {
		return err
	}
	stop := a.Streams.progress("Importing '%s'", o.source)
	defer stop()
	for delay := 100 * time.Millisecond; ; delay = min(delay*3/2, 2*time.Second) {
		status, err := client.ImageStatus(ctx, o.name)
		switch {
		case err != nil:
			return err
		case status.Status == api.ImageReady:
			return nil
		case status.Status == api.ImageFailed && status.ErrorMessage != nil:
			return fault.New(fault.Internal, "importing '%s' failed: %s", o.source, *status.ErrorMessage)
		case status.Status == api.ImageFailed:
			return fault.New(fault.Internal, "importing '%s' failed", o.source)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(delay):
		}
	}
}
