package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"vers/internal/fault"
	"vers/internal/machine"
)

// commandLimit bounds one QMP command when the caller sets no limit. They take milliseconds.
const commandLimit = 30 * time.Second

// Process implements machine.Instance.
func (i *Instance) Process() machine.Process { return i.process.id }

// Done implements machine.Instance.
func (i *Instance) Done() <-chan struct{} { return i.done }

// Ended implements machine.Instance.
func (i *Instance) Ended() <-chan struct{} { return i.ended }

// DiskFull implements machine.DiskWatcher.
func (i *Instance) DiskFull() <-chan struct{} { return i.diskFull }

// Forget lets go of the process without ending it, as if versd had ended; it can be adopted again.
func (i *Instance) Forget() { i.forget.Do(func() { close(i.forgotten) }) }

// CPUTime implements machine.Worker.
func (i *Instance) CPUTime() (time.Duration, error) { return i.process.id.CPUTime() }

// Kill implements machine.Instance.
func (i *Instance) Kill(ctx context.Context) error {
	select {
	case <-i.done:
		return nil
	default:
	}
	if err := i.process.kill(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	select {
	case <-i.done:
		return nil
	case <-i.forgotten:
		return fault.New(fault.Conflict, "VM %s is not held by this instance any more", i.spec.ID)
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of QEMU process %d: %w", i.process.id.PID, context.Cause(ctx))
	}
}

// monitor gives the QMP connection, and makes it if there is none.
func (i *Instance) monitor(ctx context.Context) (*QMP, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	select {
	case <-i.process.done:
		return nil, i.gone()
	case <-i.forgotten:
		return nil, fault.Conflictf("VM %s is not held by this instance any more", i.spec.ID)
	default:
	}
	if i.qmp != nil {
		select {
		case <-i.qmp.Done(): // QEMU closed it but lives, or it was cut: connect again
		default:
			return i.qmp, nil
		}
	}
	// A launcher that fails ends without a greeting: do not wait for one.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-i.process.done:
			cancel(i.gone())
		case <-stop:
		}
	}()
	q, err := DialQMP(ctx, i.spec.Dir, "qmp.sock", i.onEvent)
	if err != nil {
		return nil, err
	}
	i.qmp = q
	return q, nil
}

func (i *Instance) closeMonitor() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.qmp != nil {
		i.qmp.Close()
	}
}

// gone is the error of everything that needs a process when there is none.
func (i *Instance) gone() error {
	return fault.Conflictf("the process of VM %s is gone", i.spec.ID)
}

// Execute runs a QMP command, for measurements and experiments: not for anything that changes the state of the machine.
func (i *Instance) Execute(ctx context.Context, name string, arguments, result any) error {
	return i.command(ctx, name, arguments, result)
}

// command runs one QMP command.
func (i *Instance) command(ctx context.Context, name string, arguments, result any) error {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	q, err := i.monitor(ctx)
	if err == nil {
		err = q.Execute(ctx, name, arguments, result)
	}
	return i.explain(ctx, err)
}

// explain tells the end of the process from other errors of the connection.
func (i *Instance) explain(ctx context.Context, err error) error {
	if i.hasEnded(ctx, err) {
		return fmt.Errorf("%w; %s", i.gone(), i.out.tail())
	}
	return err
}

// ending is explain where the end of the process is the fault of what was asked, not its state.
func (i *Instance) ending(ctx context.Context, err error) error {
	if i.hasEnded(ctx, err) {
		return fmt.Errorf("QEMU ended; %s", i.out.tail())
	}
	return err
}

// hasEnded reports whether err comes from the end of the process. The socket closes a moment before.
func (i *Instance) hasEnded(ctx context.Context, err error) bool {
	if !errors.Is(err, errQMPClosed) && !fault.Is(err, fault.Conflict) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	select {
	case <-i.done:
		return true
	case <-i.forgotten:
		return false
	case <-ctx.Done():
		return false
	}
}

// onEvent runs in the goroutine that reads QMP: it must not wait.
func (i *Instance) onEvent(e Event) {
	switch e.Name {
	case "SHUTDOWN", "GUEST_PANICKED":
		i.end()
	case "MIGRATION":
		var data struct{ Status string }
		if json.Unmarshal(e.Data, &data) == nil {
			select {
			case i.migrated <- data.Status:
			default:
			}
		}
	case "BLOCK_IO_ERROR":
		i.log.Warn("disk error", "event", string(e.Data))
		var data struct {
			Action  string
			NoSpace bool
		}
		if json.Unmarshal(e.Data, &data) == nil && data.Action == "stop" && data.NoSpace {
			select {
			case i.diskFull <- struct{}{}:
			default: // one stop, many requests in flight
			}
		}
	}
}

// queryStatus gives QEMU's own name of the run state.
func (i *Instance) queryStatus(ctx context.Context) (string, error) {
	var status struct{ Status string }
	err := i.command(ctx, "query-status", nil, &status)
	return status.Status, err
}

// Status implements machine.Instance.
func (i *Instance) Status(ctx context.Context) (machine.Status, error) {
	name, err := i.queryStatus(ctx)
	if err != nil {
		return "", err
	}
	status, ok := statusOf(name)
	if !ok {
		return "", fmt.Errorf("QEMU is in state %q, which has no meaning here", name)
	}
	if status == machine.StatusEnded {
		i.end()
	}
	return status, nil
}

