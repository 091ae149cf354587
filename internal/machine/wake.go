package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/guest"
)

// Waking is a restore of the same VM: same id, same user, same identity. The row says running before the first
// instruction, and never again sleeping once one was carried out:
//
//	before it   the row says sleeping, perhaps with a new process: versd, if killed, ends that process, and the VM sleeps
//	after it    the row says running: versd, if killed, adopts the process and lets it run
//
// The guest's disk goes on in a fresh layer on the image's. Its image stays, as what its memory stands on.

// awake wakes a VM that sleeps. Any number of callers at once wake it once. One that does not sleep is left alone.
func (m *Manager) awake(ctx context.Context, v *vm) error {
	id := v.snapshot().ID
	done := make(chan error, 1)
	m.background.Go(func() {
		_, err, _ := m.wakes.Do(id, func() (any, error) {
			// The first caller may leave, the others still wait.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.ReadyLimit+wakeLimit)
			defer cancel()
			return nil, m.wake(ctx, v)
		})
		done <- err
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fault.New(fault.Timeout, "VM '%s' is still waking: %w", id, ctx.Err())
	}
}

// OnWake has f called after every wake, and after every one that failed. It replaces an earlier f.
func (m *Manager) OnWake(f func(took time.Duration, err error)) { m.onWake.Store(&f) }

func (m *Manager) tellWake(took time.Duration, err error) {
	if f := m.onWake.Load(); f != nil {
		(*f)(took, err)
	}
}

// wakeLimit bounds what comes before the guest runs: waiting until it sleeps, and a flat file that has to be made again.
const wakeLimit = time.Minute

// wake wakes a VM if it sleeps. On error it sleeps on, whole.
func (m *Manager) wake(ctx context.Context, v *vm) (err error) {
	unlock, err := v.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	r := v.snapshot()
	switch State(r.State) {
	case StateSleeping:
	case StateDead:
		return fault.Conflictf("VM '%s' is dead: %s", r.ID, r.Reason)
	default:
		return nil // somebody else woke it
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("wake VM '%s': %w", r.ID, err)
			m.tellWake(0, err)
		}
	}()
	began := time.Now()
	if err := m.restart(ctx, v, r); err != nil {
		return err
	}
	m.rouse(ctx, v)
	v.setGate(false)
	m.watch(v)
	took := time.Since(began)
	m.tellWake(took, nil)
	m.Logger.Info("VM woke", "vm", r.ID, "took", took)
	return nil
}

// restart starts the process of a sleeping VM and lets it run.
func (m *Manager) restart(ctx context.Context, v *vm, r VM) (err error) {
	defer m.Commits.Hold()()
	image, err := m.Catalog.Commit(ctx, r.MemoryBase)
	if err != nil {
		return err
	}
	manifest, err := m.Commits.Manifest(image)
	if err != nil {
		return err
	}
	if err := m.Driver.Host().CanLoad(manifest.Hardware); err != nil {
		return fault.Unavailablef("this host cannot go on with what another one has put to sleep: %w", err)
	}
	if err := m.endProcess(ctx, r); err != nil {
		return err
	}
	var undo undo
	defer func() { undo.run(&err) }()
	if err := m.rebook(ctx, r.ID, m.booking(r.OrgID, int64(manifest.Hardware.VCPUs), manifest.Hardware.MemoryBytes)); err != nil {
		return err
	}
	undo.add(func() { m.ledger.note(r.ID, booking{orgID: r.OrgID}) })
	flat, release, err := m.Commits.Flat(ctx, image.ID)
	if err != nil {
		return err
	}
	defer release()
	layer, err := m.newLayerOn(ctx, r, image.LayerID)
	if err != nil {
		return err
	}
	undo.add(func() { m.Commits.DropLayer(context.WithoutCancel(ctx), layer.ID) })
	awake := r
	awake.LayerID = layer.ID
	spec, err := m.spec(ctx, awake)
	if err != nil {
		return err
	}
	spec.Hardware, spec.MemoryFile = manifest.Hardware, flat
	spec.Kernel, spec.Initrd, spec.Cmdline = manifest.Kernel.Name, manifest.Initrd.Name, manifest.Cmdline
	undo.add(func() { m.backToSleep(ctx, v, r) })
	if err := m.start(ctx, v, spec); err != nil {
		return err
	}
	trace(ctx, r.ID, MomentStarted)
	if err := v.instance.Load(ctx, m.Commits.DeviceState(image.ID)); err != nil {
		return err
	}
	// The record first: from here on the VM is never again what it was when it fell asleep.
	if err := m.update(ctx, v, func(r *VM) { r.State, r.Reason, r.LayerID = string(StateRunning), "", layer.ID }); err != nil {
		return err
	}
	if err := v.instance.Resume(ctx); err != nil {
		return err
	}
	trace(ctx, r.ID, MomentResumed)
	return nil
}

