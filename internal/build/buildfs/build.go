package buildfs

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"vers/internal/build/engine"
	"vers/internal/fault"
	"vers/internal/rootfs"
)

// Options of Build.
type Options struct {
	Engine engine.Engine
	Output string // path of the image; "" when only Publish is wanted
	// Publish is called with the finished content before Output appears: to register it, or to try it. It may be nil.
	// write writes the archive of the file system, as often as it is called.
	Publish     func(ctx context.Context, write func(io.Writer) error, r *Result) error
	CacheDir    string // "": no cache
	NoCache     bool   // run all commands, and keep the outcome
	HostVolumes bool
	Limits      engine.Limits
	SourceDate  string                           // SOURCE_DATE_EPOCH, in seconds; "" none
	Note        func(format string, args ...any) // what is under way
	Log         io.Writer                        // output of the commands; nil: none
	// Kept is called after a command failed, with an archive of the container's files as they are then. It may be nil.
	Kept func(write func(io.Writer) error) error
}

// Result of a build, the JSON of `vers rootfs build`.
type Result struct {
	Output       string   `json:"output"`
	RegisteredAs string   `json:"registered_as"`
	SizeMiB      int64    `json:"size_mib"`
	UsedMiB      int64    `json:"used_mib"`
	FSType       string   `json:"fs_type"`
	SHA256       string   `json:"sha256"` // of the file
	Tree         string   `json:"tree"`   // of names, modes, owners, times, attributes and contents
	SourceImage  string   `json:"source_image"`
	SourceDigest string   `json:"source_digest"`
	Engine       string   `json:"engine"`
	Cached       bool     `json:"cached"` // no command ran
	Steps        []Step   `json:"steps"`
	DurationMS   int64    `json:"duration_ms"`
	Warnings     []string `json:"warnings"`
	// Keep are overlays in the place of rootfs.Mended files, which who publishes the result must not mend.
	Keep []string `json:"-"`
}

// Step is a command that ran.
type Step struct {
	Name       string `json:"name"`
	ExitCode   int    `json:"exit_code"`
	DurationMS int64  `json:"duration_ms"`
	Cached     bool   `json:"cached"`
}

// builder is one build.
type builder struct {
	Options
	pkg        *Package
	script     *Script
	image      engine.Image
	steps      []step
	sourceDate *time.Time
	work       string // temporary folder, or the cache
	result     *Result
}

// Build makes the file system of a script that Check found without faults. What is at o.Output stays as it is until the
// new file is whole; whatever the build made besides is gone when it returns, also after an error or the end of ctx. A
// command that fails is a [StepFailure]. The result is never nil, and says how far the build came.
func Build(ctx context.Context, p *Package, s *Script, o Options) (*Result, error) {
	started := time.Now()
	b := &builder{Options: o, pkg: p, script: s, result: &Result{
		FSType: s.Filesystem.Type, SourceImage: s.Container.Image.String(), Engine: o.Engine.Name(), Steps: []Step{}, Warnings: []string{},
	}}
	if b.Note == nil {
		b.Note = func(string, ...any) {}
	}
	err := b.build(ctx)
	b.result.DurationMS = time.Since(started).Milliseconds()
	return b.result, err
}

