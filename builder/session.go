package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containers/buildah"
	"github.com/containers/buildah/copier"
	"github.com/opencontainers/runtime-spec/specs-go"
	"go.podman.io/storage/pkg/archive"
	"go.podman.io/storage/pkg/chrootarchive"

	"vers/internal/build/engine"
	"vers/internal/build/engine/embedded/wire"
	"vers/internal/fault"
)

// session is a container made of an image, in which commands are run.
type session struct {
	worker  *worker
	builder *buildah.Builder
	root    string // merged root file system, without what the runtime mounts in it
	bundle  string
	name    string
	config  engine.Config
	open    wire.Open
	pid     int // of the container's first process
}

func (w *worker) openSession(ctx context.Context, open wire.Open) (_ *engine.Image, err error) {
	if w.session != nil {
		return nil, fault.New(fault.Internal, "the session is open already")
	}
	found, err := w.find(open.Image.ID)
	if err != nil {
		return nil, err
	}
	image, err := describe(ctx, found)
	if err != nil {
		return nil, err
	}
	s := &session{worker: w, bundle: filepath.Join(temporaryDir, "session"), name: "session-" + w.ID, config: image.Config, open: open}
	defer func() {
		if err != nil {
			_ = s.close()
		}
	}()
	if s.builder, err = buildah.NewBuilder(ctx, w.store, w.builderOptions(found.ID())); err != nil {
		return nil, err
	}
	if s.root, err = s.builder.Mount(""); err != nil {
		return nil, err
	}
	if dir := s.config.WorkingDir; dir != "" {
		if err := copier.Mkdir(s.root, filepath.Join(s.root, dir), copier.MkdirOptions{}); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make the image's working directory %s: %w", dir, err)
		}
	}
	if err := s.start(); err != nil {
		return nil, err
	}
	w.session = s
	return image, nil
}

// start has the runtime make the container, whose first process only sleeps.
func (s *session) start() error {
	spec, err := s.spec()
	if err != nil {
		return err
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := os.Mkdir(s.bundle, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.bundle, "config.json"), data, 0o600); err != nil {
		return err
	}
	pidFile := filepath.Join(s.bundle, "pid")
	if err := s.runtime(nil, "run", "--detach", "--bundle", s.bundle, "--pid-file", pidFile, s.name); err != nil {
		return fmt.Errorf("start the container: %w", err)
	}
	text, err := os.ReadFile(pidFile)
	if err == nil {
		_, err = fmt.Sscan(string(text), &s.pid)
	}
	return err
}

// runtime calls the OCI runtime; its words are the error. Output goes to a file: a detached container would keep a pipe.
func (s *session) runtime(stdin io.Reader, args ...string) error {
	output, err := os.CreateTemp(temporaryDir, "runtime-")
	if err != nil {
		return err
	}
	defer os.Remove(output.Name())
	defer output.Close()
	cmd := exec.Command(s.worker.Runtime, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, output, output
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(output.Name())
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(text)))
	}
	return nil
}

func (w *worker) serveSession(ctx context.Context, request wire.Request) (int, error) {
	s := w.session
	switch {
	case request.CopyIn != nil:
		data := w.conn.DataReader()
		err := chrootarchive.Untar(data, s.root, &archive.TarOptions{})
		_, _ = io.Copy(io.Discard, data)
		if err != nil && !diskFull(err) {
			err = fault.Invalidf("unpack the archive into the container: %w", err)
		}
		return 0, err
	case request.Exec != nil:
		return s.exec(ctx, *request.Exec)
	case request.Snapshot != nil:
		return 0, writeTar(w.conn.Writer(wire.Data), s.root, "")
	case request.Close != nil:
		w.session = nil
		return 0, s.close()
	}
	return 0, fault.New(fault.Internal, "the request has no meaning")
}

// close ends the container and removes it.
func (s *session) close() error {
	var errs []error
	if s.pid != 0 {
		errs = append(errs, s.runtime(nil, "delete", "--force", s.name))
	}
	if s.builder != nil {
		errs = append(errs, s.builder.Delete())
	}
	return errors.Join(append(errs, os.RemoveAll(s.bundle))...)
}

// spec is the container in the runtime's words.
func (s *session) spec() (*specs.Spec, error) {
	capabilities, err := s.capabilities()
	if err != nil {
		return nil, err
	}
	hostname := s.open.Hostname
	if hostname == "" {
		hostname = "container"
	}
	spec := &specs.Spec{
		Version: specs.Version, Hostname: hostname,
		Root: &specs.Root{Path: s.root},
		Process: &specs.Process{
			Args: []string{"/dev/.vers-builder", "pause"}, Cwd: "/", Env: s.environment(nil, "/root"),
			Capabilities: sets(capabilities), Rlimits: ownLimits(),
		},
		Mounts: s.mounts(),
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.NetworkNamespace, Path: stepsNetwork}, // or none: confine
			},
			Devices: nil, Resources: &specs.LinuxResources{Devices: deviceRules(s.open.Privileged)},
		},
	}
	if !s.open.Privileged {
		spec.Linux.MaskedPaths = []string{"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
			"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
		spec.Linux.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	}
	confine(spec, s.worker.surroundings, s.open.Privileged)
	return spec, nil
}

func (s *session) mounts() []specs.Mount {
	sys, cgroup := []string{"nosuid", "noexec", "nodev", "ro"}, []string{"nosuid", "noexec", "nodev", "relatime", "ro"}
	if s.open.Privileged {
		sys, cgroup = sys[:3], cgroup[:4]
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: sys},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: cgroup},
		{Destination: "/dev/.vers-builder", Type: "bind", Source: runtimePath, Options: []string{"bind", "ro"}},
		{Destination: resolvConf, Type: "bind", Source: resolvConf, Options: []string{"bind", "ro"}},
		{Destination: hostsFile, Type: "bind", Source: hostsFile, Options: []string{"bind", "ro"}},
	}
	for i, mount := range s.open.Mounts {
		options := []string{"rbind"}
		if mount.ReadOnly {
			options = append(options, "ro")
		}
		mounts = append(mounts, specs.Mount{
			Destination: mount.Destination, Type: "bind", Source: fmt.Sprintf("%s/%d", mountsDir, i), Options: options,
		})
	}
	return mounts
}

// environment is the image's, then the container's, then the command's; later ones win.
func (s *session) environment(command map[string]string, home string) []string {
	values := map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": home}
	for _, pair := range s.config.Env {
		key, value, _ := strings.Cut(pair, "=")
		values[key] = value
	}
	for _, more := range []map[string]string{s.open.Env, command} {
		for key, value := range more {
			values[key] = value
		}
	}
	var list []string
	for key, value := range values {
		list = append(list, key+"="+value)
	}
	slices.Sort(list)
	return list
}
