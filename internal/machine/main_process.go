package machine

import (
	"context"
	"slices"
	"strings"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/guest"
)

// What an image says about its processes goes with a VM and everything made of it: it is part of a VM's configuration,
// which commits carry, and every guest is told with its identity.

// processOf is how commands of a VM are run that do not say it themselves.
func processOf(c *catalog.ImageConfig) guest.Process {
	if c == nil {
		return guest.Process{}
	}
	p := guest.Process{WorkingDir: c.WorkingDir, User: c.User}
	for _, pair := range c.Env {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" || strings.ContainsRune(pair, 0) {
			continue // no process could be given it
		}
		if p.Env == nil {
			p.Env = map[string]string{}
		}
		p.Env[key] = value
	}
	return p
}

// mainCommand is what a container of the image would run.
func mainCommand(c *catalog.ImageConfig) []string {
	if c == nil {
		return nil
	}
	return slices.Concat(c.Entrypoint, c.Cmd)
}

// startMain starts the image's own command, if that was asked for and has not been done. It goes on by itself; its output is
// in the VM's logs, under the id in VM.Config.MainExec, and so is the reason when it cannot be run. A guest that was asked
// already, by a versd that was killed before it had written that down, says that it knows the id.
func (m *Manager) startMain(ctx context.Context, v *vm) error {
	r := v.snapshot()
	if !r.Config.StartMain {
		return nil
	}
	stream, err := v.agent.Exec(ctx, guest.ExecRequest{ID: r.ID, Command: mainCommand(r.Config.Image)})
	switch {
	case fault.Is(err, fault.Conflict):
	case err != nil:
		return fault.New(fault.KindOf(err), "start the command of rootfs image '%s': %w", r.Config.ImageName, err)
	default:
		if err := stream.Close(); err != nil {
			m.Logger.Debug("stream of a main process", "vm", r.ID, "error", err)
		}
	}
	return m.update(ctx, v, func(r *VM) { r.Config.StartMain, r.Config.MainExec = false, r.ID })
}
