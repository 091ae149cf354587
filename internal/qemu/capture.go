package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"vers/internal/fault"
	"vers/internal/machine"
	"vers/internal/memory"
)

// Capture implements machine.Instance. The order is that of design 2.1: everything that can be made before the pause is
// made before it, and every way out of the pause lets the guest go on.
func (i *Instance) Capture(ctx context.Context, req machine.CaptureRequest) (result machine.Capture, err error) {
	i.change.Lock()
	defer i.change.Unlock()
	status, err := i.Status(ctx)
	if err != nil {
		return result, err
	}
	if status != machine.StatusRunning && status != machine.StatusPaused {
		return result, fault.Conflictf("VM %s is %s: only a running or paused VM can be captured", i.spec.ID, status)
	}
	if filepath.Dir(req.DeviceState) != i.spec.Dir {
		return result, fault.Invalidf("the device state %s is not in the directory of VM %s", req.DeviceState, i.spec.ID)
	}
	if _, err := os.Lstat(req.DeviceState); !errors.Is(err, os.ErrNotExist) {
		return result, fault.Conflictf("the device state %s exists", req.DeviceState)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(req.DeviceState) // half of it, or without its memory
		}
	}()

	address, err := i.ramAddress(ctx)
	if err != nil {
		return result, err
	}
	capturer, err := memory.Prepare(i.process.id.PID, address, i.spec.Hardware.MemoryBytes)
	if err != nil {
		return result, fmt.Errorf("capture VM %s: %w", i.spec.ID, err)
	}
	defer capturer.Close()
	overlay, err := i.openOverlay(ctx, req.Overlay)
	if err != nil {
		return result, fmt.Errorf("capture VM %s: open the new layer %s: %w", i.spec.ID, req.Overlay.Path, err)
	}
	defer func() {
		if err != nil && !result.DiskSwitched {
			_ = i.command(context.WithoutCancel(ctx), "blockdev-del", map[string]any{"node-name": overlay.name}, nil)
		}
	}()
	// From here the guest may stand still, and the machine must come out of that whatever the caller does.
	ctx = context.WithoutCancel(ctx)
	err = i.paused(ctx, status, req.KeepPaused, &result, func() error {
		if err := i.command(ctx, "xen-save-devices-state", map[string]any{"filename": filepath.Base(req.DeviceState), "live": false}, nil); err != nil {
			return fmt.Errorf("save CPU and devices: %w", err)
		}
		if err := i.command(ctx, "blockdev-snapshot", map[string]any{"node": overlay.below, "overlay": overlay.name}, nil); err != nil {
			return fmt.Errorf("switch the disk to the new layer: %w", err)
		}
		result.DiskSwitched = true
		i.blocks.active = overlay.name
		var err error
		if result.Memory, err = capturer.Copy(ctx); err != nil {
			return fmt.Errorf("copy memory: %w", err)
		}
		return nil
	})
	if err != nil {
		if result.Memory != nil {
			result.Memory.Release()
			result.Memory = nil
		}
		return result, fmt.Errorf("capture VM %s: %w", i.spec.ID, err)
	}
	return result, nil
}

// paused calls do while the vCPUs stand still. Afterwards the machine is as it was before, or paused if that was asked
// for and do succeeded.
func (i *Instance) paused(ctx context.Context, before machine.Status, keep bool, result *machine.Capture, do func() error) error {
	begin := time.Now()
	if before == machine.StatusRunning {
		if err := i.command(ctx, "stop", nil, nil); err != nil {
			return err
		}
	}
	err := do()
	if before == machine.StatusRunning && (err != nil || !keep) {
		if e := i.command(ctx, "cont", nil, nil); e != nil {
			err = errors.Join(err, fmt.Errorf("let the guest go on: %w", e))
		}
	}
	result.Paused = time.Since(begin)
	return err
}

// overlayNode is a layer that QEMU has open but does not use yet.
type overlayNode struct {
	name  string
	below string // the active node
}

// openOverlay adds the overlay to the block graph.
func (i *Instance) openOverlay(ctx context.Context, layer machine.Layer) (overlayNode, error) {
	if layer.Format != "qcow2" {
		return overlayNode{}, fault.Invalidf("a new layer has format qcow2, not %q", layer.Format)
	}
	if i.blocks == nil {
		blocks, err := i.queryBlocks(ctx)
		if err != nil {
			return overlayNode{}, err
		}
		i.blocks = &blocks
	}
	o := overlayNode{name: "overlay" + strconv.Itoa(i.blocks.next), below: i.blocks.active}
	node, err := layerNode(layer, o.name, "", true)
	if err != nil {
		return overlayNode{}, err
	}
	i.blocks.next++
	return o, i.command(ctx, "blockdev-add", node, nil)
}

// blocks is what a capture must know of the block graph. Asking takes longer the deeper the chain of layers is, so it
// is done once.
type blocks struct {
	active string // the node the disk device stands on
	next   int    // number for the next overlay's name, which must differ from all that exist
}

func (i *Instance) queryBlocks(ctx context.Context) (blocks, error) {
	active, _, err := i.activeNode(ctx)
	if err != nil {
		return blocks{}, err
	}
	var nodes []struct {
		Name string `json:"node-name"`
	}
	if err := i.command(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return blocks{}, err
	}
	b := blocks{active: active}
	for _, n := range nodes {
		number, ok := strings.CutPrefix(n.Name, "overlay")
		if k, err := strconv.Atoi(strings.TrimSuffix(number, "-file")); ok && err == nil {
			b.next = max(b.next, k+1)
		}
	}
	return b, nil
}
