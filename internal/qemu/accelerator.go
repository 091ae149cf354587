package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"vers/internal/fault"
	"vers/internal/machine"
)

// The accelerators.
const (
	acceleratorKVM = "kvm"
	acceleratorTCG = "tcg"
)

// Choice is the accelerator that is used, and why.
type Choice struct {
	Accelerator string `json:"accelerator"`
	CPU         string `json:"cpu"`
	Proof       string `json:"proof"` // in words, for log and doctor
}

const (
	// probeCmdline makes the agent print its greeting and power off.
	probeCmdline  = "console=ttyS0 quiet loglevel=3 panic=-1 no_timer_check vers.mode=probe"
	probeGreeting = "vers-agent: hello"
	// kvmLimit is for a guest that needs about a second where KVM is good.
	kvmLimit = 8 * time.Second
	// kvmMemory is the guest RAM of the proof, in bytes.
	kvmMemory = 256 << 20
)

// kvmModels are the CPU models tried under KVM, best first.
var kvmModels = []string{"host", "max", "qemu64"}

// provenChoice is a choice as it is kept, with what it holds for.
type provenChoice struct {
	Choice
	BootID string `json:"boot_id"`
	QEMU   string `json:"qemu"`
	Kernel string `json:"kernel"`
	Initrd string `json:"initrd"`
}

// chooseAccelerator uses KVM only when a guest really boots under it: on some hosts /dev/kvm opens and QEMU starts, yet
// a stock kernel hangs (design section 2). The answer is kept for this boot of the host, this QEMU and this kernel.
func (d *Driver) chooseAccelerator(ctx context.Context, c Config) (Choice, error) {
	forced := c.Accelerator == acceleratorKVM
	switch c.Accelerator {
	case acceleratorTCG:
		return d.tcg(c, "the configuration says so")
	case acceleratorKVM, "auto", "":
	default:
		return Choice{}, fault.Invalidf("accelerator %q is not one of auto, kvm, tcg", c.Accelerator)
	}
	absent := d.kvmAbsent()
	switch {
	case absent != "" && forced:
		return Choice{}, fault.Unavailablef("the configuration says kvm, but %s: set the accelerator to tcg, or give this host KVM", absent)
	case absent != "":
		return d.tcg(c, absent)
	case c.Kernel == "" && forced:
		return Choice{Accelerator: acceleratorKVM, CPU: orElse(c.CPU, "host"), Proof: "the configuration says so; not proven, there is no kernel to prove it with"}, nil
	case c.Kernel == "":
		return d.tcg(c, "there is no kernel to prove KVM with")
	}
	now, err := d.proofFor(c)
	if err != nil {
		return Choice{}, err
	}
	cache := ""
	if c.CacheDir != "" {
		cache = filepath.Join(c.CacheDir, "accelerator.json")
	}
	if known, ok := readProof(cache); ok && known.BootID == now.BootID && known.QEMU == now.QEMU && known.Kernel == now.Kernel &&
		known.Initrd == now.Initrd && (known.Accelerator == acceleratorKVM || !forced) && (c.CPU == "" || c.CPU == known.CPU) {
		return known.Choice, nil
	}
	now.Choice, err = d.proveKVM(ctx, c)
	if err != nil {
		if ctx.Err() != nil {
			return Choice{}, fmt.Errorf("prove KVM: %w", context.Cause(ctx))
		}
		reason := fmt.Sprintf("/dev/kvm opens, but a stock kernel does not boot under it: %v", err)
		if forced {
			return Choice{}, fault.Unavailablef("the configuration says kvm, but %s: set the accelerator to tcg", reason)
		}
		if now.Choice, err = d.tcg(c, reason); err != nil {
			return Choice{}, err
		}
	}
	if cache != "" {
		if err := writeProof(cache, now); err != nil {
			d.log.Warn("the accelerator will be proven again at the next start", "error", err)
		}
	}
	return now.Choice, nil
}

