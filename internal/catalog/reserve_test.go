package catalog_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

// fill takes all space that is left in dir.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	must(t, err)
	defer file.Close()
	for size := 1 << 20; size > 0; {
		if _, err = file.Write(make([]byte, size)); errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else {
			must(t, err)
		}
	}
	return func() { must(t, os.Remove(path)) }
}

// TestFullDisk: what frees space can be written down on a full disk, also by a process that opens the catalogue then.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=40m"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	path := filepath.Join(dir, "catalog.db")
	c, err := catalog.Open(t.Context(), path)
	must(t, err)
	org := catalog.Organisation{ID: ident.New(), Name: "acme", GID: 70000, CreatedAt: start}
	must(t, c.InsertOrganisation(t.Context(), org))
	var vms []catalog.VM
	for i := range 8 {
		vm := catalog.VM{ID: ident.New(), OrgID: org.ID, OwnerID: "k", State: "running", CreatedAt: start, UID: i + 1}
		must(t, c.InsertVM(t.Context(), vm))
		vms = append(vms, vm)
	}
	must(t, c.Close())

	free := fill(t, dir)
	c, err = catalog.Open(t.Context(), path)
	must(t, err)
	defer func() { must(t, c.Close()) }()
	for _, vm := range vms[:4] {
		must(t, c.DeleteVM(t.Context(), vm.ID))
	}
	fill(t, dir) // somebody took what the reserve gave
	must(t, c.InTx(t.Context(), func(tx *catalog.Tx) error { return tx.DeleteVM(t.Context(), vms[4].ID) }))

	// Whoever goes on writing comes to an end of the reserve, is told so, and loses nothing.
	for i := 0; ; i++ {
		if i == 40 {
			t.Fatal("40 MiB were written to a full disk of 40 MiB")
		}
		err = c.PutEnv(t.Context(), org.ID, map[string]string{fmt.Sprint("V", i): strings.Repeat("x", 1<<20)})
		if err != nil {
			break
		}
	}
	wantKind(t, err, fault.Exhausted)
	left := get[[]catalog.VM](t)(c.AllVMs(t.Context()))
	if len(left) != 3 {
		t.Fatalf("%d VMs are left, want 3", len(left))
	}

	free()
	must(t, c.Refill())
	if parts := get[[]string](t)(filepath.Glob(path + ".reserve.*")); len(parts) != 4 {
		t.Errorf("with room again the reserve has %d parts", len(parts))
	}
	must(t, c.DeleteVM(t.Context(), vms[5].ID))
}
