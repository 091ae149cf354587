package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vers/internal/build/engine"
	"vers/internal/fault"
)

// Build runs a Dockerfile.
func (e *Engine) Build(ctx context.Context, b engine.Build) (engine.Image, error) {
	c, err := openContext(b.Context, b.Dockerfile)
	if err != nil {
		return engine.Image{}, err
	}
	defer c.close()
	if err := e.refuse(b, c.text); err != nil {
		return engine.Image{}, err
	}
	archive, end := c.archive()
	defer end()
	log := &buildLog{w: b.Log}
	answer, err := e.api.ImageBuild(ctx, archive, e.options(b, c.dockerfile))
	if err == nil {
		defer answer.Body.Close()
		err = eachMessage(answer.Body, log.take)
	}
	if cause := ctx.Err(); cause != nil {
		e.removeSteps(log.containers)
		if errors.Is(cause, context.DeadlineExceeded) {
			return engine.Image{}, fault.New(fault.Timeout, "the time limit of the build ran out: %w", cause)
		}
		return engine.Image{}, cause
	}
	if archiveErr := c.err; archiveErr != nil {
		return engine.Image{}, fault.Invalidf("archive the folder of the build: %w", archiveErr)
	}
	if err != nil {
		return engine.Image{}, log.explain(err, c.text, b.Pull)
	}
	if log.id == "" {
		return engine.Image{}, fault.New(fault.Internal, "%s built an image and does not say which", e.Name())
	}
	return e.inspect(ctx, log.id)
}

func (e *Engine) options(b engine.Build, dockerfile string) client.ImageBuildOptions {
	memory := b.Limits.MemoryMiB
	if memory == 0 {
		memory = e.o.Limits.MemoryMiB
	}
	options := client.ImageBuildOptions{
		Dockerfile: dockerfile, NoCache: b.NoCache, Remove: true, ForceRemove: true, Target: b.Target, Version: build.BuilderV1,
		PullParent: b.Pull == engine.PullAlways || e.o.Shared && b.Pull != engine.PullNever, BuildArgs: map[string]*string{}, AuthConfigs: e.passwords(),
		Memory: memory << 20, MemorySwap: memory << 20,
	}
	for name, value := range b.Args {
		options.BuildArgs[name] = &value
	}
	if b.Network == engine.NetworkNone {
		options.NetworkMode = "none"
	}
	if b.Platform != "" {
		options.Platforms = []ocispec.Platform{platform(b.Platform)}
	}
	return options
}

var (
	heredoc   = regexp.MustCompile(`(?im)^\s*(RUN|COPY|ADD)\b.*<<-?["']?[A-Za-z_]`)
	runMount  = regexp.MustCompile(`(?im)^\s*RUN\s+--(mount|network|security)=`)
	hostState = regexp.MustCompile(`(?im)^\s*RUN\s+--(network=host|security=insecure)`)
)

// refuse says what this engine cannot do, before anything is sent.
func (e *Engine) refuse(b engine.Build, dockerfile []byte) error {
	heredocs := e.podman && e.major() >= 5
	switch {
	case b.Network == engine.NetworkNone && e.podman:
		return fault.Unavailablef("Podman's API cannot keep the steps of a build off the network; use the embedded engine or Docker")
	case b.Limits.Processes != 0 || b.Limits.DiskMiB != 0:
		return fault.Unavailablef("%s cannot limit the processes or the disk space of a build; use the embedded engine", e.Name())
	case heredoc.Match(dockerfile) && !heredocs:
		return fault.Unavailablef("the Dockerfile has here-documents, which %s %s does not know; use the embedded engine, or write the lines with && and \\", e.Name(), e.version)
	case runMount.Match(dockerfile) && !e.podman:
		return fault.Unavailablef("the Dockerfile has RUN with --mount, --network or --security, which need BuildKit; use the embedded engine")
	case hostState.Match(dockerfile):
		return fault.Invalidf("RUN --network=host and --security=insecure are not permitted")
	}
	return nil
}

// buildLog passes a build's log on, and keeps what errors need.
type buildLog struct {
	w          io.Writer
	line       []byte
	step       int      // as counted by the daemon
	text       string   // of the step
	signal     int      // that ended its command, as Podman prints it
	containers []string // of steps, so far
	id         string
}

