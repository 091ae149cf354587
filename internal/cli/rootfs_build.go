//go:build linux

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/build/buildfs"
	"vers/internal/build/engine"
	"vers/internal/build/engine/choice"
	"vers/internal/build/engine/embedded"
	"vers/internal/fault"
	"vers/internal/ident"
)

type rootfsBuildOptions struct {
	output, register, engine    string
	sizeMiB                     int64
	noCache, keep, quietScripts bool
	quietProgress               bool // --log-level of the alias
	timeout                     time.Duration
	check                       buildfs.CheckOptions
	format                      formatFlags
}

func (a *App) rootfsBuildCommand() *cobra.Command {
	var o rootfsBuildOptions
	cmd := &cobra.Command{
		Use: "build <package>", Short: "Make a root file system of a build script",
		Long: `Run a build script's commands in a container and make a file system of what it exports. PACKAGE is a
build script alone, or a folder, .tar or .tar.gz with build.toml and its files. The first command that
fails ends the build. Nothing appears at the output before it is whole, and nothing else stays.

The outcome of the commands is kept in ~/.cache/vers/buildfs: while image, commands and their inputs
are the same, a further build runs none of them. SOURCE_DATE_EPOCH sets the time of new files.`,
		Example: `  vers rootfs build . -o rootfs.ext4
  vers rootfs build web.tar.gz --register web        # then: vers run --rootfs web
  vers rootfs build . -o web.ext4 --set container.image.tag=trixie --size-mib 512 --json`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return a.rootfsBuild(cmd.Context(), args[0], o) },
	}
	o.addFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.register, "register", "", "give the result to the server as an image of this name")
	f.StringVar(&o.engine, "engine", "", "container engine in place of the script's: auto, docker, podman or embedded")
	f.Int64Var(&o.sizeMiB, "size-mib", 0, "size of the file system in place of the script's")
	f.BoolVar(&o.noCache, "no-cache", false, "run all commands, whatever is in the cache")
	f.BoolVar(&o.keep, "keep", false, "after a command failed, write the container's files to a tar archive")
	f.DurationVar(&o.timeout, "timeout", 0, "end the build after this time, such as 10m (0 = never)")
	f.BoolVar(&o.quietScripts, "quiet-scripts", false, "do not show what the commands print")
	addCheckFlags(cmd, &o.check)
	o.format.addQuiet(cmd, "print the output's path only")
	return cmd
}

func (o *rootfsBuildOptions) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.output, "output", "o", "", "file to write")
}

// settings are the flags that stand for --set.
func (o *rootfsBuildOptions) settings() {
	if o.engine != "" {
		o.check.Set = append(o.check.Set, "container.engine="+o.engine)
	}
	if o.sizeMiB != 0 {
		o.check.Set = append(o.check.Set, fmt.Sprintf("filesystem.size_mib=%d", o.sizeMiB))
	}
}

// rootfsBuildFailure is the JSON output of a build that failed.
type rootfsBuildFailure struct {
	*buildfs.Result
	Error      string            `json:"error"`
	FailedStep string            `json:"failed_step,omitempty"`
	ExitCode   *int              `json:"exit_code,omitempty"`
	Faults     []buildfs.Problem `json:"faults,omitempty"`
}

func (a *App) rootfsBuild(ctx context.Context, path string, o rootfsBuildOptions) error {
	mode, err := o.format.mode()
	if err != nil {
		return err
	}
	if o.output == "" && o.register == "" {
		return usagef("say where the result goes: --output FILE, --register NAME, or both")
	}
	if o.register != "" && (!ident.ValidName(o.register, ident.ImageName) || o.register == "default") {
		return fault.Invalidf("'%s' cannot name an image: use 1 to 64 letters, digits, '-', '_' or '.', and not 'default'", o.register)
	}
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.timeout, fault.New(fault.Timeout, "the build took more than --timeout %v and was ended", o.timeout))
		defer cancel()
	}
	o.settings()
	result, err := a.runBuildScript(ctx, path, o, mode)
	if err != nil {
		a.showTail(err, o)
		if mode == modeJSON {
			err = errors.Join(err, printJSON(a.Streams.Out, buildFailure(result, err)))
		}
		return err
	}
	for _, w := range result.Warnings {
		a.warn("%s", w)
	}
	name := result.Output
	if name == "" {
		name = result.RegisteredAs
	}
	return a.show(mode, name, result, a.sayBuilt(result))
}

func buildFailure(result *buildfs.Result, err error) rootfsBuildFailure {
	f := rootfsBuildFailure{Result: result, Error: err.Error()}
	var step *buildfs.StepFailure
	if errors.As(err, &step) {
		f.FailedStep, f.ExitCode = step.Name, &step.Code
	}
	var check *buildfs.CheckError
	if errors.As(err, &check) {
		f.Faults = check.Report.Faults
	}
	return f
}

// showTail shows the end of a failed command's output when it was not shown before.
func (a *App) showTail(err error, o rootfsBuildOptions) {
	var step *buildfs.StepFailure
	if !o.quietScripts || !errors.As(err, &step) {
		return
	}
	for _, line := range step.Tail {
		a.Streams.note("    %s", clean(line))
	}
}