// statusOf reads QEMU's run state. "io-error": the host had no room for a write and the guest waits; Resume tries again.
func statusOf(name string) (machine.Status, bool) {
	switch name {
	case "inmigrate":
		return machine.StatusPrepared, true
	case "running":
		return machine.StatusRunning, true
	case "prelaunch", "paused", "io-error", "save-vm", "finish-migrate", "postmigrate", "restore-vm", "debug":
		return machine.StatusPaused, true
	case "shutdown", "guest-panicked", "internal-error", "watchdog":
		return machine.StatusEnded, true
	}
	return "", false
}

// Load implements machine.Instance.
func (i *Instance) Load(ctx context.Context, deviceState string) error {
	i.change.Lock()
	defer i.change.Unlock()
	status, err := i.Status(ctx)
	if err != nil {
		return err
	}
	if status != machine.StatusPrepared {
		return fault.Conflictf("VM %s is %s: only a VM that was started with a memory file is loaded, once", i.spec.ID, status)
	}
	state, err := os.Open(deviceState)
	if err != nil {
		return fmt.Errorf("load VM %s: %w", i.spec.ID, err)
	}
	defer state.Close()
	if err := i.load(ctx, state); err != nil {
		return fmt.Errorf("load the device state %s into VM %s: %w", deviceState, i.spec.ID, i.ending(ctx, err))
	}
	return nil
}

// load hands the file itself to QEMU, which could not open it.
func (i *Instance) load(ctx context.Context, state *os.File) error {
	q, err := i.monitor(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := q.Execute(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []map[string]any{{"capability": "events", "state": true}},
	}, nil); err != nil {
		return err
	}
	uri := "fd:state"
	if i.driver.capabilities.FileTransport {
		const set = 1
		if err := q.ExecuteFD(ctx, "add-fd", map[string]any{"fdset-id": set}, state); err != nil {
			return err
		}
		defer func() { _ = q.Execute(ctx, "remove-fd", map[string]any{"fdset-id": set}, nil) }() // it ends with the process
		uri = fmt.Sprintf("file:/dev/fdset/%d", set)
	} else if err := q.ExecuteFD(ctx, "getfd", map[string]any{"fdname": "state"}, state); err != nil {
		return err
	}
	if err := q.Execute(ctx, "migrate-incoming", map[string]any{"uri": uri}, nil); err != nil {
		return err
	}
	for {
		select {
		case status := <-i.migrated:
			switch status {
			case "completed":
				now, err := i.queryStatus(ctx)
				if err == nil && now != "paused" {
					err = fmt.Errorf("QEMU is %s after loading, not paused", now)
				}
				return err
			case "failed":
				return i.unreadable(ctx)
			}
		case <-q.Done():
			return q.failure()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// unreadable says why QEMU gave up. It ends then, and says more at its end, except where it was told to stay.
func (i *Instance) unreadable(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	select {
	case <-i.done:
	case <-ctx.Done():
	}
	return fmt.Errorf("QEMU cannot read it; %s", i.out.tail())
}

// Resume implements machine.Instance.
func (i *Instance) Resume(ctx context.Context) error {
	i.change.Lock()
	defer i.change.Unlock()
	return i.setRunning(ctx, true)
}

// Pause implements machine.Instance.
func (i *Instance) Pause(ctx context.Context) error {
	i.change.Lock()
	defer i.change.Unlock()
	return i.setRunning(ctx, false)
}

func (i *Instance) setRunning(ctx context.Context, run bool) error {
	status, err := i.Status(ctx)
	if err != nil {
		return err
	}
	switch {
	case status == machine.StatusEnded:
		return fault.Conflictf("the guest of VM %s has ended", i.spec.ID)
	case status == machine.StatusPrepared:
		return fault.Conflictf("VM %s waits for its state: load it first", i.spec.ID)
	case run == (status == machine.StatusRunning):
		return nil
	case run:
		return i.command(ctx, "cont", nil, nil)
	default:
		return i.command(ctx, "stop", nil, nil)
	}
}

// GrowDisk implements machine.Instance.
func (i *Instance) GrowDisk(ctx context.Context, size int64) error {
	i.change.Lock()
	defer i.change.Unlock()
	active, now, err := i.activeNode(ctx)
	if err != nil {
		return err
	}
	if size < now {
		return fault.Invalidf("the disk of VM %s has %d bytes and cannot shrink to %d", i.spec.ID, now, size)
	}
	if size%512 != 0 {
		return fault.Invalidf("a disk of %d bytes is not a whole number of sectors of 512 bytes", size)
	}
	return i.command(ctx, "block_resize", map[string]any{"node-name": active, "size": size}, nil)
}

// activeNode gives the node that the disk device stands on, and its size in bytes.
func (i *Instance) activeNode(ctx context.Context) (name string, size int64, err error) {
	var devices []struct {
		QDev     string `json:"qdev"`
		Inserted *struct {
			Node  string `json:"node-name"`
			Image struct {
				VirtualSize int64 `json:"virtual-size"`
			} `json:"image"`
		} `json:"inserted"`
	}
	if err := i.command(ctx, "query-block", nil, &devices); err != nil {
		return "", 0, err
	}
	for _, d := range devices {
		if d.Inserted != nil && (d.QDev == "/machine/peripheral/"+diskDevice+"/virtio-backend" || d.QDev == diskDevice) {
			return d.Inserted.Node, d.Inserted.Image.VirtualSize, nil
		}
	}
	return "", 0, fmt.Errorf("QEMU of VM %s names no active layer", i.spec.ID)
}
