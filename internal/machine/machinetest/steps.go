package machinetest

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/guest"
	"vers/internal/machine"
	"vers/internal/machine/fake"
)

// Small is the smallest machine there is. Its zero names mean the default image and kernel.
var Small = catalog.VMConfig{MemSizeMiB: 128, VCPUCount: 1, FSSizeMiB: 64}

// Run runs a small VM of acme.
func (r *Rig) Run(t testing.TB) machine.VM {
	t.Helper()
	vm, err := r.Manager.Run(r.context(t), r.Acme, machine.RunRequest{Config: Small, WaitBoot: true})
	check(t, err)
	return vm
}

// Clone commits a VM of acme and restores it: a VM whose memory stands on a commit.
func (r *Rig) Clone(t testing.TB, vmID string) (machine.VM, machine.Commit) {
	t.Helper()
	ctx := r.context(t)
	c, _, err := r.Manager.Commit(ctx, r.Acme, vmID, machine.CommitRequest{})
	check(t, err)
	vm, err := r.Manager.Restore(ctx, r.Acme, c.ID, machine.NetworkRequest{})
	check(t, err)
	return vm, c
}

// Machine gives the machine of a VM, which must run.
func (r *Rig) Machine(t testing.TB, vmID string) fake.Instance {
	t.Helper()
	i, ok := r.Driver.Machine(vmID)
	if !ok {
		t.Fatalf("VM %s has no machine", vmID)
	}
	return i
}

// Exec runs a shell script in a VM and gives its output.
func (r *Rig) Exec(t testing.TB, c machine.Caller, vmID, script string) string {
	t.Helper()
	ctx := r.context(t)
	client, err := r.Manager.Guest(ctx, c, vmID)
	check(t, err)
	stream, err := client.Exec(ctx, guest.ExecRequest{Command: []string{"sh", "-c", script}})
	check(t, err)
	defer stream.Close()
	var out strings.Builder
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out.String()
		}
		check(t, err)
		out.Write(event.Data)
	}
}

// Await waits until something holds that happens by itself and cannot be waited on.
func Await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(Patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// AwaitState waits until a VM is in a state.
func (r *Rig) AwaitState(t testing.TB, c machine.Caller, vmID string, want machine.State) machine.VM {
	t.Helper()
	var vm machine.VM
	Await(t, "VM "+vmID+" becomes "+string(want), func() (ok bool) {
		var err error
		vm, err = r.Manager.Get(t.Context(), c, vmID)
		check(t, err)
		return vm.State == string(want)
	})
	return vm
}

// AwaitTemplate waits until a template is written, so that the next run of its kind restores it.
func (r *Rig) AwaitTemplate(t testing.TB) machine.Commit {
	t.Helper()
	var template machine.Commit
	Await(t, "a template is written", func() bool {
		all, err := r.Catalog.AllCommits(t.Context())
		check(t, err)
		for _, c := range all {
			if c.TemplateKey != "" && !strings.HasPrefix(c.TemplateKey, "import:") && !c.Deleted {
				template = c
				return true
			}
		}
		return false
	})
	return template
}

// Usage counts what VMs and commits take. Two equal ones with a Settle before each: nothing was lost or left.
type Usage struct {
	Machines, Networks                        int
	VMs, Commits, Layers, Flats               int // rows
	VMDirs, CommitDirs, LayerFiles, FlatFiles int
	CaptureFiles, MissingLayerFiles           int // 0 when nothing is going on
}

// Settle waits for what goes on in the background: flat files of commits are made, what nobody needs is collected.
func (r *Rig) Settle(t testing.TB) Usage {
	t.Helper()
	ctx := r.context(t)
	commits, err := r.Catalog.AllCommits(ctx)
	check(t, err)
	for _, c := range commits {
		if c.Deleted {
			continue
		}
		_, release, err := r.Commits.Flat(ctx, c.ID)
		check(t, err)
		release()
	}
	r.Collect(t)
	return r.usage(t)
}

// Collect collects garbage, as soon as nobody holds files in the making.
func (r *Rig) Collect(t testing.TB) {
	t.Helper()
	Await(t, "nobody holds files in the making", func() bool {
		done, err := r.Commits.Collect(r.context(t))
		check(t, err)
		return done
	})
}

func (r *Rig) usage(t testing.TB) Usage {
	t.Helper()
	ctx := r.context(t)
	vms, err := r.Catalog.AllVMs(ctx)
	check(t, err)
	commits, err := r.Catalog.AllCommits(ctx)
	check(t, err)
	layers, err := r.Catalog.Layers(ctx)
	check(t, err)
	flats, err := r.Catalog.Flats(ctx)
	check(t, err)
	u := Usage{
		Machines: r.Driver.Running(), Networks: r.Driver.Networks(),
		VMs: len(vms), Commits: len(commits), Layers: len(layers), Flats: len(flats),
		VMDirs: r.count(t, "vms/*"), CommitDirs: r.count(t, "commits/*"), LayerFiles: r.count(t, "layers/*"),
		FlatFiles: r.count(t, "flats/*"), CaptureFiles: r.count(t, "vms/*/capture-*"),
	}
	for _, l := range layers {
		if _, err := os.Stat(r.Commits.LayerPath(l.ID)); err != nil {
			u.MissingLayerFiles++
		}
	}
	return u
}

func (r *Rig) count(t testing.TB, pattern string) int {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(r.Dir, pattern))
	check(t, err)
	return len(found)
}

// Empty deletes every VM, commit and template, and fails the test if something is left.
func (r *Rig) Empty(t testing.TB) {
	t.Helper()
	ctx := r.context(t)
	for _, c := range []machine.Caller{r.Acme, r.Other} {
		vms, err := r.Manager.List(ctx, c)
		check(t, err)
		for _, vm := range vms {
			if err := r.Manager.Delete(ctx, c, vm.ID, false); err != nil && !fault.Is(err, fault.NotFound) {
				t.Fatal(err)
			}
		}
	}
	// Work in the background may hold on to a commit for a moment, or write a template yet.
	for end := time.Now().Add(Patience / 4); ; time.Sleep(time.Millisecond) {
		commits, err := r.Catalog.AllCommits(ctx)
		check(t, err)
		for _, c := range commits {
			if c.Deleted {
				continue
			}
			if err := r.Catalog.MarkCommitDeleted(ctx, c.ID); !fault.Is(err, fault.NotFound) {
				check(t, err)
			}
		}
		r.Collect(t)
		left := r.usage(t)
		if left == (Usage{}) {
			return
		}
		if time.Now().After(end) {
			t.Errorf("left behind: %+v", left)
			return
		}
	}
}

// context is bounded by Patience.
func (r *Rig) context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	t.Cleanup(cancel)
	return ctx
}
