package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"vers/internal/disk"
	"vers/internal/guest"
	"vers/internal/machine"
	"vers/internal/netstack"
	"vers/internal/qemu"
)

// ownMeans is what QEMU itself needs to save and restore the same VM.
type ownMeans struct{ savevm, loadvm, migrate, incoming samples }

// baseline boots a VM like ours outside of the manager, makes it touch the memory, and saves and restores it by QEMU's own
// commands: savevm/loadvm (state inside of the disk file) and migration into a file.
func baseline(ctx context.Context, l *lab, ram int64, touched int) (own ownMeans, err error) {
	model, err := l.run(ctx, ram, true) // tells how our VMs are made
	if err != nil {
		return own, err
	}
	var spec machine.Spec
	if err := json.Unmarshal(model.Spec, &spec); err != nil {
		return own, err
	}
	if err := l.m.Delete(ctx, l.caller, model.ID, false); err != nil {
		return own, err
	}
	dir, err := os.MkdirTemp(l.dir, "own.")
	if err != nil {
		return own, err
	}
	defer os.RemoveAll(dir)
	overlay := filepath.Join(dir, "disk.qcow2")
	if err := errors.Join(os.Chown(dir, spec.UID, spec.GID), disk.CreateOverlay(overlay, 1<<30, spec.Disk[0].Path, "raw"), os.Chown(overlay, spec.UID, spec.GID)); err != nil {
		return own, err
	}
	spec.ID, spec.Dir, spec.Disk = "own", dir, []machine.Layer{spec.Disk[0], {Path: overlay, Format: "qcow2"}}
	started, err := l.m.Driver.Start(ctx, spec)
	if err != nil {
		return own, err
	}
	vm := started.(*qemu.Instance)
	defer func() { err = errors.Join(err, vm.Kill(context.WithoutCancel(ctx))) }()
	network, err := netstack.New(ctx, netstack.Config{Dir: dir, UID: spec.UID, GID: spec.GID})
	if err != nil {
		return own, err
	}
	defer network.Close()
	client := guest.New(network.DialAgent)
	if err := vm.Resume(ctx); err != nil {
		return own, err
	}
	if err := awaitReady(ctx, client); err != nil {
		return own, err
	}
	if err := execIn(ctx, client, touch(touched)); err != nil {
		return own, err
	}
	for range 3 {
		if err := own.migrateToFile(ctx, l, vm, spec); err != nil {
			return own, fmt.Errorf("migrate to file: %w", err)
		}
		for command, into := range map[string]*samples{"savevm": &own.savevm} {
			took, err := monitor(ctx, vm, command+" bench")
			if err != nil {
				return own, err
			}
			into.add(took)
		}
		took, err := monitor(ctx, vm, "loadvm bench")
		if err != nil {
			return own, err
		}
		own.loadvm.add(took)
	}
	return own, nil
}

func awaitReady(ctx context.Context, client *guest.Client) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		info, err := client.Hello(ctx)
		if err == nil && info.Ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the baseline's guest is not ready: %w", errors.Join(err, ctx.Err()))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// monitor runs a command of QEMU's human monitor; these return when they are done and say something only if they fail.
func monitor(ctx context.Context, vm *qemu.Instance, line string) (time.Duration, error) {
	var said string
	began := time.Now()
	err := vm.Execute(ctx, "human-monitor-command", map[string]string{"command-line": line}, &said)
	if err == nil && said != "" {
		err = fmt.Errorf("%s: %s", line, said)
	}
	return time.Since(began), err
}

// migrateToFile saves by migration into a file and restores from it into a second process.
func (o *ownMeans) migrateToFile(ctx context.Context, l *lab, vm *qemu.Instance, spec machine.Spec) error {
	path := filepath.Join(spec.Dir, "migration")
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	defer file.Close()
	began := time.Now()
	if err := errors.Join(
		vm.Execute(ctx, "migrate-set-parameters", map[string]any{"max-bandwidth": 100 << 30}, nil),
		vm.Pause(ctx),
		vm.ExecuteFD(ctx, "getfd", map[string]string{"fdname": "out"}, file),
		vm.Execute(ctx, "migrate", map[string]string{"uri": "fd:out"}, nil),
	); err != nil {
		return err
	}
	for {
		var state struct{ Status string }
		if err := vm.Execute(ctx, "query-migrate", nil, &state); err != nil {
			return err
		}
		if state.Status == "completed" {
			break
		}
		if state.Status == "failed" {
			return errors.New("QEMU says failed")
		}
		time.Sleep(time.Millisecond)
	}
	if err := file.Sync(); err != nil {
		return err
	}
	o.migrate.add(time.Since(began))
	if err := o.restoreMigration(ctx, l, spec, path); err != nil {
		return err
	}
	return vm.Resume(ctx)
}

func (o *ownMeans) restoreMigration(ctx context.Context, l *lab, spec machine.Spec, path string) (err error) {
	dir, err := os.MkdirTemp(l.dir, "own.")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	overlay, ram := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "ram")
	if err := errors.Join(
		os.WriteFile(ram, nil, 0o600), os.Truncate(ram, spec.Hardware.MemoryBytes),
		disk.CreateOverlay(overlay, 1<<30, spec.Disk[0].Path, "raw"),
		os.Chown(dir, spec.UID, spec.GID), os.Chown(ram, spec.UID, spec.GID), os.Chown(overlay, spec.UID, spec.GID),
	); err != nil {
		return err
	}
	spec.Dir, spec.MemoryFile, spec.Disk = dir, ram, []machine.Layer{spec.Disk[0], {Path: overlay, Format: "qcow2"}}
	began := time.Now()
	clone, err := l.m.Driver.Start(ctx, spec)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, clone.Kill(context.WithoutCancel(ctx))) }()
	if err := clone.Load(ctx, path); err != nil {
		return err
	}
	o.incoming.add(time.Since(began))
	return nil
}
