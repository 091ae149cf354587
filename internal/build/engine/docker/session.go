package docker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"

	"vers/internal/build/engine"
	"vers/internal/fault"
)

// session is a container whose first process sleeps.
type session struct {
	e     *Engine
	id    string
	image engine.Config

	mu     sync.Mutex
	closed bool
}

// Start runs a container. Its image needs sh or sleep in its PATH: something has to sleep.
func (e *Engine) Start(ctx context.Context, c engine.Container) (engine.Session, error) {
	image, err := e.inspect(ctx, c.Image.ID)
	if err != nil {
		return nil, err
	}
	memory := c.Limits.MemoryMiB
	if memory == 0 {
		memory = e.o.Limits.MemoryMiB
	}
	host := &container.HostConfig{
		Privileged: c.Privileged, CapAdd: c.CapAdd, CapDrop: c.CapDrop, Runtime: c.Runtime,
		Resources: container.Resources{Memory: memory << 20, MemorySwap: memory << 20},
	}
	if processes := max(c.Limits.Processes, e.o.Limits.Processes); processes > 0 {
		if c.Limits.Processes > 0 {
			processes = c.Limits.Processes
		}
		host.PidsLimit = &processes
	}
	if c.Network == engine.NetworkNone {
		host.NetworkMode = "none"
	}
	for _, m := range c.Mounts {
		host.Mounts = append(host.Mounts, mount.Mount{Type: mount.TypeBind, Source: m.Source, Target: m.Destination, ReadOnly: m.ReadOnly})
	}
	created, err := e.api.ContainerCreate(ctx, client.ContainerCreateOptions{
		Config: &container.Config{
			Image: image.ID, Hostname: c.Hostname, Env: pairs(c.Env), Labels: ownLabels(), User: "0", WorkingDir: "/",
			Entrypoint: []string{"sh", "-c", "until false; do sleep 3600; done"}, Cmd: []string{},
		},
		HostConfig: host,
	})
	if err != nil {
		return nil, kindOf(err, "make a container of image %s", image.ID)
	}
	if err := e.ensureFolder(ctx, created.ID, image.Config.WorkingDir); err != nil {
		_ = e.remove(created.ID)
		return nil, err
	}
	if _, err := e.api.ContainerStart(ctx, created.ID, client.ContainerStartOptions{}); err != nil {
		_ = e.remove(created.ID)
		return nil, kindOf(err, "start a container of image %s", image.ID)
	}
	return &session{e: e, id: created.ID, image: image.Config}, nil
}

func pairs(m map[string]string) []string {
	var list []string
	for key, value := range m {
		list = append(list, key+"="+value)
	}
	slices.Sort(list)
	return list
}

func (s *session) usable() error {
	if s.closed {
		return fault.Conflictf("the container has been closed")
	}
	return nil
}

// CopyIn unpacks an archive in the container.
func (s *session) CopyIn(ctx context.Context, archive io.Reader) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	_, err := s.e.api.CopyToContainer(ctx, s.id, client.CopyToContainerOptions{DestinationPath: "/", Content: archive})
	if err != nil {
		return kindOf(err, "unpack an archive in the container")
	}
	return nil
}

// Export writes the container's root file system.
func (s *session) Export(ctx context.Context, w io.Writer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	return s.e.exportContainer(ctx, s.id, w)
}

// Exec runs a command. When it is to end early, every process that came with it or after it is killed.
func (s *session) Exec(ctx context.Context, c engine.Command) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return 0, err
	}
	limited, cancel := ctx, func() {}
	if c.Timeout > 0 {
		limited, cancel = context.WithTimeout(ctx, c.Timeout)
	}
	defer cancel()
	code, err := s.run(limited, c)
	if limited.Err() == nil {
		return code, err
	}
	s.killAll()
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return 0, fault.New(fault.Timeout, "the time limit ran out, and the command was ended: %w", ctx.Err())
	case ctx.Err() != nil:
		return 0, ctx.Err()
	}
	return 0, fault.New(fault.Timeout, "the command '%s' did not end within %s, and was killed", strings.Join(c.Args, " "), c.Timeout)
}

