package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/build/source"
	"vers/internal/cli/archive"
	"vers/internal/fault"
)

// buildCommitOptions are the flags of build's commit mode (spec/cli.md 6.6).
type buildCommitOptions struct {
	path         string
	file         string
	tag          string
	target       string
	args         []string
	noCache      bool
	keep         bool
	ready        string
	readyTimeout time.Duration
	mem, vcpus   int64
	disk, disk2  int64
	kernel       string
	rootfs       string // what FROM scratch is
}

// commitFlags are those that rootfs mode does not have: any of them chooses commit mode.
var commitFlags = []string{"file", "tag", "target", "no-cache", "keep", "build-arg", "ready", "ready-timeout",
	"mem-size", "vcpu-count", "fs-size-vm-mib", "fs-size-vm", "kernel"}

func (o *buildCommitOptions) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&o.file, "file", "f", "", "commit mode: Dockerfile, relative to the folder (default: Dockerfile)")
	f.StringVarP(&o.tag, "tag", "t", "", "commit mode: name of the commit, repo:tag or a plain tag; one that exists moves")
	f.StringVar(&o.target, "target", "", "commit mode: stage to build (default: the last)")
	f.StringArrayVar(&o.args, "build-arg", nil, "commit mode: KEY=VALUE for ARG, or KEY to take it from here (repeatable)")
	f.BoolVar(&o.noCache, "no-cache", false, "commit mode: run every step again")
	f.BoolVar(&o.keep, "keep", false, "commit mode: leave the VM of the build, also when it fails")
	f.StringVar(&o.ready, "ready", "", "commit mode: command that is tried in the VM until it succeeds, before the commit")
	f.DurationVar(&o.readyTimeout, "ready-timeout", 5*time.Minute, "commit mode: how long it is tried")
	f.Int64Var(&o.mem, "mem-size", 0, "commit mode: memory in MiB, of machines that no commit gives their sizes")
	f.Int64Var(&o.vcpus, "vcpu-count", 0, "commit mode: virtual CPUs")
	f.Int64Var(&o.disk, "fs-size-vm-mib", 0, "commit mode: disk in MiB")
	f.Int64Var(&o.disk2, "fs-size-vm", 0, "same as --fs-size-vm-mib")
	f.StringVar(&o.kernel, "kernel", "", "commit mode: kernel")
}

// chosen reports whether commit mode is meant: a folder or one of its own flags is given.
func (o *buildCommitOptions) chosen(cmd *cobra.Command, args []string) bool {
	if len(args) > 0 {
		return true
	}
	for _, name := range commitFlags {
		if cmd.Flags().Changed(name) {
			return true
		}
	}
	return false
}

func (a *App) buildCommit(ctx context.Context, o buildCommitOptions, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	dir, dockerfile, err := a.buildFolder(o)
	if err != nil {
		return err
	}
	options, err := a.commitBuildOptions(o)
	if err != nil {
		return err
	}
	options.Dockerfile = dockerfile
	client, err := a.api()
	if err != nil {
		return err
	}
	progress := buildProgress{streams: a.Streams, quiet: mode == modeQuiet}
	built, err := a.sendCommitBuild(ctx, client, dir, options, progress.event)
	progress.end()
	var failed *api.CommitBuildError
	if errors.As(err, &failed) && failed.BuilderVMID != nil {
		a.Streams.note("The VM of the build was kept: %s", *failed.BuilderVMID)
	}
	if err != nil {
		return err
	}
	return a.show(mode, built.CommitID, built, func() { a.showCommitBuild(built) })
}

// buildFolder checks the folder and gives the Dockerfile's path in it.
func (a *App) buildFolder(o buildCommitOptions) (dir, dockerfile string, err error) {
	dir = o.path
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(a.Dir, dir)
	}
	switch info, err := os.Stat(dir); {
	case err != nil:
		return "", "", fault.Invalidf("the folder '%s' cannot be built: %w", o.path, reasonOf(err))
	case !info.IsDir():
		return "", "", fault.Invalidf("'%s' is no folder; name the folder that holds the Dockerfile, and the Dockerfile with --file", o.path)
	}
	file := o.file
	if file == "" {
		file = "Dockerfile"
	}
	if filepath.IsAbs(file) {
		if file, err = filepath.Rel(dir, file); err != nil {
			return "", "", fault.Invalidf("Dockerfile '%s': %w", o.file, err)
		}
	}
	if !filepath.IsLocal(file) {
		return "", "", fault.Invalidf("Dockerfile '%s' is not in the folder '%s', which is all that is sent to the server", o.file, o.path)
	}
	if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.IsDir() {
		return "", "", fault.Invalidf("Dockerfile '%s' not found in '%s'; use --file to name another, relative to that folder", file, o.path)
	}
	return dir, filepath.ToSlash(filepath.Clean(file)), nil
}

