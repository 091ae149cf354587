package machine_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/machine"
	"vers/internal/machine/fake"
	"vers/internal/machine/machinetest"
	"vers/internal/registry"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused expects an error of a kind.
func refused(t testing.TB, err error, kind fault.Kind) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Fatalf("got %v, want kind %q", err, kind)
	}
}

// unnamed is for forks that nothing names.
func unnamed(context.Context, *catalog.Tx, machine.Commit) error { return nil }

// source makes a VM of acme with a file, and two commits of it; the later one is given.
func source(t testing.TB, r *machinetest.Rig) (machine.VM, machine.Commit) {
	t.Helper()
	vm := r.Run(t)
	r.Exec(t, r.Acme, vm.ID, "echo first > note")
	_, _, err := r.Manager.Commit(t.Context(), r.Acme, vm.ID, machine.CommitRequest{})
	must(t, err)
	r.Exec(t, r.Acme, vm.ID, "echo published > note")
	c, _, err := r.Manager.Commit(t.Context(), r.Acme, vm.ID, machine.CommitRequest{})
	must(t, err)
	return vm, c
}

// imports lists the internal copies of other organisations' commits.
func imports(t testing.TB, r *machinetest.Rig) (found []machine.Commit) {
	t.Helper()
	all, err := r.Catalog.AllCommits(t.Context())
	must(t, err)
	for _, c := range all {
		if strings.HasPrefix(c.TemplateKey, "import:") {
			found = append(found, c)
		}
	}
	return found
}

func TestFork(t *testing.T) {
	t.Parallel()
	r := machinetest.New(t, machinetest.Options{})
	vm, c := source(t, r)
	named := ""
	fork, made, err := r.Manager.Fork(t.Context(), r.Other, c.ID, func(ctx context.Context, tx *catalog.Tx, made machine.Commit) error {
		if _, err := tx.VisibleCommit(ctx, made.ID); err != nil {
			t.Errorf("the commit is not there when it is named: %v", err)
		}
		if _, err := r.Catalog.VisibleCommit(ctx, made.ID); !fault.Is(err, fault.NotFound) {
			t.Errorf("others see the commit before it is named: %v", err)
		}
		named = made.ID
		return nil
	})
	must(t, err)
	if named != made.ID || made.ID == c.ID || made.OrgID != r.Other.OrgID || made.OwnerID != r.Other.KeyID || made.ParentVM != fork.ID {
		t.Errorf("%+v", made)
	}
	if fork.State != string(machine.StateRunning) || fork.OrgID != r.Other.OrgID || fork.ParentCommit != "" || fork.GrandparentVM != "" || made.ParentCommit != "" {
		t.Errorf("the fork names its source: %+v, %+v", fork, made)
	}
	if got := r.Exec(t, r.Other, fork.ID, "cat note"); got != "published\n" {
		t.Errorf("the fork holds %q", got)
	}
	if _, err := r.Manager.Get(t.Context(), r.Acme, fork.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("the source's organisation sees the fork: %v", err)
	}
	ownFilesOnly(t, r)

	// The source goes; versd restarts; the fork goes on, and so does what is made of it.
	must(t, r.Manager.Delete(t.Context(), r.Acme, vm.ID, false))
	all, _, err := r.Catalog.Commits(t.Context(), r.Acme.OrgID, 100, 0)
	must(t, err)
	for _, c := range all {
		must(t, r.Manager.DeleteCommit(t.Context(), r.Acme, c.ID))
	}
	r.Restart(t)
	r.Collect(t)
	if _, err := r.Catalog.Commit(t.Context(), c.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("the source was not collected: %v", err)
	}
	if got := r.Exec(t, r.Other, fork.ID, "cat note"); got != "published\n" {
		t.Errorf("the fork holds %q after its source went", got)
	}
	must(t, r.Manager.Delete(t.Context(), r.Other, fork.ID, false))
	again, err := r.Manager.Restore(t.Context(), r.Other, made.ID, machine.NetworkRequest{})
	must(t, err)
	if got := r.Exec(t, r.Other, again.ID, "cat note"); got != "published\n" {
		t.Errorf("a VM of the fork's commit holds %q", got)
	}
	must(t, r.Commits.Verify(t.Context(), made.ID))
	r.Empty(t)
}

