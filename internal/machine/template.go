package machine

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sync"

	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/fault"
	"vers/internal/ident"
)

// templateKey names the state of a machine right after boot. Everything that shapes that state is in it, so a stale
// template is never found; the organisation is in it because flat files are shared only inside one.
func (m *Manager) templateKey(orgID string, c catalog.VMConfig, b Boot) string {
	h := m.Driver.Host()
	data, err := json.Marshal(struct {
		Org, Image, Kernel, Initrd, Cmdline, QEMU string
		Hardware                                  commit.Hardware
		Memory, VCPUs, Disk                       int64
	}{orgID, b.ImageDigest, b.Kernel.BLAKE3, b.Initrd.BLAKE3, cmdline, h.QEMUVersion, h.Hardware, c.MemSizeMiB, c.VCPUCount, c.FSSizeMiB})
	if err != nil {
		panic(err) // strings and numbers only
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

// fromTemplate runs a VM from the template of a key. If there is none and another VM is booting to make it, it waits for
// that one: restoring takes a tenth of a boot. Where ok is false, the caller boots; settled MUST then be called when the
// caller's template is there or will not be.
func (m *Manager) fromTemplate(ctx context.Context, c Caller, key string, config catalog.VMConfig, req RunRequest) (vm VM, ok bool, settled func(), err error) {
	if vm, ok, err = m.runFromTemplate(ctx, c, key, config, req); ok || err != nil {
		return vm, ok, nil, err
	}
	settled, pending := m.claimTemplate(key)
	if pending != nil {
		select {
		case <-pending:
		case <-ctx.Done():
			return VM{}, false, nil, fault.New(fault.Timeout, "another VM of this kind is booting: %w", ctx.Err())
		}
		// Waited for once only: where no template comes of it, VMs boot side by side and not one after the other.
		settled, _ = m.claimTemplate(key)
	}
	// Again: it may have been written meanwhile.
	if vm, ok, err = m.runFromTemplate(ctx, c, key, config, req); ok || err != nil {
		settled()
		settled = nil
	}
	return vm, ok, settled, err
}

// claimTemplate notes that the caller makes the template of a key, unless it exists already, until settled is called.
// Where somebody else is making it, pending is closed when that has come to an end, and settled does nothing.
func (m *Manager) claimTemplate(key string) (settled func(), pending <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if pending, ok := m.templates[key]; ok {
		return func() {}, pending
	}
	done := make(chan struct{})
	m.templates[key] = done
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.templates, key)
		close(done)
	}), nil
}

// runFromTemplate restores the template, if there is one that can be loaded. One that cannot is dropped.
func (m *Manager) runFromTemplate(ctx context.Context, c Caller, key string, config catalog.VMConfig, req RunRequest) (VM, bool, error) {
	template, err := m.Catalog.CommitByTemplate(ctx, key)
	if fault.Is(err, fault.NotFound) {
		return VM{}, false, nil
	}
	if err != nil {
		return VM{}, false, err
	}
	p := clone{commit: template, config: config, labels: req.Labels, env: req.Env, buildID: req.BuildID, options: req.Options, reason: "run"}
	vm, err := m.restore(ctx, c, p)
	if err != nil && !fault.Is(err, fault.Exhausted) {
		m.Logger.Warn("template is not usable, booting", "template", template.ID, "error", err)
		if err := m.Catalog.MarkCommitDeleted(ctx, template.ID); err != nil {
			return VM{}, false, err
		}
		return VM{}, false, nil
	}
	return vm, true, err
}

// makeTemplate captures a VM right after boot. The caller holds op. Without an error, settled is called once the template
// can be restored, or cannot be written.
func (m *Manager) makeTemplate(ctx context.Context, v *vm, key string, settled func()) error {
	if _, err := m.Catalog.CommitByTemplate(ctx, key); !fault.Is(err, fault.NotFound) {
		if err == nil {
			settled()
		}
		return err
	}
	taken, err := m.capture(ctx, v, ident.New(), false)
	if err != nil {
		return err
	}
	taken.record.Commit.TemplateKey, taken.record.Commit.Name = key, "template"
	// Written in the background: the VM's owner does not wait for it.
	m.background.Go(func() {
		defer settled()
		defer taken.release()
		c, err := taken.write(context.WithoutCancel(ctx))
		if err != nil {
			m.Logger.Warn("template not written", "error", err)
			return
		}
		m.settle(c.ID)
	})
	return nil
}