func (b *builder) build(ctx context.Context) (err error) {
	if b.sourceDate, err = parseSourceDate(b.SourceDate); err != nil {
		return err
	}
	if b.steps, err = b.pkg.steps(b.script, b.SourceDate); err != nil {
		return err
	}
	if b.work = b.CacheDir; b.work == "" {
		b.work = os.TempDir()
	} else if err := os.MkdirAll(b.work, 0o700); err != nil {
		return fmt.Errorf("make the cache: %w", err)
	}
	if err := b.resolve(ctx); err != nil {
		return err
	}
	st, err := b.containerState(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	c, err := newContent(ctx, b.pkg, b.script, st, b.sourceDate)
	if err != nil {
		return err
	}
	b.result.Warnings = append(b.result.Warnings, c.warnings...)
	return b.finish(ctx, c)
}

func parseSourceDate(text string) (*time.Time, error) {
	if text == "" {
		return nil, nil
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil || seconds < 0 || seconds > math.MaxUint32 {
		return nil, fault.Invalidf("SOURCE_DATE_EPOCH is %q, but must be a number of seconds since 1970", text)
	}
	at := time.Unix(seconds, 0).UTC()
	return &at, nil
}

func (b *builder) resolve(ctx context.Context) (err error) {
	i := b.script.Container.Image
	b.Note("Image %s with engine %s", i, b.Engine.Name())
	b.image, err = b.Engine.Resolve(ctx, engine.Reference{Name: i.String(), Platform: i.Platform, Pull: engine.Pull(i.Pull)})
	if err != nil {
		return fault.New(fault.KindOf(err), "container.image: %w", err)
	}
	b.result.SourceDigest = b.image.Digest
	b.Note("Image is %s", b.image.Digest)
	return nil
}

// containerState runs the commands, unless the cache has what they lead to.
func (b *builder) containerState(ctx context.Context) (*state, error) {
	key, err := b.key(ctx)
	if err != nil {
		return nil, err
	}
	store := cache{b.CacheDir}
	cached := b.CacheDir != "" && !b.HostVolumes // what the host's folders hold is not in the key
	if cached && !b.NoCache {
		if st := store.find(key); st != nil {
			b.Note("%d commands are answered from the cache (--no-cache runs them)", len(b.steps))
			for _, s := range st.steps {
				s.Cached = true
				b.result.Steps = append(b.result.Steps, s)
			}
			b.result.Cached = true
			return st, nil
		}
	}
	st, err := b.run(ctx)
	if err != nil || !cached {
		return st, err
	}
	if err := store.keep(key, st, b.result.SourceImage); err != nil {
		b.result.Warnings = append(b.result.Warnings, fmt.Sprintf("the outcome of the commands is not kept in the cache: %v", err))
	}
	return st, nil
}

// key stands for everything that the container's state depends on.
func (b *builder) key(ctx context.Context) (string, error) {
	k := b.script.Container
	mounted, err := b.pkg.overlaysDigest(ctx, b.script.Overlays)
	if err != nil {
		return "", err
	}
	volumes := map[string]string{}
	for source, destination := range k.Volumes {
		if b.HostVolumes {
			continue
		}
		digest, err := b.pkg.volumeDigest(ctx, source)
		if err != nil {
			return "", err
		}
		volumes[destination] = digest
	}
	type keyStep struct {
		Command engine.Command
		Script  string
		Allow   bool
	}
	steps := make([]keyStep, len(b.steps))
	for i, s := range b.steps {
		s.Command.Timeout = 0
		steps[i] = keyStep{s.Command, digestOf(s.Script), s.AllowFailure}
	}
	data, err := json.Marshal([]any{1, b.image.Digest, k.Env, k.Hostname, k.Network, k.Rootful, k.CapAdd, k.CapDrop, k.OCIRuntime, mounted, volumes, steps})
	return digestOf(data), err
}

// run starts the container, runs the commands and saves what they leave.
func (b *builder) run(ctx context.Context) (st *state, err error) {
	if limit := b.script.Container.Timeout; limit != nil {
		d := time.Duration(*limit) * time.Second
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, d, fault.New(fault.Timeout, "container.timeout: the commands took more than %v", d))
		defer cancel()
		defer func() {
			if cause := context.Cause(ctx); err != nil && ctx.Err() != nil {
				err = cause
			}
		}()
	}
	c, err := b.container()
	if err != nil {
		return nil, err
	}
	started := time.Now()
	session, err := b.Engine.Start(ctx, c)
	if err != nil {
		if c.Privileged {
			return nil, fault.New(fault.KindOf(err), "start the container: %w\ncontainer.rootful = true asks for a privileged container, which an engine refuses that has user namespaces, or not all capabilities itself; try rootful = false", err)
		}
		return nil, fmt.Errorf("start the container: %w", err)
	}
	defer func() { err = errors.Join(err, session.Close()) }()
	if err := b.copyIn(ctx, session); err != nil {
		return nil, err
	}
	for i := range b.steps {
		if err := b.step(ctx, session, i); err != nil {
			if b.Kept != nil && ctx.Err() == nil {
				err = errors.Join(err, b.Kept(func(w io.Writer) error { return session.Export(ctx, w) }))
			}
			return nil, err
		}
	}
	path, err := save(ctx, session, b.work)
	if err != nil {
		return nil, err
	}
	return &state{path: path, started: started, temp: true, steps: b.result.Steps}, nil
}

func (b *builder) container() (engine.Container, error) {
	k := b.script.Container
	c := engine.Container{
		Image: b.image, Env: k.Env, Hostname: k.Hostname, Network: engine.Network(k.Network), Privileged: k.Rootful,
		CapAdd: k.CapAdd, CapDrop: k.CapDrop, Runtime: k.OCIRuntime, Limits: b.Limits,
	}
	for source, destination := range k.Volumes {
		m := engine.Mount{Source: source, Destination: destination}
		if !b.HostVolumes {
			var err error
			if m.Source, err = b.pkg.hostPath(source); err != nil {
				return c, err
			}
			m.ReadOnly = true
		}
		c.Mounts = append(c.Mounts, m)
	}
	slices.SortFunc(c.Mounts, func(a, b engine.Mount) int { return len(a.Destination) - len(b.Destination) })
	return c, nil
}

// copyIn puts scripts and mounted overlays into the container; bind mounts would need an engine on this machine.
func (b *builder) copyIn(ctx context.Context, session engine.Session) error {
	r, w := io.Pipe()
	go func() {
		archive := tar.NewWriter(w)
		err := writeScripts(b.steps, archive)
		for i := range b.script.Overlays {
			if o := &b.script.Overlays[i]; err == nil && o.Mounted {
				err = b.pkg.overlayEntries(ctx, o, packTime, func(e overlayEntry) error { return e.write(archive) })
			}
		}
		w.CloseWithError(errors.Join(err, archive.Close()))
	}()
	err := session.CopyIn(ctx, r)
	r.Close()
	if err != nil {
		return fmt.Errorf("copy scripts and overlays into the container: %w", err)
	}
	return nil
}

func (b *builder) step(ctx context.Context, session engine.Session, i int) error {
	s := b.steps[i]
	b.Note("[%d/%d] %s", i+1, len(b.steps), s.Name)
	started := time.Now()
	output := &tailWriter{out: b.Log, prefix: "    "}
	s.Command.Stdout, s.Command.Stderr = output, output
	code, err := session.Exec(ctx, s.Command)
	output.end()
	b.result.Steps = append(b.result.Steps, Step{Name: s.Name, ExitCode: code, DurationMS: time.Since(started).Milliseconds()})
	switch {
	case err != nil && fault.Is(err, fault.Timeout) && ctx.Err() == nil:
		if s.AllowFailure {
			b.Note("command %d ran out of time, which is allowed", i+1)
			return nil
		}
		return fault.New(fault.Timeout, "command %d of %d (%s) took more than its timeout_s, %v", i+1, len(b.steps), s.Name, s.Command.Timeout)
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("command %d of %d (%s): %w", i+1, len(b.steps), s.Name, err)
	case code != 0 && s.AllowFailure:
		b.Note("command %d ended with code %d, which is allowed", i+1, code)
	case code != 0:
		return &StepFailure{Number: i + 1, Of: len(b.steps), Name: s.Name, Code: code, Tail: output.lines}
	}
	return nil
}

// finish writes the file, publishes, and gives the file its name.
func (b *builder) finish(ctx context.Context, c *content) error {
	temp := ""
	if b.Output != "" {
		dir, err := os.MkdirTemp(filepath.Dir(b.Output), "."+filepath.Base(b.Output)+".")
		if err != nil {
			return fmt.Errorf("write %s: %w", b.Output, err)
		}
		defer os.RemoveAll(dir)
		temp = filepath.Join(dir, "image")
		if err := b.writeImage(ctx, c, temp); err != nil {
			return err
		}
	}
	b.result.Keep = c.kept()
	if b.Publish != nil {
		if err := b.Publish(ctx, func(w io.Writer) error { return c.write(ctx, w) }, b.result); err != nil {
			return err
		}
	}
	if temp == "" {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if err := os.Rename(temp, b.Output); err != nil {
		return fmt.Errorf("put the file into place: %w", err)
	}
	b.result.Output = b.Output
	return nil
}

func (b *builder) writeImage(ctx context.Context, c *content, path string) error {
	f := b.script.Filesystem
	b.Note("Writing %s", f.Type)
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.CloseWithError(c.write(ctx, w))
	}()
	made, err := rootfs.Write(ctx, r, path, rootfs.Options{
		Type: f.kind(), SizeBytes: int64(f.SizeMiB) << 20, HeadroomBytes: f.headroom() << 20, Label: f.Label, UUID: f.UUID,
		MkfsArgs: f.MkfsArgs, Bootable: b.script.Guest.Prepared(), Keep: c.kept(),
	})
	r.CloseWithError(errors.Join(err, io.ErrClosedPipe))
	<-done
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("make the file system: %w", err)
	}
	const mib = 1 << 20
	b.result.SizeMiB, b.result.UsedMiB, b.result.Tree = made.SizeBytes/mib, (made.UsedBytes+mib-1)/mib, made.Tree
	b.result.Warnings = append(b.result.Warnings, made.Warnings...)
	b.result.SHA256, err = fileDigest(ctx, path)
	return err
}

func fileDigest(ctx context.Context, path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.CopyBuffer(sum, readerWithContext{ctx, file}, make([]byte, 1<<20)); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
