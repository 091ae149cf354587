// Package fake is an engine in memory, for tests of what uses one: images are lists of files, a Dockerfile's steps are
// carried out as far as files and metadata go, and RUN runs nothing but the few words below.
//
//	RUN echo TEXT    prints TEXT
//	RUN exit N       ends the build, unless N is 0
//	RUN hang         waits until it is cancelled
package fake

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"vers/internal/build/engine"
	"vers/internal/fault"
)

// Engine is the fake. The zero value is not ready, see New.
type Engine struct {
	mu     sync.Mutex
	images map[string]image // by name and by id
	hook   func(ctx context.Context, step string) error
	built  map[string]string // ids of images, by what they were built from
	builds int
	sweeps int
}

type image struct {
	files  map[string]file
	config engine.Config
}

type file struct {
	header tar.Header
	data   []byte
}

// New makes an engine that has nothing but the image "base:1", with one file.
func New() *Engine {
	base := image{files: map[string]file{"etc/os-release": {tar.Header{Name: "etc/os-release", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("ID=fake\n")}},
		config: engine.Config{Env: []string{"PATH=" + defaultPath}}}
	return &Engine{images: map[string]image{"base:1": base}, built: map[string]string{}}
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// SetHook calls hook before every step of a build, and with "export" before an export. An error of it ends the build.
func (e *Engine) SetHook(hook func(ctx context.Context, step string) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hook = hook
}

// Sweeps says how often Sweep was called.
func (e *Engine) Sweeps() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sweeps
}

// Running says how many builds are under way.
func (e *Engine) Running() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.builds
}

func (e *Engine) before(ctx context.Context, step string) error {
	e.mu.Lock()
	hook := e.hook
	e.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, step); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Name implements engine.Engine.
func (e *Engine) Name() string { return engine.Embedded }

// Capabilities implements engine.Engine.
func (e *Engine) Capabilities(context.Context) (engine.Capabilities, error) {
	return engine.Capabilities{Engine: engine.Embedded, Version: "fake", Isolation: "none", Cancel: true}, nil
}

// Close implements engine.Engine.
func (e *Engine) Close() error { return nil }

// Sweep implements engine.Engine.
func (e *Engine) Sweep(context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sweeps++
	return nil
}

// Build implements engine.Engine.
func (e *Engine) Build(ctx context.Context, b engine.Build) (engine.Image, error) {
	e.mu.Lock()
	e.builds++
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.builds--
	}()
	if b.Log == nil {
		b.Log = io.Discard
	}
	if known, err := e.Recall(ctx, b); err == nil && !b.NoCache {
		return known, nil
	}
	text, err := os.ReadFile(filepath.Join(b.Context, b.Dockerfile))
	if err != nil {
		return engine.Image{}, err
	}
	now := image{files: map[string]file{}}
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		for name, value := range b.Args {
			line = strings.ReplaceAll(line, "${"+name+"}", value)
		}
		fmt.Fprintf(b.Log, "STEP %s\n", line)
		if err := e.before(ctx, line); err != nil {
			return engine.Image{}, err
		}
		if now, err = e.step(ctx, b, now, line, i+1); err != nil {
			return engine.Image{}, err
		}
	}
	kept := e.keep(now)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.built[e.key(b)] = kept.ID
	return kept, nil
}

// key is all that a build depends on: its folder, its options, and what names stand for.
func (e *Engine) key(b engine.Build) string {
	key := fmt.Sprintf("%s %s %v %s\n", b.Inputs, b.Dockerfile, b.Args, b.Target)
	for _, name := range slices.Sorted(maps.Keys(e.images)) {
		if !strings.HasPrefix(name, "sha256:") {
			key += name + " " + digest(e.images[name]) + "\n"
		}
	}
	return key
}

// Recall implements engine.Recaller.
func (e *Engine) Recall(_ context.Context, b engine.Build) (engine.Image, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	id, ok := e.built[e.key(b)]
	found, here := e.images[id]
	if b.Inputs == "" || !ok || !here {
		return engine.Image{}, fault.NotFoundf("this has not been built before")
	}
	return engine.Image{ID: id, Digest: id, Config: found.config}, nil
}

// Forget removes what was built, as somebody who tidies up an engine's store does.
func (e *Engine) Forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.DeleteFunc(e.images, func(name string, _ image) bool { return strings.HasPrefix(name, "sha256:") })
}

func (e *Engine) step(ctx context.Context, b engine.Build, now image, line string, number int) (image, error) {
	word, rest, _ := strings.Cut(line, " ")
	rest = strings.TrimSpace(rest)
	switch strings.ToUpper(word) {
	case "FROM":
		name := strings.Fields(rest)[0]
		if name == "scratch" {
			return image{files: map[string]file{}}, nil
		}
		found, err := e.find(name)
		found.files, found.config.Env = maps.Clone(found.files), slices.Clone(found.config.Env)
		return found, err
	case "RUN":
		return now, run(ctx, b.Log, rest, number)
	case "COPY", "ADD":
		return now, copyIn(b.Context, rest, now.files)
	case "ENV":
		now.config.Env = append(now.config.Env, rest)
	case "WORKDIR":
		now.config.WorkingDir = rest
	case "USER":
		now.config.User = rest
	case "ENTRYPOINT":
		now.config.Entrypoint = words(rest)
	case "CMD":
		now.config.Cmd = words(rest)
	case "EXPOSE":
		now.config.ExposedPorts = append(now.config.ExposedPorts, rest+"/tcp")
	case "ARG", "LABEL":
	default:
		return now, fault.Invalidf("Dockerfile line %d: unknown instruction %s", number, word)
	}
	return now, nil
}

