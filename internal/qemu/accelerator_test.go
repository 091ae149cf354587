package qemu

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vers/internal/fault"
)

// TestChooseAccelerator: without a kernel that boots under KVM the answer is TCG with the reason, and is kept.
func TestChooseAccelerator(t *testing.T) {
	d := newTestDriver(t, acceleratorTCG)
	dir := t.TempDir()
	c := Config{Accelerator: "auto", CacheDir: dir, Kernel: filepath.Join(dir, "vmlinuz")}
	must(t, os.WriteFile(c.Kernel, []byte("this is no kernel"), 0o644))

	first, err := d.chooseAccelerator(t.Context(), c)
	must(t, err)
	t.Logf("%+v", first)
	if first.Accelerator != acceleratorTCG || first.CPU == "" || first.Proof == "" {
		t.Fatalf("with a kernel that cannot boot: %+v", first)
	}
	if d.kvmAbsent() != "" {
		t.Skipf("no KVM here: %s", d.kvmAbsent())
	}
	cache := filepath.Join(dir, "accelerator.json")
	data, err := os.ReadFile(cache)
	must(t, err)
	var kept provenChoice
	must(t, json.Unmarshal(data, &kept))
	kept.Proof = "kept"
	must(t, writeProof(cache, kept))
	second, err := d.chooseAccelerator(t.Context(), c)
	must(t, err)
	if second.Proof != "kept" {
		t.Errorf("it was proven again: %+v", second)
	}
	must(t, os.Chtimes(c.Kernel, time.Now(), time.Unix(1, 0)))
	third, err := d.chooseAccelerator(t.Context(), c)
	must(t, err)
	if third.Proof == "kept" {
		t.Error("a proof of another kernel was used")
	}
	c.Accelerator = acceleratorKVM
	if _, err := d.chooseAccelerator(t.Context(), c); !fault.Is(err, fault.Unavailable) {
		t.Errorf("kvm that does not work: %v, want unavailable", err)
	}
	c.Accelerator = "quick"
	if _, err := d.chooseAccelerator(t.Context(), c); !fault.Is(err, fault.Invalid) {
		t.Errorf("unknown accelerator: %v, want invalid", err)
	}
}

// TestProveKVM boots a stock kernel with the agent's initramfs. VERS_TEST_KERNEL and VERS_TEST_INITRD name them.
func TestProveKVM(t *testing.T) {
	c := Config{Accelerator: "auto", CacheDir: t.TempDir(), Kernel: os.Getenv("VERS_TEST_KERNEL"), Initrd: os.Getenv("VERS_TEST_INITRD")}
	if c.Kernel == "" || c.Initrd == "" {
		t.Skip("VERS_TEST_KERNEL and VERS_TEST_INITRD name no kernel")
	}
	d := newTestDriver(t, acceleratorTCG)
	began := time.Now()
	choice, err := d.chooseAccelerator(t.Context(), c)
	must(t, err)
	t.Logf("%v: %+v", time.Since(began), choice)
	if choice.Accelerator == acceleratorTCG && !strings.Contains(choice.Proof, "kvm") && !strings.Contains(choice.Proof, "KVM") {
		t.Errorf("no reason is given: %+v", choice)
	}
	if time.Since(began) > kvmLimit+2*time.Second {
		t.Errorf("it took %v, the limit is %v", time.Since(began), kvmLimit)
	}
}
