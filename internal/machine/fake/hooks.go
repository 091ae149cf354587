package fake

import (
	"fmt"

	"vers/internal/machine"
)

// Op is a step of a machine's life that a hook may look at, hold up or make fail.
type Op string

// The steps.
const (
	OpNetwork Op = "network" // its network is opened; the spec has a directory only
	OpStart   Op = "start"   // its process is about to be started
	OpPatch   Op = "patch"   // pages are about to be written into its memory
	OpLoad    Op = "load"
	OpResume  Op = "resume"
	OpPause   Op = "pause"
	OpCapture Op = "capture" // it stands still for a capture, the disk is the old one
	OpSwitch  Op = "switch"  // it stands still for a capture, the disk is the new one
	OpGrow    Op = "grow"    // its disk is about to grow
	OpDial    Op = "dial"    // somebody connects to it; an error makes it not answer at all
	OpReady   Op = "ready"   // its agent is asked; an error makes it say that it is not ready yet
	OpSync    Op = "sync"    // its guest writes its page cache to its disk
	OpRenew   Op = "renew"   // its agent is given an identity; an error makes it refuse
	OpKill    Op = "kill"    // its process is about to be ended by Kill
)

// Hook is called at every step of every machine, concurrently. With an error the step fails. It may wait, which holds up
// that machine alone, and must not use the machine that it is called for.
type Hook func(op Op, spec machine.Spec) error

// SetHook replaces the hook; nil: nothing is looked at.
func (d *Driver) SetHook(h Hook) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hook = h
}

// at calls the hook. No lock may be held.
func (d *Driver) at(op Op, spec machine.Spec) error {
	d.mu.Lock()
	h := d.hook
	d.mu.Unlock()
	if h == nil {
		return nil
	}
	return h(op, spec)
}

// SetFull says whether dir has no room for a device state.
func (d *Driver) SetFull(dir string, full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full[dir] = full
}

// FailCapture makes the next Capture of any machine fail with err, in the pause, before the disk is switched.
func (d *Driver) FailCapture(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failing = err
}

// SetBare says whether machines come without the optional powers: DiskWatcher, DiskReporter, MemoryPatcher.
func (d *Driver) SetBare(bare bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bare = bare
}

// captureError gives what a capture into dir fails with, and forgets it if it was for once.
func (d *Driver) captureError(spec machine.Spec) error {
	d.mu.Lock()
	err, full := d.failing, d.full[spec.Dir]
	d.failing = nil
	d.mu.Unlock()
	if err != nil {
		return err
	}
	if full {
		return fmt.Errorf("write the device state: no space left on device")
	}
	return d.at(OpCapture, spec)
}