// ownFilesOnly checks that every disk layer and memory base belongs to the organisation that stands on it.
func ownFilesOnly(t testing.TB, r *machinetest.Rig) {
	t.Helper()
	commits, err := r.Catalog.AllCommits(t.Context())
	must(t, err)
	orgOf := map[string]string{}
	for _, c := range commits {
		orgOf[c.ID] = c.OrgID
	}
	vms, err := r.Catalog.AllVMs(t.Context())
	must(t, err)
	check := func(what, org, layer, base string) {
		chain, err := r.Catalog.LayerChain(t.Context(), layer)
		must(t, err)
		for _, l := range chain {
			if l.OrgID != org {
				t.Errorf("%s stands on a layer of organisation %s", what, l.OrgID)
			}
		}
		if base != "" && orgOf[base] != org {
			t.Errorf("%s stands on the memory of organisation %s", what, orgOf[base])
		}
	}
	for _, c := range commits {
		check("commit "+c.ID, c.OrgID, c.LayerID, c.MemoryBase)
	}
	for _, v := range vms {
		check("VM "+v.ID, v.OrgID, v.LayerID, v.MemoryBase)
	}
}

// A fork within the organisation needs no copy, and names no source either: that can be deleted while the fork runs.
func TestForkOfOwnCommit(t *testing.T) {
	t.Parallel()
	r := machinetest.New(t, machinetest.Options{})
	_, c := source(t, r)
	fork, made, err := r.Manager.Fork(t.Context(), r.Acme, c.ID, unnamed)
	must(t, err)
	if len(imports(t, r)) != 0 || made.ID == c.ID || fork.ParentCommit != "" {
		t.Errorf("%+v, %+v", fork, made)
	}
	must(t, r.Manager.DeleteCommit(t.Context(), r.Acme, c.ID))
	r.Collect(t)
	if got := r.Exec(t, r.Acme, fork.ID, "cat note"); got != "published\n" {
		t.Errorf("the fork holds %q", got)
	}
	_, _, err = r.Manager.Fork(t.Context(), r.Other, c.ID, unnamed)
	refused(t, err, fault.NotFound)
	_, _, err = r.Manager.Fork(t.Context(), r.Other, ident.New(), unnamed)
	refused(t, err, fault.NotFound)
	r.Empty(t)
}

// Of equal forks at once one wins, the others leave nothing; all of them stand on one copy.
func TestForksRace(t *testing.T) {
	t.Parallel()
	r := machinetest.New(t, machinetest.Options{})
	_, c := source(t, r)
	names := registry.New(r.Catalog, registry.Options{})
	by := catalog.Key{ID: r.Other.KeyID, OrgID: r.Other.OrgID, Name: "ci"}
	publish := func(ctx context.Context, tx *catalog.Tx, made machine.Commit) error {
		return names.NameFork(ctx, tx, by, registry.Reference{Repository: "app", Tag: "latest"}, made.ID)
	}
	const racers = 8
	var won atomic.Int32
	var group sync.WaitGroup
	for range racers {
		group.Go(func() {
			_, _, err := r.Manager.Fork(context.Background(), r.Other, c.ID, publish)
			if err == nil {
				won.Add(1)
			} else if !fault.Is(err, fault.Conflict) || strings.Contains(err.Error(), "write commit") {
				t.Error(err)
			}
		})
	}
	group.Wait()
	usage := r.Settle(t)
	vms, err := r.Manager.List(t.Context(), r.Other)
	must(t, err)
	commits, _, err := r.Catalog.Commits(t.Context(), r.Other.OrgID, 100, 0)
	must(t, err)
	tag, err := names.Tag(t.Context(), r.Other.OrgID, registry.Reference{Repository: "app", Tag: "latest"})
	must(t, err)
	if won.Load() != 1 || len(vms) != 1 || len(commits) != 1 || tag.CommitID != commits[0].ID || commits[0].ParentVM != vms[0].ID {
		t.Errorf("%d won; %d VMs, %d commits, tag on %s", won.Load(), len(vms), len(commits), tag.CommitID)
	}
	if usage.Machines != 2 || usage.VMs != 2 || usage.VMDirs != 2 || usage.CaptureFiles != 0 || len(imports(t, r)) != 1 {
		t.Errorf("%+v and %d copies, want the machines of the source and of one fork, and one copy", usage, len(imports(t, r)))
	}
	must(t, names.DeleteRepository(t.Context(), by, "app"))
	r.Empty(t)
}

