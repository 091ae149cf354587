package machine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"vers/internal/fault"
)

// adoptAll brings what the catalogue says and what runs on the host together, after any end of an earlier versd:
//
//	creating        was never handed out: removed, whatever is left of it
//	of a build      the build ended with the earlier versd: removed
//	booting         its boot goes on, or starts again from the image
//	running, paused adopted; the vCPUs are put into the recorded state, since a crash may have come in the middle of a pause
//	sleeping        sleeps on; a process that is left of falling asleep or waking is ended
//	dead            stays
//	process gone    dead, with the reason
//	process without a row: ended
//
// Files that no row names are removed by the first collection.
func (m *Manager) adoptAll(ctx context.Context) error {
	records, err := m.Catalog.AllVMs(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, r := range records {
		known[r.ID] = true
		m.uids[r.UID] = true
	}
	if err := m.endStrays(known); err != nil {
		return err
	}
	var group errgroup.Group
	group.SetLimit(cloneParallel)
	for _, r := range records {
		v := newVM(r)
		m.mu.Lock()
		m.vms[r.ID] = v
		m.mu.Unlock()
		group.Go(func() error {
			if err := m.adopt(ctx, v); err != nil {
				return fmt.Errorf("adopt VM %s: %w", r.ID, err)
			}
			return nil
		})
	}
	return group.Wait()
}

func (m *Manager) adopt(ctx context.Context, v *vm) error {
	r := v.record
	if r.State == string(StateDead) && r.BuildID == "" {
		v.markBooted()
		return nil
	}
	if r.State == string(StateSleeping) {
		return m.adoptSleeping(ctx, v)
	}
	m.ledger.note(r.ID, m.booking(r.OrgID, r.Config.VCPUCount, r.Config.MemSizeMiB<<20))
	err := m.reattach(ctx, v)
	if r.BuildID != "" {
		m.Logger.Info("removing the VM of a build that was cut short", "vm", r.ID, "build", r.BuildID)
		return m.remove(ctx, v)
	}
	switch State(r.State) {
	case StateCreating:
		m.Logger.Info("removing a half-made VM", "vm", r.ID)
		return m.remove(ctx, v)
	case StateBooting:
		m.background.Go(func() { m.continueBoot(v, err) })
		return nil
	}
	if err != nil {
		if !fault.Is(err, fault.NotFound) {
			return err
		}
		m.die(v, "its process ended while versd was not running")
		return nil
	}
	err = m.reconcile(ctx, v)
	if fault.Is(err, fault.Conflict) { // one VM that has ended must not keep versd from starting
		m.die(v, "its guest powered off or crashed while versd was not running")
		return nil
	}
	if err != nil {
		return err
	}
	m.watch(v)
	if r.State != string(StateRunning) {
		v.markBooted()
	} else {
		m.background.Go(func() {
			// Only now can commands run: what was connected before is cut off.
			defer v.markBooted()
			// The earlier versd's connections are dead, the agent does not know: commands would wait for their reader.
			ctx, cancel := context.WithTimeout(m.life, m.ReadyLimit)
			defer cancel()
			if !roused(r) {
				m.rouse(ctx, v)
				return
			}
			if err := v.agent.TakeOver(ctx); err != nil && m.life.Err() == nil {
				m.Logger.Warn("the agent of an adopted VM does not answer", "vm", r.ID, "error", err)
			}
		})
	}
	m.Logger.Info("adopted", "vm", r.ID, "state", r.State)
	return nil
}

// reattach finds the VM's process and opens its network again. fault.NotFound if the process is gone or never was.
func (m *Manager) reattach(ctx context.Context, v *vm) error {
	r := v.record
	if len(r.Process) == 0 {
		return fault.NotFoundf("VM %s has no recorded process", r.ID)
	}
	var process Process
	var spec Spec
	if err := errors.Join(json.Unmarshal(r.Process, &process), json.Unmarshal(r.Spec, &spec)); err != nil {
		return err
	}
	instance, err := m.Driver.Adopt(ctx, spec, process)
	if err != nil {
		return err
	}
	v.instance = instance // also without a network: whoever removes the VM has to end it
	network, err := m.openNetworkOf(ctx, v, spec)
	if err != nil {
		return err
	}
	m.attach(v, instance, network)
	return m.applyEgress(context.WithoutCancel(ctx), v)
}

// DiskReporter is implemented by instances that can say which file they write to. After a crash in the middle of a
// capture, the process knows whether its disk was switched, the catalogue does not.
type DiskReporter interface {
	ActiveLayer(ctx context.Context) (path string, err error)
}

// reconcile makes the recorded layer the one the process writes to, and the process's state the recorded one.
func (m *Manager) reconcile(ctx context.Context, v *vm) error {
	r := v.snapshot()
	if reporter, ok := v.instance.(DiskReporter); ok {
		path, err := reporter.ActiveLayer(ctx)
		if err != nil {
			return err
		}
		active := strings.TrimSuffix(filepath.Base(path), ".qcow2")
		if active != r.LayerID {
			m.Logger.Info("a capture was cut short after the disk was switched", "vm", r.ID, "layer", active)
			var spec Spec
			if err := json.Unmarshal(r.Spec, &spec); err != nil {
				return err
			}
			if err := m.switched(ctx, v, spec, active); err != nil {
				return err
			}
		}
	}
	leftover, err := filepath.Glob(filepath.Join(m.vmDir(r.ID), "capture-*"))
	if err != nil {
		return err
	}
	for _, path := range leftover {
		os.Remove(path)
	}
	if r.State == string(StatePaused) {
		return v.instance.Pause(ctx)
	}
	return v.instance.Resume(ctx)
}

// continueBoot finishes the boot of a VM that an earlier versd began. If its process is gone, it boots again.
func (m *Manager) continueBoot(v *vm, attachError error) {
	ctx, cancel := context.WithTimeout(m.life, m.BootLimit)
	defer cancel()
	unlock, err := v.lock(ctx)
	if err != nil {
		return
	}
	defer unlock()
	defer v.markBooted()
	err = attachError
	switch {
	case err == nil:
		m.watch(v)
		if err = m.reconcile(ctx, v); err == nil {
			err = m.awaitAgent(ctx, v)
		}
	case fault.Is(err, fault.NotFound):
		var boot Boot
		r := v.snapshot()
		if boot, err = m.Images.Resolve(ctx, r.OrgID, r.Config.ImageName, r.Config.KernelName); err == nil {
			err = m.bootGuest(ctx, v, boot)
		}
	}
	if err == nil {
		err = m.handOut(ctx, v)
	}
	if err != nil && m.life.Err() == nil {
		m.die(v, fmt.Sprintf("did not boot: %v", err))
	}
}

// endStrays ends processes that run in a VM directory of ours without a row or with another pid than the recorded one:
// versd was killed between starting a process and recording it.
func (m *Manager) endStrays(known map[string]bool) error {
	root := filepath.Join(m.DataDir, "vms") + "/"
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	recorded := map[int]bool{}
	vms, err := m.Catalog.AllVMs(m.life)
	if err != nil {
		return err
	}
	for _, r := range vms {
		var p Process
		if len(r.Process) > 0 && json.Unmarshal(r.Process, &p) == nil {
			recorded[p.PID] = true
		}
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || recorded[pid] || pid == os.Getpid() {
			continue
		}
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		if err != nil || !strings.HasPrefix(cwd, root) {
			continue
		}
		exe, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || !bytes.Contains(exe, []byte("qemu")) {
			continue
		}
		m.Logger.Warn("ending a VM process that no VM owns", "pid", pid, "directory", cwd)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end stray process %d: %w", pid, err)
		}
	}
	dirs, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if !known[d.Name()] {
			if err := os.RemoveAll(filepath.Join(root, d.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