func (d *Driver) tcg(c Config, reason string) (Choice, error) {
	if !d.capabilities.TCG {
		return Choice{}, fault.Unavailablef("no accelerator: %s, and QEMU %s was built without TCG", reason, d.capabilities.Path)
	}
	return Choice{Accelerator: acceleratorTCG, CPU: orElse(c.CPU, "max"), Proof: reason}, nil
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// kvmAbsent says why KVM cannot even be tried; "" if it can.
func (d *Driver) kvmAbsent() string {
	if !d.capabilities.KVM {
		return "this QEMU has no KVM"
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return "this host has no /dev/kvm"
	}
	if err != nil {
		return fmt.Sprintf("/dev/kvm cannot be opened (%v)", errors.Unwrap(err))
	}
	f.Close()
	return ""
}

// proveKVM boots the kernel with every CPU model at the same time, since a kernel that hangs costs the whole limit, and
// takes the best that works.
func (d *Driver) proveKVM(ctx context.Context, c Config) (Choice, error) {
	models := kvmModels
	if c.CPU != "" {
		models = []string{c.CPU}
	}
	d.log.Info("proving KVM with a real guest", "models", models, "limit", kvmLimit)
	ctx, cancel := context.WithTimeout(ctx, kvmLimit)
	defer cancel()
	began := time.Now()
	results := make([]chan error, len(models))
	for n, model := range models {
		results[n] = make(chan error, 1)
		go func() { results[n] <- d.bootProbe(ctx, c, model) }()
	}
	var reasons []string
	choice := Choice{}
	for n, model := range models {
		err := <-results[n] // also after a success: nothing of the others stays behind
		if err == nil && choice.Accelerator == "" {
			choice = Choice{
				Accelerator: acceleratorKVM, CPU: model,
				Proof: fmt.Sprintf("a stock kernel boots under it with CPU model %s in %d ms", model, time.Since(began).Milliseconds()),
			}
			cancel()
		}
		if err != nil {
			reasons = append(reasons, fmt.Sprintf("with CPU model %s %v", model, err))
		}
	}
	if choice.Accelerator == "" {
		return choice, errors.New(strings.Join(reasons, "; "))
	}
	return choice, nil
}

// bootProbe boots the kernel and waits for the agent's greeting, after which it powers off.
func (d *Driver) bootProbe(ctx context.Context, c Config, model string) error {
	dir, err := os.MkdirTemp("", "vers-probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	i, err := d.start(ctx, machine.Spec{
		ID: "probe-" + model, Dir: dir, Kernel: c.Kernel, Initrd: c.Initrd, Cmdline: probeCmdline,
		Hardware: machine.Hardware{
			Accelerator: acceleratorKVM, CPU: model, MachineType: d.capabilities.MachineType,
			MemoryBytes: kvmMemory, VCPUs: 1, Devices: devicesV1,
		},
	})
	if err != nil {
		return fmt.Errorf("QEMU does not start (%w)", err)
	}
	defer func() { _ = i.Kill(context.WithoutCancel(ctx)) }()
	if err := i.Resume(ctx); err != nil {
		return fmt.Errorf("QEMU does not run (%w)", err)
	}
	select {
	case <-i.Ended():
	case <-ctx.Done():
		return fmt.Errorf("nothing came within %v", kvmLimit)
	}
	console, err := i.Console(ctx)
	if err != nil {
		return fmt.Errorf("QEMU ended (%w)", err)
	}
	if !bytes.Contains(console, []byte(probeGreeting)) {
		return errors.New("the guest ended without a greeting")
	}
	return nil
}

// proofFor says what a proof made now holds for.
func (d *Driver) proofFor(c Config) (provenChoice, error) {
	boot, err := machine.HostBootID()
	if err != nil {
		return provenChoice{}, err
	}
	p := provenChoice{BootID: boot}
	for _, f := range []struct {
		path string
		into *string
	}{{d.capabilities.Path, &p.QEMU}, {c.Kernel, &p.Kernel}, {c.Initrd, &p.Initrd}} {
		if f.path == "" {
			continue
		}
		info, err := os.Stat(f.path)
		if err != nil {
			return p, fmt.Errorf("prove KVM: %w", err)
		}
		*f.into = fmt.Sprintf("%s %d %s", f.path, info.Size(), info.ModTime().UTC().Format(time.RFC3339Nano))
	}
	return p, nil
}

// readProof: a cache that cannot be read is none.
func readProof(path string) (provenChoice, bool) {
	var p provenChoice
	data, err := os.ReadFile(path)
	return p, err == nil && json.Unmarshal(data, &p) == nil && p.Accelerator != ""
}

func writeProof(path string, p provenChoice) error {
	data, err := json.MarshalIndent(p, "", "\t")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
