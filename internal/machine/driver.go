package machine

import (
	"context"
	"time"

	"vers/internal/commit"
	"vers/internal/memory"
)

// Driver starts virtual machines. It knows processes, devices and guest memory; it knows no names, organisations or
// commits. internal/qemu is the real one, internal/machine/fake an in-memory one; both pass internal/machine/drivertest.
//
// The life of an instance:
//
//	Start ──► prepared ── Load ──► paused ◄── Pause/Resume ──► running ── guest ends or Kill ──► gone
//	             └─ (spec.MemoryFile empty: nothing to load, Resume boots)
type Driver interface {
	// Start starts the process for spec and returns when it answers. No vCPU runs. With spec.MemoryFile set, the
	// instance waits for Load; until Load is called the driver MUST NOT have read the memory file's content, so the
	// file may still be written. ctx bounds the start only: the process outlives it and the caller's process.
	// On error nothing is left behind.
	Start(ctx context.Context, spec Spec) (Instance, error)

	// Adopt takes over a process started earlier, perhaps by another versd. It MUST verify pid and start time and
	// return fault.NotFound if that process is gone.
	Adopt(ctx context.Context, spec Spec, process Process) (Instance, error)

	// Host says what instances started now would be made of.
	Host() Host
}

// Instance is one running machine of a driver. Methods are safe for concurrent use; the manager calls those that
// change state one at a time. After Done is closed every method but Process, Kill, Ended and Done fails with
// fault.Conflict.
type Instance interface {
	// Process identifies the process for Adopt. It can be stored.
	Process() Process

	// Load reads the device state written by Capture. Only for an instance started with a MemoryFile, once. The
	// memory file must be complete. Afterwards the instance is paused.
	Load(ctx context.Context, deviceState string) error

	// Resume lets the vCPUs run (or boot). Pause stops them. Both are idempotent.
	Resume(ctx context.Context) error
	Pause(ctx context.Context) error

	// Capture takes CPU, devices, disk and memory of a running or paused instance in one pause. It leaves the
	// instance as it was (running or paused) unless KeepPaused is set. On error the instance goes on as before,
	// with its disk either switched to the new overlay (Capture.DiskSwitched) or not.
	Capture(ctx context.Context, req CaptureRequest) (Capture, error)

	// Status asks for the current state.
	Status(ctx context.Context) (Status, error)

	// GrowDisk enlarges the disk to size bytes. The guest file system is not touched.
	GrowDisk(ctx context.Context, size int64) error

	// Console returns the newest part of the serial console's output, at most 64 KiB.
	Console(ctx context.Context) ([]byte, error)

	// Ended is closed when the guest has powered off, rebooted or panicked (Status is StatusEnded from then on, and
	// only Kill is left), and at the latest together with Done. Nothing has to be polled.
	Ended() <-chan struct{}

	// Kill ends the process and waits until it is gone and its memory is returned. Idempotent.
	Kill(ctx context.Context) error

	// Done is closed when the process is gone, whoever ended it.
	Done() <-chan struct{}
}

// DiskWatcher is implemented by instances that the host's disk can stop: when it has no room for what a guest writes, the
// machine is paused in the middle of the write.
type DiskWatcher interface {
	// DiskFull delivers a value after each such stop. Resume lets the guest try the write again.
	DiskFull() <-chan struct{}
}

// MemoryPatcher is implemented by instances whose memory can be written to between Start and Load.
type MemoryPatcher interface {
	// PatchMemory puts pages on top of what the memory file holds, in this instance only.
	PatchMemory(ctx context.Context, s *memory.Snapshot) error
}

// Status is what an instance is doing.
type Status string

// The states of an instance.
const (
	StatusPrepared Status = "prepared" // waits for Load
	StatusRunning  Status = "running"
	StatusPaused   Status = "paused"
	StatusEnded    Status = "ended" // the guest powered off or panicked; the process may still hold its console
)

// Spec is everything a driver needs to start an instance. It is stored with the VM, as JSON, for Adopt.
type Spec struct {
	ID         string   `json:"id"`  // VM id, for logs
	Dir        string   `json:"dir"` // the instance's own directory, existing, absolute, owned by UID:GID: sockets, logs, device state
	UID        int      `json:"uid"` // user of the process; 0 with GID 0: stay who we are (no root)
	GID        int      `json:"gid"`
	Hardware   Hardware `json:"hardware"`
	Kernel     string   `json:"kernel,omitempty"` // path; empty: boot from the disk's boot sector
	Initrd     string   `json:"initrd,omitempty"`
	Cmdline    string   `json:"cmdline,omitempty"`
	Disk       []Layer  `json:"disk"`                  // bottom first; the last one is active and writable by UID
	MemoryFile string   `json:"memory_file,omitempty"` // flat file to map privately; empty: fresh anonymous memory
}

// Hardware is the part of a spec that a device state depends on.
type Hardware = commit.Hardware

// Host is what a driver would use for a new instance.
type Host struct {
	Hardware                                // MemoryBytes and VCPUs are zero
	QEMUVersion        string               // as QEMU reports it
	QEMUPath           string               //
	AcceleratorBy      string               // the proof: why this accelerator was chosen
	OverheadBytes      int64                // host memory a process needs beside guest RAM, estimated
	WritableMemoryFile bool                 // the process opens Spec.MemoryFile read-write even though the mapping is private (QEMU before 8.2)
	Unconfined         []string             // what of the confinement this host does not allow, in words; empty when nothing is lost
	CanLoad            func(Hardware) error // nil if a state recorded with that hardware can be loaded here, else what is missing
}

// Layer is one file of a disk.
type Layer struct {
	Path   string `json:"path"`
	Format string `json:"format"` // "raw" or "qcow2"
}

// Process identifies an operating-system process beyond reuse of its pid.
type Process struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"` // field 22 of /proc/<pid>/stat, clock ticks since boot
	BootID    string `json:"boot_id"`    // /proc/sys/kernel/random/boot_id
}

// CaptureRequest says where a capture goes.
type CaptureRequest struct {
	DeviceState string // file to write, inside Spec.Dir
	Overlay     Layer  // fresh empty qcow2 overlay that becomes the active layer; exists, writable by UID
	KeepPaused  bool   // leave the instance paused
}

// Capture is what one pause gave.
type Capture struct {
	Memory       *memory.Snapshot // dirty pages; the caller must Release it
	DiskSwitched bool             // the overlay is active, what was active is immutable from now on
	Paused       time.Duration    // how long the vCPUs stood still
}
