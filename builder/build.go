package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containers/buildah/define"
	"github.com/containers/buildah/imagebuildah"
	"go.podman.io/common/libnetwork/types"
	"golang.org/x/sys/unix"

	"vers/internal/build/engine"
	"vers/internal/build/engine/embedded/wire"
	"vers/internal/fault"
	"vers/internal/netstack"
)

func buildahVersion() string { return define.Version }

// build runs a Dockerfile.
func (w *worker) build(ctx context.Context, b wire.Build) (*engine.Image, error) {
	path, text, err := takeDockerfile(b.Dockerfile)
	if err != nil {
		return nil, err
	}
	log := &stepLog{w: w.conn.Writer(wire.Output)}
	if image, err := w.recalled(ctx, b, log); image != nil || err != nil {
		return image, err
	}
	images, err := w.store.Images()
	if err != nil {
		return nil, err
	}
	jobs := 1
	options := define.BuildOptions{
		ContainerSuffix: w.ID, ContextDirectory: contextDir, PullPolicy: pullPolicy(b.Pull), Isolation: define.IsolationOCI,
		Runtime: runtimePath, Args: b.Args, Target: b.Target, NoCache: b.NoCache, Jobs: &jobs,
		Out: log, Err: log, ReportWriter: log, SignaturePolicyPath: signaturePath,
		// The Docker format keeps HEALTHCHECK and SHELL.
		OutputFormat: define.Dockerv2ImageManifest, SystemContext: systemContext(b.Platform),
		// Of the worker as far as buildah knows; confine gives the steps their own.
		NamespaceOptions: define.NamespaceOptions{{Name: "network", Host: true}},
		NetworkInterface: noNetworks{}, CommonBuildOpts: w.commonOptions(), DefaultMountsFilePath: mountsConf,
		Layers: true, RemoveIntermediateCtrs: true, ForceRmIntermediateCtrs: true, MaxPullPushRetries: 1,
	}
	if b.Platform != "" {
		os, arch, variant := splitPlatform(b.Platform)
		options.Platforms = []struct{ OS, Arch, Variant string }{{os, arch, variant}}
	}
	before := names(images)
	id, _, err := imagebuildah.BuildDockerfiles(ctx, w.store, options, path)
	if err != nil {
		return nil, buildError(err, log, text)
	}
	if err := w.remember(id, b, before, log); err != nil {
		return nil, err
	}
	image, err := w.find(id)
	if err != nil {
		return nil, err
	}
	return describe(ctx, image)
}

func pullPolicy(p engine.Pull) define.PullPolicy {
	switch p {
	case engine.PullAlways:
		return define.PullAlways
	case engine.PullNever:
		return define.PullNever
	}
	return define.PullIfMissing
}

// takeDockerfile copies the Dockerfile, and the ignore file beside it, out of the context: no link in the context can
// lead to another file.
func takeDockerfile(name string) (path string, text []byte, err error) {
	if name == "" {
		name = "Dockerfile"
	}
	root, err := os.OpenRoot(contextDir)
	if err != nil {
		return "", nil, err
	}
	defer root.Close()
	if text, err = root.ReadFile(filepath.Clean(name)); err != nil {
		return "", nil, fault.Invalidf("read the Dockerfile %s: %w", name, reason(err))
	}
	path = filepath.Join(dockerfileDir, "Dockerfile")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return "", nil, err
	}
	if ignore, err := root.ReadFile(filepath.Clean(name) + ".dockerignore"); err == nil {
		if err := os.WriteFile(path+".dockerignore", ignore, 0o600); err != nil {
			return "", nil, err
		}
	}
	return path, text, nil
}

// reason drops the path, which the message has already.
func reason(err error) error {
	var pathError *os.PathError
	if errors.As(err, &pathError) {
		return pathError.Err
	}
	return err
}

// commonOptions are those of all steps. Limits of files and processes are the worker's own: without CAP_SYS_RESOURCE
// nobody can raise them.
func (w *worker) commonOptions() *define.CommonBuildOptions {
	options := &define.CommonBuildOptions{ShmSize: "64m", DNSServers: []string{netstack.Resolver}}
	for name, resource := range map[string]int{"nofile": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC} {
		var limit unix.Rlimit
		if unix.Getrlimit(resource, &limit) == nil {
			options.Ulimit = append(options.Ulimit, fmt.Sprintf("%s=%s:%s", name, ulimit(limit.Cur), ulimit(limit.Max)))
		}
	}
	return options
}

func ulimit(value uint64) string {
	if value == unix.RLIM_INFINITY {
		return "-1"
	}
	return fmt.Sprint(value)
}

// buildError says which step failed, where it is, and of what kind the failure is.
func buildError(err error, log *stepLog, dockerfile []byte) error {
	var exit *exec.ExitError
	step, line := log.locate(dockerfile)
	text := err.Error()
	where := ""
	if line > 0 {
		where = fmt.Sprintf(" (line %d)", line)
	}
	switch {
	case errors.As(err, &exit) && strings.Contains(text, "building at STEP \"RUN"):
		code := exit.ExitCode()
		if log.signal != 0 { // which buildah says with code 1
			code = 128 + log.signal
		}
		return &engine.StepError{Step: step, Line: line, Code: code}
	case diskFull(err):
		return noSpace(err)
	}
	if kind := fault.KindOf(pullError("", err)); kind == fault.Forbidden || kind == fault.Unavailable {
		return fault.New(kind, "step '%s'%s: %s", step, where, pullError("of the step", err))
	}
	if base := strings.TrimPrefix(step, "FROM "); base != step && fault.Is(pullError("", err), fault.NotFound) {
		return fault.NotFoundf("step '%s'%s: %s", step, where, pullError(base, err))
	}
	if step == "" || !strings.Contains(text, "STEP") {
		return fault.Invalidf("the Dockerfile cannot be built: %w", err)
	}
	return fault.Invalidf("step '%s'%s failed: %w", step, where, err)
}

// noNetworks stands for a network manager: buildah asks for one, and its steps need none.
type noNetworks struct{}

var errNoNetworks = errors.New("builds have the one network that the server gives them")

func (noNetworks) NetworkCreate(types.Network, *types.NetworkCreateOptions) (types.Network, error) {
	return types.Network{}, errNoNetworks
}
func (noNetworks) NetworkUpdate(string, types.NetworkUpdateOptions) error { return errNoNetworks }
func (noNetworks) NetworkRemove(string) error                             { return errNoNetworks }
func (noNetworks) NetworkList(...types.FilterFunc) ([]types.Network, error) {
	return nil, nil
}
func (noNetworks) NetworkInspect(string) (types.Network, error) {
	return types.Network{}, errNoNetworks
}
func (noNetworks) Setup(string, types.SetupOptions) (map[string]types.StatusBlock, error) {
	return nil, errNoNetworks
}
func (noNetworks) Teardown(string, types.TeardownOptions) error { return nil }
func (noNetworks) RunInRootlessNetns(func() error) error        { return errNoNetworks }
func (noNetworks) RootlessNetnsInfo() (*types.RootlessNetnsInfo, error) {
	return nil, errNoNetworks
}
func (noNetworks) Drivers() []string              { return nil }
func (noNetworks) DefaultNetworkName() string     { return "" }
func (noNetworks) NetworkInfo() types.NetworkInfo { return types.NetworkInfo{} }