var (
	stepLine    = regexp.MustCompile(`^(?:\[\d+/\d+\] )?(?i:step) (\d+)/\d+ ?: (.*)$`)
	runningLine = regexp.MustCompile(`^ ---> Running in ([0-9a-f]{12,64})$`)
	builtLine   = regexp.MustCompile(`^Successfully built ([0-9a-f]{12,64})$`)
)

func (l *buildLog) take(m message) error {
	var aux struct{ ID string }
	if json.Unmarshal(m.Aux, &aux) == nil && aux.ID != "" {
		l.id = aux.ID
	}
	text := m.Stream
	if text == "" && m.Status != "" {
		text = m.Status + "\n"
	}
	l.line = append(l.line, text...)
	for {
		line, rest, ended := bytes.Cut(l.line, []byte("\n"))
		if !ended {
			break
		}
		l.read(string(line))
		l.line = rest
	}
	if l.w == nil || text == "" {
		return nil
	}
	_, err := io.WriteString(l.w, text)
	return err
}

func (l *buildLog) read(line string) {
	if match := stepLine.FindStringSubmatch(line); match != nil {
		l.step, _ = strconv.Atoi(match[1])
		l.text, l.signal = match[2], 0
	}
	if name, ok := strings.CutPrefix(line, "container exited on "); ok {
		l.signal = signalNumber(name)
	}
	if match := runningLine.FindStringSubmatch(line); match != nil {
		l.containers = append(l.containers, match[1])
	}
	if match := builtLine.FindStringSubmatch(line); match != nil && l.id == "" {
		l.id = match[1]
	}
}

// signalNumber is the number of a signal by its description, 0 if there is none like it.
func signalNumber(name string) int {
	const last = 31
	for n := 1; n <= last; n++ {
		if syscall.Signal(n).String() == name {
			return n
		}
	}
	return 0
}

var exitStatus = regexp.MustCompile(`(?:non-zero code: |exit status |exit code )(\d+)`)

// explain gives a failure of a build its kind, with the step and its line.
func (l *buildLog) explain(err error, dockerfile []byte, pull engine.Pull) error {
	var said *reported
	line := findLine(dockerfile, l.text)
	where := ""
	if line > 0 {
		where = fmt.Sprintf(" (line %d)", line)
	}
	if !errors.As(err, &said) {
		if client.IsErrConnectionFailed(err) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fault.Unavailablef("the container engine went away during the build: %w", err)
		}
		return fault.Invalidf("the Dockerfile cannot be built: %w", err)
	}
	isRun := strings.HasPrefix(strings.ToUpper(l.text), "RUN")
	code := said.code
	if match := exitStatus.FindStringSubmatch(said.text); match != nil && code == 0 {
		code, _ = strconv.Atoi(match[1])
	}
	if l.signal != 0 { // Podman says 1 of them all
		code = 128 + l.signal
	}
	if isRun && code != 0 {
		return &engine.StepError{Step: l.text, Line: line, Code: code}
	}
	if kind := engine.RegistryFault(said.text); kind != fault.Internal && strings.HasPrefix(strings.ToUpper(l.text), "FROM") {
		if pull == engine.PullNever {
			kind = fault.NotFound // whatever became of asking for it
		}
		return fault.New(kind, "step '%s'%s: %w", l.text, where, said)
	}
	if l.text == "" {
		return fault.Invalidf("the Dockerfile cannot be built: %w", said)
	}
	return fault.Invalidf("step '%s'%s failed: %w", l.text, where, said)
}

// findLine is where a step is in a Dockerfile, if only one place looks like it; else 0. The daemon joins continued lines
// with single spaces or none, so spaces do not count.
func findLine(dockerfile []byte, step string) int {
	squeeze := func(text string) string { return strings.Join(strings.Fields(text), "") }
	want, found := squeeze(step), 0
	begin, whole := 0, ""
	for i, line := range strings.Split(string(dockerfile), "\n") {
		text := strings.TrimSpace(line)
		if whole == "" {
			begin = i + 1
		}
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		continued := strings.HasSuffix(text, "\\")
		whole += " " + strings.TrimSuffix(text, "\\")
		if continued {
			continue
		}
		if squeeze(whole) == want {
			if found != 0 {
				return 0
			}
			found = begin
		}
		whole = ""
	}
	return found
}