func (a *App) sayBuilt(r *buildfs.Result) func() {
	return func() {
		out := a.Streams.Out
		if r.Output != "" {
			fmt.Fprintf(out, "✓ %s: %s, %d MiB (%d MiB used), from %s\n", r.Output, r.FSType, r.SizeMiB, r.UsedMiB, r.SourceImage)
			fmt.Fprintf(out, "Content: %s\n", r.Tree)
		}
		if r.RegisteredAs != "" {
			fmt.Fprintf(out, "✓ Registered as %s; start it with: vers run --rootfs %s\n", r.RegisteredAs, r.RegisteredAs)
		}
	}
}

func (a *App) runBuildScript(ctx context.Context, path string, o rootfsBuildOptions, mode mode) (*buildfs.Result, error) {
	p, err := buildfs.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	script, report, err := p.Check(o.check)
	if err != nil {
		return nil, err
	}
	for _, w := range report.Warnings {
		a.warn("%s", w)
	}
	if err := report.Err(); err != nil {
		return nil, err
	}
	publish, err := a.publisher(script, o)
	if err != nil {
		return nil, err
	}
	opened, err := a.localEngine(ctx, script)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	sourceDate, _ := a.Env("SOURCE_DATE_EPOCH")
	options := buildfs.Options{
		Engine: opened, Output: o.output, Publish: publish, CacheDir: filepath.Join(a.cacheDir(), "buildfs"), NoCache: o.noCache,
		HostVolumes: o.check.HostVolumes, SourceDate: sourceDate,
	}
	if mode != modeQuiet && !o.quietProgress {
		options.Note = a.Streams.note
		if !o.quietScripts {
			options.Log = a.Streams.Err
		}
	}
	if o.keep {
		options.Kept = func(write func(io.Writer) error) error { return a.keepFiles(write) }
	}
	return buildfs.Build(ctx, p, script, options)
}

// keepFiles writes what --keep asks for.
func (a *App) keepFiles(write func(io.Writer) error) error {
	file, err := os.CreateTemp("", "vers-rootfs-*.tar")
	if err != nil {
		return fmt.Errorf("keep the container's files: %w", err)
	}
	if err := errors.Join(write(file), file.Close()); err != nil {
		return fmt.Errorf("keep the container's files: %w", errors.Join(err, os.Remove(file.Name())))
	}
	a.Streams.note("The container's files, as they are after the failure: %s", file.Name())
	return nil
}

func (a *App) cacheDir() string {
	if dir, _ := a.Env("XDG_CACHE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "vers")
	}
	return filepath.Join(a.Home, ".cache", "vers")
}

// localEngine opens the engine that a script wants on this machine.
func (a *App) localEngine(ctx context.Context, s *buildfs.Script) (engine.Engine, error) {
	e, err := choice.Open(ctx, choice.Options{Engine: s.Container.Engine, Socket: s.Container.ConnectionURI, Look: true, Embedded: embedded.Options{
		Dir: filepath.Join(a.cacheDir(), "builder"), Store: "local", AuthFile: filepath.Join(a.Home, ".docker", "config.json"),
		// The user's own commands may reach what the user may; never this machine's own services.
		Egress: embedded.Egress{Mode: "internet", Allow: []string{"0.0.0.0/0", "::/0"}},
	}})
	if err != nil {
		return nil, fault.New(fault.KindOf(err), "container engine %s: %w; another one can be taken with --engine or container.engine", s.Container.Engine, err)
	}
	return e, nil
}

// publisher registers the result, and tries it in a VM, as asked for. It is nil when neither is.
func (a *App) publisher(s *buildfs.Script, o rootfsBuildOptions) (func(context.Context, func(io.Writer) error, *buildfs.Result) error, error) {
	boot := s.Checks.Boot || len(s.Checks.Commands) > 0
	if o.register == "" && !boot {
		return nil, nil
	}
	if o.register != "" && !strings.EqualFold(s.Filesystem.Type, "ext4") {
		return nil, fault.Invalidf("VMs boot from ext4, so that a file system of type %s cannot be registered", s.Filesystem.Type)
	}
	client, err := a.api()
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, write func(io.Writer) error, r *buildfs.Result) error {
		if boot {
			if err := a.checkInVM(ctx, client, s.Checks, api.UploadOptions{RootFS: true, SizeMiB: int64(s.Filesystem.SizeMiB), Keep: r.Keep}, write); err != nil {
				return err
			}
		}
		if o.register == "" {
			return nil
		}
		a.Streams.note("Registering %s", o.register)
		if err := a.upload(ctx, client, api.UploadOptions{RootFS: true, Name: o.register, SizeMiB: int64(s.Filesystem.SizeMiB), Replace: true, Keep: r.Keep}, write); err != nil {
			return err
		}
		r.RegisteredAs = o.register
		if image, err := client.Image(ctx, o.register); err == nil && r.SizeMiB == 0 {
			r.SizeMiB = image.SizeMiB
		}
		return nil
	}, nil
}

// upload sends an archive while it is written.
func (a *App) upload(ctx context.Context, client *api.Client, o api.UploadOptions, write func(io.Writer) error) error {
	r, w := io.Pipe()
	written := make(chan struct{})
	go func() {
		defer close(written)
		w.CloseWithError(write(w))
	}()
	err := a.sendImage(ctx, client, o, r)
	r.CloseWithError(io.ErrClosedPipe)
	<-written
	if err != nil {
		return fmt.Errorf("register %s: %w", o.Name, err)
	}
	return nil
}