func run(ctx context.Context, log io.Writer, command string, line int) error {
	word, rest, _ := strings.Cut(command, " ")
	switch word {
	case "echo":
		fmt.Fprintln(log, rest)
	case "hang":
		<-ctx.Done()
		return ctx.Err()
	case "exit":
		var code int
		if _, err := fmt.Sscan(rest, &code); err != nil || code != 0 {
			return &engine.StepError{Step: "RUN " + command, Line: line, Code: code}
		}
	}
	return nil
}

// words reads the two forms of commands.
func words(text string) []string {
	list, isList := strings.CutPrefix(text, "[")
	if !isList {
		return []string{"/bin/sh", "-c", text}
	}
	var out []string
	for _, word := range strings.Split(strings.TrimSuffix(list, "]"), ",") {
		out = append(out, strings.Trim(strings.TrimSpace(word), `"`))
	}
	return out
}

// copyIn puts what is below a path of the folder into the image.
func copyIn(folder, rest string, files map[string]file) error {
	fields := strings.Fields(rest)
	if len(fields) != 2 {
		return fault.Invalidf("COPY takes a source and a destination: %s", rest)
	}
	from := filepath.Join(folder, fields[0])
	if _, err := os.Lstat(from); err != nil {
		return fault.Invalidf("COPY %s: not in the folder", fields[0])
	}
	return filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		below, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		to := path.Join(fields[1], filepath.ToSlash(below))
		if below == "." && strings.HasSuffix(fields[1], "/") {
			to = path.Join(fields[1], path.Base(fields[0]))
		}
		return add(files, strings.TrimPrefix(to, "/"), name)
	})
}

func add(files map[string]file, to, from string) error {
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(from); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name, h.Uid, h.Gid, h.Uname, h.Gname, h.Format = to, 0, 0, "", "", tar.FormatPAX
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	f := file{header: *h}
	if info.Mode().IsRegular() {
		f.data, err = os.ReadFile(from)
	}
	files[to] = f
	return err
}

func (e *Engine) find(name string) (image, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	found, ok := e.images[name]
	if !ok {
		return image{}, fault.NotFoundf("image '%s' not found: neither this server nor its registry has it", name)
	}
	return found, nil
}

// keep stores an image under the digest of what it is.
func (e *Engine) keep(i image) engine.Image {
	id := digest(i)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.images[id] = i
	return engine.Image{ID: id, Digest: id, Config: i.config}
}

func digest(i image) string {
	h := sha256.New()
	fmt.Fprintf(h, "%v\n", i.config)
	for _, name := range slices.Sorted(maps.Keys(i.files)) {
		fmt.Fprintf(h, "%s %o %s %x\n", name, i.files[name].header.Mode, i.files[name].header.Linkname, sha256.Sum256(i.files[name].data))
	}
	return fmt.Sprintf("sha256:%x", h.Sum(nil))
}

// Resolve implements engine.Engine: there is no registry.
func (e *Engine) Resolve(ctx context.Context, r engine.Reference) (engine.Image, error) {
	if err := e.before(ctx, "resolve "+r.Name); err != nil {
		return engine.Image{}, err
	}
	found, err := e.find(r.Name)
	if err != nil {
		return engine.Image{}, err
	}
	return e.keep(found), nil
}

// Load implements engine.Engine.
func (e *Engine) Load(_ context.Context, name string, rootfs io.Reader, config engine.Config) (engine.Image, error) {
	loaded := image{files: map[string]file{}, config: config}
	for archive := tar.NewReader(rootfs); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return engine.Image{}, fault.Invalidf("read the archive: %w", err)
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			return engine.Image{}, fault.Invalidf("read the archive: %w", err)
		}
		loaded.files[path.Clean(h.Name)] = file{*h, data}
	}
	e.mu.Lock()
	e.images[name] = loaded
	e.mu.Unlock()
	return e.keep(loaded), nil
}

// Export implements engine.Engine.
func (e *Engine) Export(ctx context.Context, i engine.Image, w io.Writer) error {
	if err := e.before(ctx, "export"); err != nil {
		return err
	}
	found, err := e.find(i.ID)
	if err != nil {
		return err
	}
	archive := tar.NewWriter(w)
	for _, name := range slices.Sorted(maps.Keys(found.files)) {
		f := found.files[name]
		h := f.header
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(0, 0)
		}
		h.Size = int64(len(f.data))
		if err := archive.WriteHeader(&h); err != nil {
			return err
		}
		if _, err := io.Copy(archive, bytes.NewReader(f.data)); err != nil {
			return err
		}
	}
	return archive.Close()
}

// Start implements engine.Engine: the fake has no containers.
func (e *Engine) Start(context.Context, engine.Container) (engine.Session, error) {
	return nil, fault.Unavailablef("the fake engine has no containers")
}
