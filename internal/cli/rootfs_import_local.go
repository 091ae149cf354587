package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"vers/api"
	"vers/internal/fault"
)

// localEngines are the programs that know the images of this machine, in the order in which they are looked for.
var localEngines = []string{"docker", "podman"}

// localConfig is what both of them say about an image.
type localConfig struct {
	Env          []string            `json:"Env"`
	WorkingDir   string              `json:"WorkingDir"`
	User         string              `json:"User"`
	Entrypoint   []string            `json:"Entrypoint"`
	Cmd          []string            `json:"Cmd"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts"`
	Labels       map[string]string   `json:"Labels"`
}

// importLocal sends an image of this machine's Docker or Podman to the server as it is written out.
func (a *App) importLocal(ctx context.Context, o importOptions) (name string, err error) {
	client, err := a.api()
	if err != nil {
		return "", err
	}
	engine, err := localEngine()
	if err != nil {
		return "", err
	}
	config, err := inspectLocal(ctx, engine, o.source)
	if err != nil {
		return "", err
	}
	// A container is only a handle for the image's file system: it is never started, so any command does.
	out, err := engineRun(ctx, engine, "create", "--pull", "never", o.source, "/vers")
	if err != nil {
		return "", fmt.Errorf("make a container of '%s' to read it: %w", o.source, err)
	}
	container := strings.TrimSpace(string(out))
	defer func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if _, gone := engineRun(last, engine, "rm", "--force", container); gone != nil && err == nil {
			a.warn("the container %s of %s stays: %v", container, engine, gone)
		}
	}()
	a.Streams.note("Importing '%s' of %s as rootfs '%s'", o.source, engine, o.name)
	return o.name, a.sendContainer(ctx, client, engine, container, api.UploadOptions{Name: o.name, Description: o.description, Replace: o.replace, RootFS: true, Config: config})
}

// sendContainer uploads the file system of a container.
func (a *App) sendContainer(ctx context.Context, client *api.Client, engine, container string, o api.UploadOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	export := exec.CommandContext(ctx, engine, "export", container)
	var errs bytes.Buffer
	export.Stderr = &errs
	archive, err := export.StdoutPipe()
	if err != nil {
		return err
	}
	if err := export.Start(); err != nil {
		return fmt.Errorf("run %s: %w", engine, err)
	}
	err = a.sendImage(ctx, client, o, archive)
	if err != nil {
		cancel() // nobody reads what it still writes
	}
	if ended := export.Wait(); ended != nil && err == nil {
		return fmt.Errorf("%s export: %w: %s", engine, ended, strings.TrimSpace(errs.String()))
	}
	return err
}

func localEngine() (string, error) {
	for _, name := range localEngines {
		if _, err := exec.LookPath(name); err == nil {
			return name, nil
		}
	}
	return "", fault.Unavailablef("neither docker nor podman is installed on this machine, so there are no local images; without --local the server gets the image from its registry")
}

func inspectLocal(ctx context.Context, engine, image string) (*api.ImageConfig, error) {
	out, err := engineRun(ctx, engine, "image", "inspect", "--format", "{{json .Config}}", image)
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		return nil, fault.NotFoundf("%s has no image '%s' (%v); get it with '%s pull %s', or leave --local out", engine, image, err, engine, image)
	}
	var c localConfig
	if err := json.Unmarshal(out, &c); err != nil {
		return nil, fmt.Errorf("%s says something about '%s' that cannot be read: %w", engine, image, err)
	}
	config := &api.ImageConfig{Env: c.Env, WorkingDir: c.WorkingDir, User: c.User, Entrypoint: c.Entrypoint, Cmd: c.Cmd, Labels: c.Labels}
	for port := range c.ExposedPorts {
		config.ExposedPorts = append(config.ExposedPorts, port)
	}
	slices.Sort(config.ExposedPorts)
	return config, nil
}

// engineRun runs a short command to its end.
func engineRun(ctx context.Context, engine string, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, engine, args...).Output()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.As(err, &exit):
		return nil, fmt.Errorf("%s %s: %s", engine, args[0], strings.TrimSpace(string(exit.Stderr)))
	}
	return out, err
}