// Whatever step of a fork fails, nothing of it is left, and the next one succeeds.
func TestFailedForkLeavesNothing(t *testing.T) {
	t.Parallel()
	r := machinetest.New(t, machinetest.Options{ReadyLimit: 300 * time.Millisecond})
	_, c := source(t, r)
	names := registry.New(r.Catalog, registry.Options{})
	_, err := names.UpdateCommit(t.Context(), r.Acme.OrgID, c.ID, registry.CommitChange{IsPublic: true})
	must(t, err)
	first, err := r.Manager.Restore(t.Context(), r.Other, c.ID, machine.NetworkRequest{}) // leaves the copy that the forks stand on
	must(t, err)
	must(t, r.Manager.Delete(t.Context(), r.Other, first.ID, false))
	before := r.Settle(t)

	broken := errors.New("broken on purpose")
	for _, op := range []fake.Op{fake.OpNetwork, fake.OpStart, fake.OpLoad, fake.OpResume, fake.OpRenew, fake.OpCapture, fake.OpSwitch, "publish"} {
		t.Run(string(op), func(t *testing.T) {
			r.Driver.SetHook(func(at fake.Op, _ machine.Spec) error {
				if at == op {
					return broken
				}
				return nil
			})
			defer r.Driver.SetHook(nil)
			publish := unnamed
			if op == "publish" {
				publish = func(context.Context, *catalog.Tx, machine.Commit) error { return broken }
			}
			_, _, err := r.Manager.Fork(t.Context(), r.Other, c.ID, publish)
			if err == nil {
				t.Fatal("the fork succeeded")
			}
			if op == "publish" && !errors.Is(err, broken) {
				t.Errorf("the reason is lost: %v", err)
			}
			r.Driver.SetHook(nil)
			if after := r.Settle(t); after != before {
				t.Errorf("left:\n%+v, before\n%+v", after, before)
			}
		})
	}
	_, _, err = r.Manager.Fork(t.Context(), r.Other, c.ID, unnamed)
	must(t, err)
	r.Empty(t)
}

// A copy that takes longer than a client waits is finished without it, and found by the next one.
func TestSlowImport(t *testing.T) {
	t.Parallel()
	r := machinetest.New(t, machinetest.Options{ImportWait: time.Nanosecond})
	_, c := source(t, r)
	_, _, err := r.Manager.Fork(t.Context(), r.Other, c.ID, unnamed)
	refused(t, err, fault.Unavailable)
	machinetest.Await(t, "the copy is finished", func() bool { return len(imports(t, r)) == 1 })
	r.Stop(t)
	r.Options.ImportWait = 0
	r.Start(t)
	began := imports(t, r)[0].ID
	_, made, err := r.Manager.Fork(t.Context(), r.Other, c.ID, unnamed)
	must(t, err)
	if found := imports(t, r); len(found) != 1 || found[0].ID != began || made.MemoryBase != began {
		t.Errorf("%+v, want only %s, and the fork on it", found, began)
	}
	r.Empty(t)
}

// A public commit can be started by everybody who knows its id, a private one only by its owner; what was started keeps
// the owner from nothing.
func TestRestoreOfPublicCommits(t *testing.T) {
	t.Parallel()
	r := machinetest.New(t, machinetest.Options{})
	ctx := t.Context()
	_, c := source(t, r)
	names := registry.New(r.Catalog, registry.Options{})
	private := func() {
		t.Helper()
		_, err := r.Manager.Restore(ctx, r.Other, c.ID, machine.NetworkRequest{})
		refused(t, err, fault.NotFound)
		_, err = r.Manager.BranchCommit(ctx, r.Other, c.ID, 2, machine.NetworkRequest{})
		refused(t, err, fault.NotFound)
	}
	private()
	if len(imports(t, r)) != 0 {
		t.Error("a private commit was copied")
	}
	_, err := names.UpdateCommit(ctx, r.Acme.OrgID, c.ID, registry.CommitChange{IsPublic: true})
	must(t, err)
	vm, err := r.Manager.Restore(ctx, r.Other, c.ID, machine.NetworkRequest{})
	must(t, err)
	more, err := r.Manager.BranchCommit(ctx, r.Other, c.ID, 3, machine.NetworkRequest{})
	must(t, err)
	for _, v := range append(more, vm) {
		if v.ParentCommit != c.ID || v.OrgID != r.Other.OrgID || r.Exec(t, r.Other, v.ID, "cat note") != "published\n" {
			t.Errorf("%+v", v)
		}
	}
	if n := len(imports(t, r)); n != 1 {
		t.Errorf("%d copies of one commit", n)
	}
	ownFilesOnly(t, r)
	refused(t, r.Manager.DeleteCommit(ctx, r.Other, c.ID), fault.NotFound)
	_, err = r.Manager.Restore(ctx, r.Other, imports(t, r)[0].ID, machine.NetworkRequest{})
	refused(t, err, fault.NotFound) // the copy is nobody's to name
	_, err = names.UpdateCommit(ctx, r.Acme.OrgID, c.ID, registry.CommitChange{IsPublic: false})
	must(t, err)
	private()
	must(t, r.Manager.DeleteCommit(ctx, r.Acme, c.ID))
	private()

	// Commits of what was started are the taker's own.
	own, _, err := r.Manager.Commit(ctx, r.Other, vm.ID, machine.CommitRequest{})
	must(t, err)
	line, err := names.CommitHistory(ctx, r.Other.OrgID, own.ID)
	must(t, err)
	if len(line) != 1 || line[0].ID != own.ID {
		t.Errorf("%+v", line)
	}
	r.Empty(t)
}