// reasonOf drops the path from a file system error, because the message has it already.
func reasonOf(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// commitBuildOptions takes sizes from the flags, else from vers.toml.
func (a *App) commitBuildOptions(o buildCommitOptions) (api.CommitBuildOptions, error) {
	project, err := a.project(false)
	if err != nil {
		return api.CommitBuildOptions{}, err
	}
	if o.disk == 0 {
		o.disk = o.disk2
	}
	asked := o.disk
	for _, size := range []struct {
		name  string
		value *int64
		file  int64
	}{{"mem-size", &o.mem, project.Machine.MemSizeMiB}, {"vcpu-count", &o.vcpus, project.Machine.VCPUCount}, {"fs-size-vm-mib", &o.disk, project.Machine.FSSizeMiB}} {
		if *size.value < 0 {
			return api.CommitBuildOptions{}, fault.Invalidf("--%s is %d; it must be positive", size.name, *size.value)
		}
		if *size.value == 0 {
			*size.value = size.file
		}
	}
	if asked == 0 && !project.FSSizeGiven {
		o.disk = 0 // as large as the image needs
	}
	if o.rootfs == "" {
		o.rootfs = project.RootFS.Name
	}
	if o.kernel == "" {
		o.kernel = project.Kernel.Name
	}
	if o.readyTimeout <= 0 {
		return api.CommitBuildOptions{}, fault.Invalidf("--ready-timeout is %v; it must be positive", o.readyTimeout)
	}
	args := map[string]string{}
	for _, pair := range o.args {
		name, value, ok := strings.Cut(pair, "=")
		if name == "" {
			return api.CommitBuildOptions{}, fault.Invalidf("--build-arg '%s' is not KEY=VALUE", pair)
		}
		if !ok {
			var set bool
			if value, set = a.Env(name); !set {
				continue // as if it had not been given
			}
		}
		args[name] = value
	}
	return api.CommitBuildOptions{Tag: o.tag, Target: o.target, Args: args, NoCache: o.noCache, Keep: o.keep, Ready: o.ready, ReadyTimeout: o.readyTimeout,
		Config: api.VMConfig{MemSizeMiB: &o.mem, VCPUCount: &o.vcpus, FSSizeMiB: &o.disk, ImageName: &o.rootfs, KernelName: &o.kernel}}, nil
}

// sendCommitBuild sends the folder as it is read, and follows the build.
func (a *App) sendCommitBuild(ctx context.Context, client *api.Client, dir string, o api.CommitBuildOptions, each func(api.CommitBuildEvent)) (built api.CommitBuild, err error) {
	skip, err := leftOut(dir, o.Dockerfile)
	if err != nil {
		return built, err
	}
	err = a.sendFolder(ctx, archive.Folder{Dir: dir, Skip: skip, Warn: a.warn}, func(r io.Reader, stop func()) (err error) {
		built, err = client.BuildCommit(ctx, o, r, func(e api.CommitBuildEvent) {
			stop()
			each(e)
		})
		return err
	})
	return built, err
}

// leftOut says what of a folder is not sent: .vers, and what the ignore file names, but for the Dockerfile and that file.
func leftOut(dir, dockerfile string) (func(name string, dir bool) bool, error) {
	needed := []string{dockerfile, source.OwnIgnoreFile(dockerfile), source.IgnoreFile}
	var ignore source.Matcher
	for _, name := range needed[1:] {
		data, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fault.Invalidf("cannot read %s: %w", name, reasonOf(err))
		}
		if ignore, err = source.ParseIgnore(data); err != nil {
			return nil, err
		}
		break
	}
	return func(name string, dir bool) bool {
		if dir && name == ".vers" {
			return true
		}
		ignored, err := ignore.Ignores(name)
		if err != nil || !ignored { // the server says what is wrong with the file
			return false
		}
		return !slices.ContainsFunc(needed, func(n string) bool {
			return n == name || dir && (ignore.Excepts() || strings.HasPrefix(n, name+"/"))
		})
	}, nil
}

// buildProgress shows a build on stderr, step by step.
type buildProgress struct {
	streams *Streams
	quiet   bool
	open    bool // the last output of a step did not end its line
}

func (p *buildProgress) event(e api.CommitBuildEvent) {
	if p.quiet && e.Type != api.CommitBuildWarning {
		return
	}
	if e.Type == api.CommitBuildLog {
		_, _ = p.streams.Err.Write(e.Data)
		p.open = len(e.Data) > 0 && e.Data[len(e.Data)-1] != '\n'
		return
	}
	p.end()
	switch e.Type {
	case api.CommitBuildStep:
		p.streams.note("Step %d/%d : %s", e.Number, e.Total, clean(e.Text))
	case api.CommitBuildCached:
		p.streams.note(" ---> Using cache")
	case api.CommitBuildDone:
		p.streams.note(" ---> Done in %.1fs", (time.Duration(e.DurationMS) * time.Millisecond).Seconds())
	case api.CommitBuildNotice:
		p.streams.note(" ---> %s", clean(e.Text))
	case api.CommitBuildWarning:
		p.streams.note("Warning: %s", clean(e.Text))
	}
}

// end ends a line that a step has left open.
func (p *buildProgress) end() {
	if p.open {
		fmt.Fprintln(p.streams.Err)
	}
	p.open = false
}

func (a *App) showCommitBuild(b api.CommitBuild) {
	how := "built"
	if b.Cached {
		how = "is up to date"
	}
	a.say("✓ Commit %s %s", b.CommitID, how)()
	a.fields([][2]string{
		{"Commit ID", b.CommitID}, {"Tag", orNothing(b.Tag)}, {"Steps", fmt.Sprintf("%d (%d cached)", b.Steps, b.CachedSteps)},
		{"Builder VM", orNothing(b.BuilderVMID)}, {"Entrypoint", strings.Join(b.Entrypoint, " ")}, {"Command", strings.Join(b.Cmd, " ")},
		{"Exposed ports", strings.Join(b.ExposedPorts, ", ")},
	})()
}

func orNothing(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
