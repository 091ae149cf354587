package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"vers/api"
	"vers/internal/cli/archive"
	"vers/internal/config"
	"vers/internal/fault"
	"vers/internal/ident"
)

// buildLimit is for upload and build together (spec/cli.md 6.5).
const buildLimit = 10 * time.Minute

// buildResult is the JSON output of build.
type buildResult struct {
	RootfsName string `json:"rootfs_name"`
	Skipped    bool   `json:"skipped"`
	Reason     string `json:"reason,omitempty"`
	SizeMiB    int64  `json:"size_mib,omitempty"`
	Digest     string `json:"digest,omitempty"`
	DurationMS int64  `json:"duration_ms"`
}

// buildRootfs builds the Dockerfile of the working folder. Empty names are those of vers.toml.
func (a *App) buildRootfs(ctx context.Context, rootfs, dockerfile string) (buildResult, error) {
	began := time.Now()
	project, err := a.project(true)
	if err != nil {
		return buildResult{}, err
	}
	if rootfs == "" {
		rootfs = project.RootFS.Name
	}
	if dockerfile == "" {
		dockerfile = project.Builder.Dockerfile
	}
	if project.Builder.Name == "none" {
		return buildResult{RootfsName: rootfs, Skipped: true, Reason: "the builder is 'none' in " + project.File}, nil
	}
	if dockerfile, err = a.checkBuild(project, rootfs, dockerfile); err != nil {
		return buildResult{}, err
	}
	client, err := a.api()
	if err != nil {
		return buildResult{}, err
	}
	built, err := a.sendBuild(ctx, client, api.BuildOptions{Name: rootfs, Dockerfile: dockerfile})
	if err != nil {
		return buildResult{}, err
	}
	return buildResult{RootfsName: built.RootfsName.RootfsName, SizeMiB: built.Image.SizeMiB, Digest: built.Image.Digest,
		DurationMS: time.Since(began).Milliseconds()}, nil
}

// checkBuild refuses what cannot be built, in the order of spec/cli.md 6.5, and gives the Dockerfile's path in the folder.
func (a *App) checkBuild(project config.Project, rootfs, dockerfile string) (string, error) {
	switch {
	case project.Builder.Name != "docker":
		return "", fault.Invalidf("unsupported builder: %s (only 'docker' is currently supported); set builder.name = \"docker\" in vers.toml", project.Builder.Name)
	case rootfs == config.DefaultProject().RootFS.Name:
		return "", fault.Invalidf("cannot build a rootfs named '%s', which is protected: set rootfs.name in vers.toml (or --rootfs) to something other than \"%s\", or builder.name to \"none\"", rootfs, rootfs)
	}
	path := dockerfile
	if !filepath.IsAbs(path) {
		path = filepath.Join(a.Dir, path)
	}
	if info, err := os.Stat(path); err != nil || info.IsDir() {
		return "", fault.Invalidf("Dockerfile '%s' not found in current directory; use --dockerfile to specify the correct path", dockerfile)
	}
	below, err := filepath.Rel(a.Dir, path)
	if err != nil || !filepath.IsLocal(below) {
		return "", fault.Invalidf("Dockerfile '%s' is not in the current directory, which is all that is sent to the server; use --dockerfile to name one that is", dockerfile)
	}
	if !ident.ValidName(rootfs, ident.ImageName) {
		return "", fault.Invalidf("invalid image name '%s': use 1 to %d letters, digits, '-', '_' or '.'", rootfs, ident.ImageName)
	}
	return filepath.ToSlash(below), nil
}

// projectFiles leaves out what belongs to the command line and not to the project.
func projectFiles(name string, dir bool) bool {
	return name == ".vers" && dir || name == config.ProjectFile && !dir
}

// sendBuild sends the working folder as it is read, and follows the build.
func (a *App) sendBuild(ctx context.Context, client *api.Client, o api.BuildOptions) (api.RootfsBuilt, error) {
	ctx, cancel := limit(ctx, buildLimit, "upload and build")
	defer cancel()
	a.Streams.note("Archiving and uploading this folder as rootfs '%s'", o.Name)
	folder := archive.Folder{Dir: a.Dir, Skip: projectFiles, Warn: a.warn}
	var err error
	if o.Folder, err = digestOfKnown(ctx, client, o.Name, folder); err != nil {
		return api.RootfsBuilt{}, err
	}
	var built api.RootfsBuilt
	err = a.sendFolder(ctx, folder, func(r io.Reader, stop func()) (err error) {
		built, err = client.BuildImage(ctx, o, r, func(text string) {
			stop()
			fmt.Fprint(a.Streams.Err, text)
		})
		return err
	})
	return built, err
}

// digestOfKnown reads the folder if the server has an image of that name: it may have been built of the same, and nothing
// need be sent then.
func digestOfKnown(ctx context.Context, client *api.Client, name string, folder archive.Folder) (string, error) {
	switch _, err := client.Image(ctx, name); {
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case err != nil && api.StatusOf(err) == 0:
		return "", err
	case err != nil:
		return "", nil // there is none; or the build will say what is wrong
	}
	return folder.Digest(ctx)
}

// sendFolder has a folder sent as it is read, with progress until stop is called.
func (a *App) sendFolder(ctx context.Context, folder archive.Folder, send func(r io.Reader, stop func()) error) error {
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := folder.Write(ctx, w)
		w.CloseWithError(err)
		written <- err
	}()
	sent := &progressReader{r: r}
	stop := a.uploadProgress(sent, folder.Size)
	err := send(sent, stop)
	stop()
	r.CloseWithError(io.ErrClosedPipe) // the server may have answered before it had read everything
	if broken := <-written; broken != nil && !errors.Is(broken, io.ErrClosedPipe) && ctx.Err() == nil {
		return broken // it says more than what the server makes of half an archive
	}
	return err
}

// progressReader counts what is sent.
type progressReader struct {
	r io.ReadCloser
	n atomic.Int64
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.n.Add(int64(n))
	return n, err
}

func (p *progressReader) Close() error { return p.r.Close() }

// uploadProgress shows on a terminal how much was sent of about how much, until stop is called.
func (a *App) uploadProgress(sent *progressReader, size func() int64) (stop func()) {
	if !a.Streams.ErrTTY {
		return func() {}
	}
	var total atomic.Int64
	go func() { total.Store(size()) }()
	return a.Streams.progressOf(func() string {
		text := "Uploading " + mebibytes(sent.n.Load())
		if all := total.Load(); all > 0 {
			text += " of " + mebibytes(max(all, sent.n.Load()))
		}
		return text
	})
}

func mebibytes(bytes int64) string {
	return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(bytes)/(1<<20)), ".0") + " MiB"
}
