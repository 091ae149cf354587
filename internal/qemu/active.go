package qemu

import (
	"context"
	"fmt"
	"os"

	"vers/internal/memory"
)

// ActiveLayer implements machine.DiskReporter: the path of the file that the guest's disk writes go to. After a crash of
// versd in the middle of a capture only QEMU knows whether the disk was switched.
func (i *Instance) ActiveLayer(ctx context.Context) (string, error) {
	graph, err := i.queryBlocks(ctx)
	if err != nil {
		return "", err
	}
	var nodes []struct {
		Name string `json:"node-name"`
		File string `json:"file"`
	}
	if err := i.command(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return "", err
	}
	for _, n := range nodes {
		if n.Name == fileNode(graph.active) {
			return n.File, nil
		}
	}
	return "", fmt.Errorf("VM %s: QEMU has no file under block node %s", i.spec.ID, graph.active)
}

// fileNode names the node of the file below a layer's node.
func fileNode(layer string) string { return layer + "-file" }

// ExecuteFD is Execute with a file that QEMU receives a copy of: for measurements.
func (i *Instance) ExecuteFD(ctx context.Context, command string, arguments any, file *os.File) error {
	q, err := i.monitor(ctx)
	if err != nil {
		return err
	}
	return q.ExecuteFD(ctx, command, arguments, file)
}

// PatchMemory implements machine.MemoryPatcher.
func (i *Instance) PatchMemory(ctx context.Context, s *memory.Snapshot) error {
	address, err := i.ramAddress(ctx)
	if err != nil {
		return err
	}
	if err := memory.Write(i.process.id.PID, address, i.spec.Hardware.MemoryBytes, s); err != nil {
		return fmt.Errorf("VM %s: %w", i.spec.ID, err)
	}
	return nil
}