func (s *session) run(ctx context.Context, c engine.Command) (int, error) {
	user, dir := c.User, c.Dir
	if user == "" {
		user = s.image.User
	}
	if user == "" {
		user = "0"
	}
	if dir == "" {
		dir = s.image.WorkingDir
	}
	if dir == "" {
		dir = "/"
	}
	created, err := s.e.api.ExecCreate(ctx, s.id, client.ExecCreateOptions{
		User: user, WorkingDir: dir, Env: pairs(c.Env), Cmd: c.Args, Privileged: c.Privileged, AttachStdout: true, AttachStderr: true,
	})
	if err != nil {
		return 0, kindOf(err, "start a command in the container")
	}
	stream, err := s.e.api.ExecAttach(ctx, created.ID, client.ExecAttachOptions{})
	if err != nil {
		return s.notStarted(err, c)
	}
	defer stream.Close()
	stop := context.AfterFunc(ctx, stream.Close)
	defer stop()
	stdout, stderr := c.Stdout, &heard{w: c.Stderr}
	if stdout == nil {
		stdout = io.Discard
	}
	told := &heard{w: stdout}
	_, copyErr := stdcopy.StdCopy(told, stderr, stream.Reader)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	ended, err := s.e.api.ExecInspect(ctx, created.ID, client.ExecInspectOptions{})
	if err != nil {
		return 0, kindOf(err, "ask how the command ended")
	}
	if text := told.begin + stderr.begin; ended.ExitCode >= codeNotExecutable && ended.ExitCode <= codeNotFound || ended.ExitCode < 0 {
		switch {
		case noSuchUser(text):
			return 0, fault.Invalidf("user %q: %s", user, strings.TrimSpace(text))
		case strings.Contains(text, notFoundInPath):
			return codeNotFound, nil // Docker says 126 for both
		}
	}
	return ended.ExitCode, copyErr
}

const (
	codeNotExecutable = 126
	codeNotFound      = 127
	notFoundInPath    = "executable file not found"
)

// notStarted is what a command that could not be started means: a code, as in shells, or a mistake of the request.
func (s *session) notStarted(err error, c engine.Command) (int, error) {
	text := err.Error()
	switch {
	case noSuchUser(text):
		return 0, fault.Invalidf("user %q: %w", c.User, err)
	case s.e.podman && strings.Contains(text, "received 500") && c.User != "": // Podman keeps the reason to itself
		return 0, fault.Invalidf("the command cannot be started as user %q: does the image have that user? %w", c.User, err)
	case strings.Contains(text, notFoundInPath), strings.Contains(text, "no such file or directory"):
		if c.Stderr != nil {
			_, _ = io.WriteString(c.Stderr, text+"\n")
		}
		return codeNotFound, nil
	case strings.Contains(text, "permission denied"):
		return codeNotExecutable, nil
	}
	return 0, kindOf(err, "start a command in the container")
}

func noSuchUser(text string) bool {
	return strings.Contains(text, "unable to find user") || strings.Contains(text, "no matching entries in passwd") ||
		strings.Contains(text, "unable to find group")
}

// heard passes everything on and keeps the beginning. A nil writer drops.
type heard struct {
	w     io.Writer
	begin string
}

func (h *heard) Write(p []byte) (int, error) {
	if room := 512 - len(h.begin); room > 0 {
		h.begin += string(p[:min(room, len(p))])
	}
	if h.w == nil {
		return len(p), nil
	}
	return h.w.Write(p)
}

// killAll ends all processes of the container but its first: the API has no way to end one command. Where the container
// has no shell to do it, the container goes.
func (s *session) killAll() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var output bytes.Buffer
	// The shell's own kill: the first process and the caller are spared by the kernel.
	code, err := s.run(ctx, engine.Command{Args: []string{"sh", "-c", "kill -9 -1"}, User: "0", Dir: "/", Stderr: &output})
	if err != nil || code != 0 {
		s.closed = true
		_ = s.e.remove(s.id)
	}
}

// Close ends and removes the container.
func (s *session) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return s.e.remove(s.id)
}
