package test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vers/api"
	"vers/internal/catalog"
	"vers/internal/registry"
)

// newOrganisation makes another organisation on a server and gives a client and a user that act for it.
func newOrganisation(t *testing.T, s *server, name string) (*api.Client, *user) {
	t.Helper()
	c, err := catalog.Open(t.Context(), filepath.Join(s.data(), "catalog.db"))
	must(t, err)
	defer c.Close()
	r := registry.New(c, registry.Options{})
	org, err := r.CreateOrganisation(t.Context(), name)
	must(t, err)
	_, secret, err := r.CreateKey(t.Context(), org.ID, "key of "+name)
	must(t, err)
	client, err := api.NewClient("unix://"+s.socket(), api.WithKey(secret))
	must(t, err)
	u := newUser(t, s)
	u.key = secret
	return client, u
}

// TestForkBetweenOrganisations: what runs in a public machine goes on in the fork, which is whole when everything of the
// source is gone: VM, tag, repository, commits, and the files that they were made of.
func TestForkBetweenOrganisations(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	publisher := newUser(t, s)
	local, err := api.NewClient("unix://" + s.socket())
	must(t, err)
	remote, taker := newOrganisation(t, s, "taker")

	must(t, os.WriteFile(filepath.Join(publisher.dir, "counter"), []byte(counter), 0o600))
	publisher.run(`vers run --vm-alias source --mem-size 256 --wait`)
	publisher.run(`vers execute source "$(cat counter)"`)
	publisher.run(`vers commit source`) // a layer and a delta below the one that is published
	commit := publisher.run(`vers commit source --format json | jq -r .commit_id`)
	publisher.run(`vers repo create tools && vers repo tag create tools latest ` + commit)
	org := publisher.run(`vers repo get tools --format json | jq -r .owner_org`)
	fork := api.ForkRequest{SourceOrg: org, SourceRepo: "tools", SourceTag: "latest"}
	if _, err := remote.Fork(t.Context(), fork); api.StatusOf(err) != 404 {
		t.Fatalf("fork of a private repository: %v", err)
	}
	must(t, local.SetVisibility(t.Context(), "tools", true))

	began := time.Now()
	got, err := remote.Fork(t.Context(), fork)
	must(t, err)
	t.Logf("the fork took %v", time.Since(began).Round(time.Millisecond))
	if got.CommitID == commit || got.Reference != "tools:latest" {
		t.Fatalf("%+v", got)
	}
	if _, err := remote.Fork(t.Context(), fork); api.StatusOf(err) != 409 {
		t.Errorf("fork onto an existing tag: %v", err)
	}
	if vms, err := remote.VMs(t.Context()); err != nil || len(vms) != 1 || vms[0].State != "running" || vms[0].Parent != nil {
		t.Errorf("VMs of the taker: %+v, %v", vms, err)
	}
	noSharedFiles(t, s)

	// By id, a public commit can be started without a fork.
	_, err = local.UpdateCommit(t.Context(), commit, api.CommitUpdate{IsPublic: true})
	must(t, err)
	restored := taker.run(`vers run-commit ` + commit + ` --format json | jq -r .vm_id`)
	taker.run(`vers execute ` + restored + ` 'test -s /root/disk.log'`)

	// The source goes, all of it.
	publisher.run(`vers kill --yes source`)
	publisher.run(`vers repo delete tools`)
	for _, c := range strings.Fields(publisher.run(`vers commit list -q`)) {
		publisher.run(`vers commit delete ` + c)
	}
	eventually(t, "the source's files are collected", func() error {
		if _, err := os.Stat(filepath.Join(s.data(), "commits", commit)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("commit %s: %w", commit, err)
		}
		return nil
	})
	taker.run(`vers kill --yes ` + restored)
	goesOn(t, taker, got.VMID)
	taker.run(`vers kill --yes ` + got.VMID)
	again := taker.run(`vers run-commit tools:latest --ref --format json | jq -r .vm_id`)
	goesOn(t, taker, again)
	if list := taker.run(`vers commit list -q`); list != got.CommitID {
		t.Errorf("the taker's commits are %q, want only %s", list, got.CommitID)
	}
}

// goesOn checks that the counter in a VM is whole and counts.
func goesOn(t *testing.T, u *user, vm string) {
	t.Helper()
	memory := func() int { return number(t, u.run("vers execute "+vm+" 'tail -n1 /dev/shm/memory'")) }
	before := memory()
	if before == 0 {
		t.Errorf("VM %s did not bring the counter along", vm)
	}
	eventually(t, "the counter goes on", func() error {
		if now := memory(); now <= before {
			return fmt.Errorf("still at %d", now)
		}
		return nil
	})
	u.run("vers execute " + vm + ` 'kill -STOP $(cat /dev/shm/pid); echo 3 > /proc/sys/vm/drop_caches; awk "NR != \$1 {exit 1}" /root/disk.log; s=$?; kill -CONT $(cat /dev/shm/pid); exit $s'`)
}

// noSharedFiles checks that every flat file and layer belongs to one organisation's group, and that no QEMU process has
// another group's flat file or layer open or mapped.
func noSharedFiles(t *testing.T, s *server) {
	t.Helper()
	if os.Geteuid() != 0 {
		return // without root, all files are ours
	}
	groups := map[uint32][]string{}
	owner := map[string]uint32{}
	for _, sub := range []string{"flats", "layers"} {
		must(t, filepath.WalkDir(filepath.Join(s.data(), sub), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			gid := info.Sys().(*syscall.Stat_t).Gid
			groups[gid], owner[path] = append(groups[gid], path), gid
			return nil
		}))
	}
	if len(groups) < 2 {
		t.Errorf("files belong to the groups %v, want one for each organisation", groups)
	}
	maps, err := filepath.Glob("/proc/[0-9]*/maps")
	must(t, err)
	used := map[uint32]bool{}
	for _, name := range maps {
		data, err := os.ReadFile(name)
		if err != nil {
			continue // the process has ended
		}
		var seen []uint32
		for path, gid := range owner {
			if strings.Contains(string(data), path) && !slices.Contains(seen, gid) {
				seen = append(seen, gid)
				used[gid] = true
			}
		}
		if len(seen) > 1 {
			t.Errorf("%s maps files of the groups %v", name, seen)
		}
	}
	if len(used) == 0 {
		t.Error("no process was found that maps a flat file: the check sees nothing")
	}
}
