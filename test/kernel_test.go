package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vers/internal/image"
)

// TestSecondKernel: a kernel that is added while versd runs, here from the package file that the default kernel came from, is
// booted by its name, and stays as long as something needs it.
func TestSecondKernel(t *testing.T) {
	first, err := image.OpenKernel(shared.data(), image.DefaultKernel)
	must(t, err)
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o777)) // apt downloads as a user of its own
	sh(t, "cd "+dir+" && { apt-get -q download linux-image-"+first.Release+" || { apt-get -q update && apt-get -q download linux-image-"+first.Release+"; }; } 2>&1")
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	must(t, err)
	if len(debs) != 1 {
		t.Fatalf("apt-get download left %v", debs)
	}
	versd := func(args string) string { return bin + "/versd kernel " + args + " --config " + shared.config() }
	u := newUser(t, shared)
	if r := u.try(`vers run --kernel second`); r.code == 0 || !strings.Contains(r.stderr, "kernel image 'second' not found") {
		t.Fatalf("before it was added: %+v", r)
	}
	sh(t, versd("add second --from "+debs[0]))

	// No machine of this size has been booted before: this one does not come from a template of the default kernel.
	before := strings.Count(shared.log(), "VM booted")
	u.run(`vers run --kernel second --mem-size 208 --vm-alias k2 --wait`)
	if n := strings.Count(shared.log(), "VM booted"); n != before+1 {
		t.Errorf("%d machines booted", n-before)
	}
	if release := u.run(`vers execute k2 uname -r`); release != first.Release {
		t.Errorf("uname -r says %s", release)
	}
	if name := u.run(`vers info k2 --format json | jq -r .kernel_name`); name != "second" {
		t.Errorf("the VM's kernel is %s", name)
	}
	if list := sh(t, versd("list --json")+` | jq -r '.[] | select(.name == "second") | "\(.release) \(.vms)"'`); strings.TrimSpace(list) != first.Release+" 1" {
		t.Errorf("list: %s", list)
	}
	commit := u.run(`vers commit k2 --format json | jq -r .commit_id`)
	u.run(`vers kill --yes k2`)
	if r := u.try(versd("remove second")); r.code == 0 || !strings.Contains(r.stderr, commit) {
		t.Errorf("removed although a commit needs it: %+v", r)
	}
	u.run(`vers commit delete ` + commit)
	sh(t, versd("remove second"))
	if r := u.try(`vers run --kernel second --mem-size 208`); r.code == 0 || !strings.Contains(r.stderr, "kernel image 'second' not found") {
		t.Errorf("after it was removed: %+v", r)
	}
}