// backToSleep takes back a wake that failed: not one instruction was carried out, or nobody has seen any of it, and the
// disk it went to is dropped.
func (m *Manager) backToSleep(ctx context.Context, v *vm, asleep VM) {
	ctx = context.WithoutCancel(ctx)
	m.closeNetwork(v)
	had := v.detach()
	var errs []error
	if had.instance != nil {
		errs = append(errs, had.instance.Kill(ctx))
	}
	errs = append(errs, m.update(ctx, v, func(r *VM) { r.State, r.Reason, r.LayerID = asleep.State, asleep.Reason, asleep.LayerID }))
	if err := errors.Join(errs...); err != nil {
		m.Logger.Error("a wake that failed is not taken back as a whole", "vm", asleep.ID, "error", err)
	}
	v.mu.Lock()
	v.record.State, v.record.Reason, v.record.LayerID = asleep.State, asleep.Reason, asleep.LayerID // also if it could not be written
	v.mu.Unlock()
}

// newLayerOn makes the layer that a VM writes to from now on.
func (m *Manager) newLayerOn(ctx context.Context, r VM, below string) (catalog.Layer, error) {
	uid, gid, err := m.ids(ctx, r.OrgID, r.UID)
	if err != nil {
		return catalog.Layer{}, err
	}
	frozen, err := m.Catalog.Layer(ctx, below)
	if err != nil {
		return catalog.Layer{}, err
	}
	return m.Commits.NewLayer(ctx, r.OrgID, frozen.ID, frozen.ImageFile, r.Config.FSSizeMiB<<20, uid, gid)
}

// rouse tells the guest what it has missed. A guest whose agent does not answer runs all the same, as after a pause: its
// owner may have ended the agent.
func (m *Manager) rouse(ctx context.Context, v *vm) {
	r := v.snapshot()
	ctx, cancel := context.WithTimeout(ctx, m.ReadyLimit)
	defer cancel()
	running, release := whileRunning(ctx, v.instance)
	defer release()
	agent := v.watchedAgent()
	for {
		err := agent.Wake(running, guest.Wake{Time: time.Now(), Entropy: randomBytes(256)})
		if err == nil {
			trace(ctx, r.ID, MomentConfirmed)
			break
		}
		select {
		case <-running.Done():
		case <-time.After(5 * time.Millisecond):
			continue
		}
		m.Logger.Warn("the agent of a VM that woke does not answer: its clock stands where it fell asleep", "vm", r.ID, "error", err)
		break
	}
	now := time.Now()
	if err := m.update(context.WithoutCancel(ctx), v, func(r *VM) { r.WokenAt = &now }); err != nil {
		m.Logger.Error("VM that woke: time not recorded", "vm", r.ID, "error", err)
	}
}

// roused says whether the guest knows that it has slept.
func roused(r VM) bool {
	return r.SleptAt == nil || r.WokenAt != nil && !r.WokenAt.Before(*r.SleptAt)
}

// endProcess ends a process that is recorded for a VM that sleeps: versd was killed before it had ended it, or while it
// woke the VM.
func (m *Manager) endProcess(ctx context.Context, r VM) error {
	if len(r.Process) == 0 {
		return nil
	}
	var process Process
	var spec Spec
	if err := errors.Join(json.Unmarshal(r.Process, &process), json.Unmarshal(r.Spec, &spec)); err != nil {
		return err
	}
	// Not asked anything: it may answer to nothing any more.
	if ended, err := process.Kill(ctx); ended || err != nil {
		return err
	}
	instance, err := m.Driver.Adopt(ctx, spec, process)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return instance.Kill(ctx) // of a driver whose processes are not the host's
}

// adoptSleeping takes a sleeping VM into care.
func (m *Manager) adoptSleeping(ctx context.Context, v *vm) error {
	r := v.record
	m.ledger.note(r.ID, booking{orgID: r.OrgID})
	v.setGate(true)
	if err := m.endProcess(ctx, r); err != nil {
		return fmt.Errorf("end what is left of its process: %w", err)
	}
	leftover, err := filepath.Glob(filepath.Join(m.vmDir(r.ID), "capture-*"))
	if err != nil {
		return err
	}
	for _, path := range leftover {
		os.Remove(path)
	}
	v.markBooted()
	m.Logger.Info("adopted", "vm", r.ID, "state", r.State)
	return nil
}

// lockAwake is lockBooted for what needs the machine: it wakes a VM that sleeps.
func (m *Manager) lockAwake(ctx context.Context, c Caller, vmID string, skipWaitBoot bool) (*vm, func(), error) {
	for {
		v, unlock, err := m.lockBooted(ctx, c, vmID, skipWaitBoot)
		if err != nil {
			return nil, nil, err
		}
		v.touch()
		if v.snapshot().State != string(StateSleeping) {
			return v, unlock, nil
		}
		unlock()
		if err := m.awake(ctx, v); err != nil {
			return nil, nil, err
		}
	}
}
